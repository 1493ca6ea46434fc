"""The ``build_examples`` step on a snapshot written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts import disk as disk_module
from stages.contracts.errors import DataError, EmptyDatasetError, OutOfSpaceError
from stages.contracts.examples import ExampleRows, ExamplesFile
from stages.contracts.files import sha256_tree, write_json
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.snapshot import ItemTable, Targets, Task
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.tables import DAY_MS, PART_EVALUATION, CandidateTable, EventTable, RequestTable
from stages.features import build as build_module
from stages.features.build import ExamplesConfig, build_examples, build_state, join_labels
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.ranking import feature_schema, ranking_features
from stages.features.state import FunnelState
from tests.builders.snapshots import catalogue, write_snapshot

T0 = 10_000 * DAY_MS
N, USERS = 8, 3
SIGNALS = ("click", "rating", "impression")
TASKS = (
    Task(name="click", signals=("click", "rating"), relevance=1.0),
    Task(name="like", signals=("rating",), min_value=0.7, relevance=2.0),
)
ALL = {"negatives": {"per_request": None}}
CONFIG = ExamplesConfig(features=FeatureConfig(history_length=3))
EVENTS = [
    (0, 1, 0, 1.0, T0),
    (1, 1, 0, 1.0, T0 + 1),
    (1, 4, 1, 0.9, T0 + 2),
    (0, 4, 1, 0.8, T0 + 5),
    (0, 5, 0, 1.0, T0 + 8),
]
REQUESTS = [(0, T0 + 5), (2, T0 + 6)]
TARGETS = [(0, 4, 3), (0, 5, 1), (1, 6, 1)]
"""Request, item and relevance; a relevance of 3 is a like."""
CANDIDATES = [(0, 5), (0, 4), (0, 2), (1, 1), (1, 6)]
VECTORS = np.eye(N, 4, dtype=np.float32)
MakeState = Callable[..., FunnelState]
World = Callable[..., dict[str, Path]]


def candidates(rows: Sequence[tuple[int, int]], popular: Sequence[int] = ()) -> CandidateTable:
    """Rows (request, item); ranks and scores follow from the order. Some requests have the popular list."""
    request_id = np.array([request for request, _ in rows], dtype=np.int64)
    rank = np.array([sum(r == request for r, _ in rows[:p]) for p, (request, _) in enumerate(rows)], dtype=np.int32)
    return CandidateTable(
        request_id=request_id,
        item_index=np.array([item for _, item in rows], dtype=np.int64),
        score=(1.0 / (1 + rank)).astype(np.float32),
        rank=rank,
        source=np.where(np.isin(request_id, popular), SOURCE_POPULAR, 0).astype(np.int8),
    )


def sampled(**section: object) -> ExamplesConfig:
    return ExamplesConfig.model_validate({**CONFIG.model_dump(), "sampling": section})


@pytest.fixture
def world(
    tmp_path: Path,
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
) -> World:
    """Return a function that writes the inputs of the step."""

    def write(
        events: Sequence[tuple] = EVENTS,
        requests: Sequence[tuple] = REQUESTS,
        targets: Sequence[tuple[int, int, int]] = TARGETS,
        rows: CandidateTable | Sequence[tuple[int, int]] = CANDIDATES,
        evaluated: Sequence[int] = (),
        n_items: int = N,
        row_groups: Sequence[int] = (),
    ) -> dict[str, Path]:
        directories = {name: tmp_path / name for name in ("snapshot", "candidate", "retrieve", "out")}
        for directory in directories.values():
            directory.mkdir()
        asked = make_requests(requests)
        asked.part[list(evaluated)] = PART_EVALUATION
        columns = [np.array([target[place] for target in targets]) for place in range(3)]
        write_snapshot(
            directories["snapshot"],
            (T0, T0 + 3, T0 + 6, T0 + 9),
            signals=SIGNALS,
            tasks=TASKS,
            categories="abcd",
            events=make_events(events),
            requests=asked,
            targets={
                "request_id": columns[0],
                "item_index": columns[1],
                "relevance": columns[2],
                "task_like": columns[2] == 3,
            },
            items=written(make_items(n_items)),
            users=[f"u{number}" for number in range(USERS)],
        )
        np.save(directories["candidate"] / "item_vectors.npy", np.eye(n_items, 4, dtype=np.float32))
        table = rows if isinstance(rows, CandidateTable) else candidates(rows)
        with CandidateTable.writer(directories["retrieve"] / "candidates.parquet") as append:
            for part in np.split(np.arange(len(table)), list(row_groups)):
                append(table.take(part))
        return directories

    return write


def written(items: ItemTable) -> object:
    spans = zip(items.category_offsets[:-1], items.category_offsets[1:], strict=True)
    columns = ("item_id", "title", "created_at_ms", "duration_s", "eligible")
    return catalogue(
        len(items),
        categories=[items.category_codes[start:end].tolist() for start, end in spans],
        **{name: getattr(items, name) for name in columns},
    )


@pytest.fixture
def inputs(world: World) -> dict[str, Path]:
    return world()


def read(directory: Path) -> ExampleRows:
    return ExamplesFile(directory).read()


def pairs(rows: ExampleRows) -> list[tuple[int, int]]:
    return list(zip(rows.request_id.tolist(), rows.item_index.tolist(), strict=True))


def test_examples_hold_point_in_time_features_labels_and_the_final_state(
    inputs: dict[str, Path], make_state: MakeState
) -> None:
    out = inputs["out"]
    metrics, info = build_examples(CONFIG, inputs, out)
    file = ExamplesFile(out)
    rows = file.read()
    assert metrics == {
        "rows": 5,
        "requests": 2,
        "positive_share": pytest.approx(3 / 5),
        "requests_without_positive": 0,
        "popular_requests": 0,
        "missed_positives": 0,
        "missed_share": 0,
    }
    assert file.schema_hash == info["feature_schema_hash"] == feature_schema(CONFIG.features, TASKS).hash
    assert info["features"] == len(file.feature_names)
    assert file.task_names == ("click", "like")
    assert pairs(rows) == CANDIDATES
    assert rows.user_index.tolist() == [0, 0, 0, 2, 2]
    assert rows.window.tolist() == [3, 3, 3, 4, 4]
    assert rows.rank.tolist() == [0, 1, 2, 0, 1]
    assert rows.score.tolist() == candidates(CANDIDATES).score.tolist()
    assert rows.weight.tolist() == [1] * 5
    assert rows.relevance.tolist() == [1, 3, 0, 0, 1]
    assert rows.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 0], [1, 0]]
    for request, (mine, n_events) in enumerate(((slice(0, 3), 3), (slice(3, 5), 4))):
        table = rows.take(mine)
        state = make_state(EVENTS[:n_events], history_length=3)
        wanted = ranking_features(state, *REQUESTS[request], table.item_index, table.score, table.rank, VECTORS)
        np.testing.assert_array_equal(table.features, wanted)

    final = FunnelState.load(out / "state", make_state().items, CONFIG.features, SIGNALS, TASKS)
    assert [final.touched(user).tolist() for user in range(3)] == [[1, 4, 5], [1, 4], []]
    assert final.n_users == 3
    assert {path.name for path in out.iterdir()} == {"examples.parquet", "feature_schema.json", "state"}


def test_a_refresh_replays_to_the_state_that_examples_end_with(inputs: dict[str, Path], tmp_path: Path) -> None:
    build_examples(CONFIG, inputs, inputs["out"])
    alone = tmp_path / "alone"
    alone.mkdir()
    metrics, info = build_state(CONFIG, {"snapshot": inputs["snapshot"], "champion": inputs["out"]}, alone)
    assert metrics == {"events": 5, "users": 3}
    assert sha256_tree(alone / "state") == sha256_tree(inputs["out"] / "state")
    assert (alone / "feature_schema.json").read_bytes() == (inputs["out"] / "feature_schema.json").read_bytes()
    assert info["feature_schema_hash"] == feature_schema(CONFIG.features, TASKS).hash


def test_a_refresh_is_refused_where_rankers_read_other_features(inputs: dict[str, Path]) -> None:
    write_json(inputs["candidate"] / "feature_schema.json", {"names": [], "hash": "0" * 64})
    with pytest.raises(DataError, match=r"feature schema \w{12}…, the champion's rankers read 0{12}…; train anew"):
        build_state(CONFIG, {"snapshot": inputs["snapshot"], "champion": inputs["candidate"]}, inputs["out"])


NAMES = ("tower", "trending")
OWN_SCORES = np.array([[3, np.nan], [2, 7], [1, np.nan], [np.nan, np.nan], [np.nan, 5]], dtype=np.float32)
OWN_RANKS = np.array([[0, -1], [1, 2], [2, -1], [-1, -1], [-1, 0]], dtype=np.int32)
BLEND = SourceScores(NAMES, OWN_SCORES, OWN_RANKS)


def test_examples_of_a_blend_hold_what_the_sources_said_and_a_state_that_counts_trends(
    inputs: dict[str, Path], make_items: Callable[..., ItemTable], make_state: MakeState
) -> None:
    path = inputs["retrieve"] / SOURCE_SCORES_FILE
    pq.write_table(BLEND.table(), path)
    windows = TrendingConfig(windows_minutes=(1,), weights=(1,))
    config = CONFIG.model_copy(update={"sources": NAMES, "trending": windows})
    build_examples(config, inputs, inputs["out"])
    file = ExamplesFile(inputs["out"])
    rows = file.read()
    state = make_state(EVENTS[:3], history_length=3)
    table = rows.take(np.arange(3))
    arguments = (table.item_index, table.score, table.rank, VECTORS, (), BLEND.take(slice(0, 3)))
    np.testing.assert_array_equal(rows.features[:3], ranking_features(state, *REQUESTS[0], *arguments))
    assert rows.features[:, file.feature_names.index("source_trending_score")].tolist() == [0, 7, 0, 0, 5]
    described = json.loads((inputs["out"] / "feature_schema.json").read_text())
    assert described["sources"] == list(NAMES)
    assert described["hash"] == feature_schema(CONFIG.features, TASKS, (), NAMES).hash
    state = FunnelState.load(inputs["out"] / "state", make_items(), CONFIG.features, SIGNALS, TASKS, trending=windows)
    assert state.trending is not None
    assert state.trending.scores(T0 + 9)[0].tolist() == [1, 4, 5]

    for other, message in (
        ((), r"has scores by generator, but sources = \[\]"),
        (("tower", "ease"), r"holds the sources \['tower', 'trending'\], expected \['tower', 'ease'\]"),
    ):
        with pytest.raises(DataError, match=message):
            build_examples(config.model_copy(update={"sources": other}), inputs, inputs["out"])
    pq.write_table(BLEND.take(slice(0, 4)).table(), path)
    with pytest.raises(DataError, match="has 4 rows, the candidates have 5"):
        build_examples(config, inputs, inputs["out"])


LARGE, ASKED = 40, 60
"""Items of a larger catalogue, and requests."""


def larger(seed: int = 0) -> dict:
    """A log of a few users, and requests of theirs with 20 candidates each; every third has no target among them."""
    rng = np.random.default_rng(seed)
    events = [
        (int(rng.integers(USERS)), int(LARGE * rng.random() ** 2), int(rng.integers(3)), 1.0, T0 + number)
        for number in range(300)
    ]
    asked = sorted((int(rng.integers(300)), int(rng.integers(USERS))) for _ in range(ASKED))
    lists = [rng.permutation(LARGE)[:20].tolist() for _ in asked]
    targets = [
        (request, item, int(rng.choice([1, 3])))
        for request, items in enumerate(lists)
        for item in sorted(items[:2] if request % 3 else set(range(LARGE)) - set(items))[:2]
    ]
    return {
        "events": events,
        "requests": [(user, T0 + time) for time, user in asked],
        "targets": targets,
        "rows": [(request, item) for request, items in enumerate(lists) for item in items],
        "n_items": LARGE,
        "row_groups": [20 * number for number in range(7, ASKED, 7)],
    }


def with_target(request: int) -> bool:
    return request % 3 != 0


SAMPLES = {
    "uniform": {"per_request": 6},
    "rank": {"per_request": 6, "by": "rank", "band_ends": [4, 10], "band_shares": [0.5, 0.3, 0.2]},
    "popularity": {"per_request": 6, "by": "popularity", "popularity_power": 1},
}


@pytest.mark.parametrize("by", list(SAMPLES))
def test_a_sample_has_the_features_that_all_candidates_have(world: World, by: str, make_state: MakeState) -> None:
    """The negatives that are left out change nothing of the rows that are kept."""
    made = larger()
    inputs = world(**made)
    metrics, _ = build_examples(sampled(negatives=SAMPLES[by], windows=4), inputs, inputs["out"])
    rows = read(inputs["out"])
    expected_requests = [request for request in range(ASKED) if with_target(request)]
    assert np.unique(rows.request_id).tolist() == expected_requests
    assert metrics["requests"] == len(expected_requests)
    assert metrics["rows"] == len(rows) == 8 * len(expected_requests)
    assert metrics["positive_share"] == pytest.approx(2 / 8)
    assert metrics["requests_without_positive"] == ASKED // 3
    ordered, done, state = made["events"], 0, make_state((), LARGE, history_length=3)
    relevance = {(request, item): value for request, item, value in made["targets"]}
    for request in expected_requests:
        user, time_ms = made["requests"][request]
        while done < len(ordered) and ordered[done][4] < time_ms:
            state.apply(*ordered[done])
            done += 1
        mine = rows.take(rows.request_id == request)
        retrieved = candidates([row for row in made["rows"] if row[0] == request])
        place = [retrieved.item_index.tolist().index(item) for item in mine.item_index.tolist()]
        assert place == sorted(place) == mine.rank.tolist()
        arguments = (retrieved.item_index, retrieved.score, retrieved.rank, np.eye(LARGE, 4, dtype=np.float32))
        np.testing.assert_array_equal(mine.features, ranking_features(state, user, time_ms, *arguments)[place])
        wanted = [relevance.get((request, item), 0) for item in mine.item_index.tolist()]
        assert mine.relevance.tolist() == wanted
        assert mine.labels.tolist() == [[float(value > 0), float(value == 3)] for value in wanted]
        assert set(mine.user_index.tolist()) == {user}
        assert mine.weight[mine.relevance > 0].tolist() == [1, 1]
        assert (mine.relevance == 0).sum() == 6
    weights = rows.weight[rows.relevance == 0]
    if by == "uniform":
        assert set(weights.tolist()) == {3}
    else:
        assert len(set(weights.tolist())) > 2
    assert (np.diff(rows.window) >= 0).all()
    assert np.bincount(rows.window).tolist() == [80] * 4


def test_weights_are_one_over_the_probability_of_the_touches_before_the_ranker_period(world: World) -> None:
    """Two candidates of which one is wanted; exposures and later events are not counted."""
    events = [(0, 1, 0, 1.0, T0), (1, 1, 0, 1.0, T0 + 1), (0, 2, 2, 1.0, T0 + 2), (1, 2, 0, 1.0, T0 + 7)]
    inputs = world(events=events, rows=[(0, 1), (0, 2), (0, 4), (1, 1), (1, 2), (1, 6)])
    snapshot = pq.read_table(inputs["snapshot"] / "events.parquet")
    parts = np.array([0, 0, 0, 1], dtype=np.int8)
    place = snapshot.schema.get_field_index("part")
    table = snapshot.set_column(place, snapshot.schema.field("part"), [parts])
    pq.write_table(table, inputs["snapshot"] / "events.parquet")
    seen = set()
    for seed in range(20):
        negatives = {"per_request": 1, "by": "popularity", "popularity_power": 1}
        out = inputs["out"] / str(seed)
        out.mkdir()
        build_examples(sampled(seed=seed, negatives=negatives), inputs, out)
        rows = read(out)
        negative = rows.take(rows.relevance == 0)
        assert negative.request_id.tolist() == [0, 1]
        seen |= set(zip(negative.item_index.tolist(), negative.weight.tolist(), strict=True))
    # Item 1 has 2 touches, item 2 none: kept with 3 / 4 and 1 / 4.
    assert seen == {(1, float(np.float32(4 / 3))), (2, 4.0)}


def test_one_seed_gives_one_sample_whatever_the_row_groups(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = world(**larger())
    found = {}
    for name, seed, rows in (("small", 0, 1), ("large", 0, 1 << 20), ("other", 1, 1 << 20)):
        monkeypatch.setattr(build_module, "_GROUP_ROWS", rows)
        out = inputs["out"] / name
        out.mkdir()
        build_examples(sampled(seed=seed, negatives={"per_request": 6}), inputs, out)
        found[name] = ExamplesFile(out)
    assert (found["small"].n_groups, found["large"].n_groups) == (9, 1)
    small, large, other = (file.read() for file in found.values())
    for name, values in vars(small).items():
        np.testing.assert_array_equal(values, getattr(large, name), name)
    assert pairs(large) != pairs(other)
    assert sha256_tree(inputs["out"] / "small" / "state") == sha256_tree(inputs["out"] / "other" / "state")


def test_requests_are_chosen_by_their_number_in_all_and_of_a_user(world: World) -> None:
    made = larger()
    inputs = world(**made)
    for name, section, wanted in (
        ("in all", {"in_all": 7}, 7),
        ("per user", {"per_user": 4}, 4 * USERS),
        ("without", {"without_positive": True}, ASKED),
    ):
        out = inputs["out"] / name
        out.mkdir()
        metrics, _ = build_examples(sampled(requests=section, windows=2), inputs, out)
        rows = read(out)
        chosen = np.unique(rows.request_id)
        assert len(chosen) == metrics["requests"] == wanted
        windows = rows.window[np.unique(rows.request_id, return_index=True)[1]]
        assert abs(np.diff(np.bincount(windows))[0]) <= 1
        if name == "per user":
            users = [made["requests"][request][0] for request in chosen.tolist()]
            assert np.bincount(users).tolist() == [4] * USERS
        if name != "without":
            assert all(with_target(request) for request in chosen.tolist())


def test_requests_of_the_popular_list_and_of_evaluation_are_left_out(world: World) -> None:
    """Neither teaches a ranker; the state still ends at the log's end."""
    asked = [(0, T0 + 5), (2, T0 + 5), (2, T0 + 6), (1, T0 + 7)]
    targets = [(0, 4, 3), (1, 6, 1), (2, 6, 1), (3, 7, 1)]
    table = candidates([(0, 4), (0, 2), (1, 1), (1, 6), (2, 6), (3, 7), (3, 1)], popular=[1])
    inputs = world(requests=asked, targets=targets, rows=table, evaluated=[3])
    metrics, _ = build_examples(sampled(**ALL), inputs, inputs["out"])
    assert pairs(read(inputs["out"])) == [(0, 4), (0, 2), (2, 6)]
    assert (metrics["requests"], metrics["popular_requests"], metrics["missed_positives"]) == (2, 1, 0)


