"""The ``build_examples`` step on a snapshot written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts import disk as disk_module
from stages.contracts.errors import DataError, EmptyDatasetError, OutOfSpaceError
from stages.contracts.examples import ExamplesFile
from stages.contracts.files import write_json
from stages.contracts.snapshot import ItemTable, Targets
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.features.build import build_examples, build_state, join_labels
from stages.features.config import TrendingConfig, TrendsConfig
from stages.features.ranking import feature_schema, ranking_features
from stages.features.state import FunnelState
from tests.features.worlds import (
    ALL,
    BLEND,
    CANDIDATES,
    CONFIG,
    EVENTS,
    NAMES,
    REQUESTS,
    SIGNALS,
    T0,
    TARGETS,
    TASKS,
    VECTORS,
    N,
    candidates,
    pairs,
    read,
    sampled,
)
from tests.trees import sha256_tree

MakeState = Callable[..., FunnelState]
MakeInputs = Callable[..., dict[str, Path]]


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


def test_examples_of_a_blend_hold_what_the_sources_said_and_a_state_that_counts_trends(
    inputs: dict[str, Path], make_items: Callable[..., ItemTable], make_state: MakeState
) -> None:
    path = inputs["retrieve"] / SOURCE_SCORES_FILE
    pq.write_table(BLEND.table(), path)
    windows = TrendsConfig(lists={"trending": TrendingConfig(windows_minutes=(1,), weights=(1,))})
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


def test_requests_of_the_popular_list_and_of_evaluation_are_left_out(make_inputs: MakeInputs) -> None:
    """Neither teaches a ranker; the state still ends at the log's end."""
    asked = [(0, T0 + 5), (2, T0 + 5), (2, T0 + 6), (1, T0 + 7)]
    targets = [(0, 4, 3), (1, 6, 1), (2, 6, 1), (3, 7, 1)]
    table = candidates([(0, 4), (0, 2), (1, 1), (1, 6), (2, 6), (3, 7), (3, 1)], popular=[1])
    inputs = make_inputs(requests=asked, targets=targets, rows=table, evaluated=[3])
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
    make_inputs: MakeInputs, make_state: MakeState, inject: bool, blend: bool
) -> None:
    targets = [*TARGETS, (0, 7, 3), (0, 3, 1)]
    rows = [(0, 5), (0, 4), (0, 2), (1, 1), (1, 0)]
    inputs = make_inputs(targets=sorted(targets), rows=rows)
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


def test_only_requests_of_evaluation_are_nothing_to_learn_from(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(evaluated=[0, 1])
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


def test_a_request_in_two_row_groups_is_refused(make_inputs: MakeInputs) -> None:
    inputs = make_inputs(row_groups=[1])
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