def test_requests_without_candidates_are_left_out(inputs: dict[str, Path]) -> None:
    candidates([(1, 1), (1, 6)]).write(inputs["retrieve"] / "candidates.parquet")
    metrics, _ = build_examples(CONFIG, inputs, inputs["out"])
    assert (metrics["rows"], metrics["requests"], metrics["positive_share"]) == (2, 1, 0.5)
    assert (metrics["missed_positives"], metrics["missed_share"]) == (2, pytest.approx(2 / 3))


@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("blend", [False, True])
def test_missed_targets_are_counted_and_added_only_where_the_recipe_says_so(
    world: World, make_state: MakeState, inject: bool, blend: bool
) -> None:
    targets = [*TARGETS, (0, 7, 3), (0, 3, 1)]
    rows = [(0, 5), (0, 4), (0, 2), (1, 1), (1, 0)]
    inputs = world(targets=sorted(targets), rows=rows)
    config = sampled(inject_missed=inject, **ALL)
    if blend:
        config = config.model_copy(update={"sources": NAMES})
        pq.write_table(BLEND.table(), inputs["retrieve"] / SOURCE_SCORES_FILE)
    metrics, _ = build_examples(config, inputs, inputs["out"])
    found = read(inputs["out"])
    assert metrics["missed_positives"] == 3
    assert metrics["missed_share"] == pytest.approx(3 / 5)
    assert metrics["requests_without_positive"] == 1
    if not inject:
        assert pairs(found) == rows[:3]
        return
    assert pairs(found) == [*rows[:3], (0, 3), (0, 7), *rows[3:], (1, 6)]
    assert found.rank.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert found.score.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    assert found.relevance.tolist() == [1, 3, 0, 1, 3, 0, 0, 1]
    assert found.weight.tolist() == [1] * 8
    first = found.take(np.arange(5))
    sources = None
    if blend:
        sources = SourceScores.concatenate([BLEND.take(slice(0, 3)), SourceScores.nothing(NAMES, 2)])
    state = make_state(EVENTS[:3], history_length=3)
    wanted = ranking_features(state, *REQUESTS[0], first.item_index, first.score, first.rank, VECTORS, (), sources)
    np.testing.assert_array_equal(first.features, wanted)


@pytest.mark.parametrize(
    ("rows", "popular", "section", "message"),
    [
        ([(0, 1), (1, 1)], [], {}, r"none of 2 requests .* \(2 of them come from the generators"),
        (
            [(0, 4), (1, 6)],
            [0, 1],
            {},
            r"none of 2 requests .* \(0 of them .*raise funnel.candidate_k, or train longer",
        ),
        ([(0, 1), (1, 6)], [1], {"requests": {"without_positive": True}}, r"none of 2 requests .* \(1 of them"),
        ([(0, 4), (1, 6)], [0, 1], {"inject_missed": True}, r"none of 2 requests .* \(0 of them"),
    ],
)
def test_without_a_request_to_learn_from_the_counts_say_why(
    inputs: dict[str, Path], rows: list[tuple[int, int]], popular: list[int], section: dict, message: str
) -> None:
    candidates(rows, popular).write(inputs["retrieve"] / "candidates.parquet")
    with pytest.raises(EmptyDatasetError, match=message):
        build_examples(sampled(**section), inputs, inputs["out"])
    assert list(inputs["out"].iterdir()) == []


def test_only_requests_of_evaluation_are_nothing_to_learn_from(world: World) -> None:
    inputs = world(evaluated=[0, 1])
    with pytest.raises(EmptyDatasetError, match="none of 0 requests of the ranker period"):
        build_examples(CONFIG, inputs, inputs["out"])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], EmptyDatasetError, "holds no candidates"),
        ([(0, 8)], DataError, "item_index spans 8 to 8, allowed are 0 to 7"),
        ([(0, -1)], DataError, "item_index spans -1 to -1, allowed are 0 to 7"),
        ([(2, 1)], DataError, "request_id spans 2 to 2, allowed are 0 to 1"),
        ([(1, 1), (0, 1)], DataError, "sorted by request_id"),
    ],
)
def test_candidates_of_another_world_are_refused(
    inputs: dict[str, Path], rows: list[tuple[int, int]], error: type[DataError], message: str
) -> None:
    candidates(rows).write(inputs["retrieve"] / "candidates.parquet")
    with pytest.raises(error, match=message):
        build_examples(CONFIG, inputs, inputs["out"])
    assert list(inputs["out"].iterdir()) == [], "nothing half-written"


def test_a_request_in_two_row_groups_is_refused(world: World) -> None:
    inputs = world(row_groups=[1])
    with pytest.raises(DataError, match="each request must lie in one row group"):
        build_examples(CONFIG, inputs, inputs["out"])


def test_vectors_of_another_catalogue_are_refused(inputs: dict[str, Path]) -> None:
    np.save(inputs["candidate"] / "item_vectors.npy", np.zeros((N - 1, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"item_vectors\.npy has shape \[7, 4\], the snapshot has 8 items"):
        build_examples(CONFIG, inputs, inputs["out"])


def test_a_vector_that_is_no_number_is_refused_with_its_feature(inputs: dict[str, Path]) -> None:
    broken = VECTORS.copy()
    broken[4, 0] = np.nan
    np.save(inputs["candidate"] / "item_vectors.npy", broken)
    with pytest.raises(DataError, match=r"examples\.parquet: \w+ = nan in row \d, every feature must be finite"):
        build_examples(CONFIG, inputs, inputs["out"])


def test_a_sample_that_does_not_fit_the_disk_is_refused_before_anything_is_written(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "free_bytes", lambda directory: 100)
    with pytest.raises(OutOfSpaceError, match="build_examples"):
        build_examples(CONFIG, inputs, inputs["out"])
    assert list(inputs["out"].iterdir()) == []


PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), unique=True, max_size=15)


@given(PAIRS, PAIRS)
def test_label_join_equals_a_dictionary(rows: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    rows, wanted = sorted(rows), sorted(wanted)
    numbers = np.arange(1, len(wanted) + 1, dtype=np.float32)
    keys = np.array(wanted, dtype=np.int64).reshape(-1, 2)
    targets = Targets(keys[:, 0], keys[:, 1], numbers, np.stack([numbers, -numbers], axis=1))
    relevance, labels = join_labels(candidates(rows), targets, 7)
    lookup = dict(zip(wanted, numbers.tolist(), strict=True))
    assert relevance.tolist() == [lookup.get(row, 0.0) for row in rows]
    assert labels.tolist() == [[lookup.get(row, 0.0), -lookup.get(row, 0.0)] for row in rows]
