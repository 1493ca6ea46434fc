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

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.examples import Examples
from stages.contracts.files import sha256_tree, write_json
from stages.contracts.snapshot import ItemTable, Targets, Task
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.tables import DAY_MS, CandidateTable, EventTable, RequestTable
from stages.features.build import ExamplesConfig, build_examples, build_state, join_labels
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.ranking import feature_schema, ranking_features
from stages.features.state import FunnelState
from tests.builders.snapshots import catalogue, write_snapshot

T0 = 10_000 * DAY_MS
N = 8
SIGNALS = ("click", "rating", "impression")
TASKS = (
    Task(name="click", signals=("click", "rating"), relevance=1.0),
    Task(name="like", signals=("rating",), min_value=0.7, relevance=2.0),
)
CONFIG = ExamplesConfig(features=FeatureConfig(history_length=3))
EVENTS = [
    (0, 1, 0, 1.0, T0),
    (1, 1, 0, 1.0, T0 + 1),
    (1, 4, 1, 0.9, T0 + 2),
    (0, 4, 1, 0.8, T0 + 5),
    (0, 5, 0, 1.0, T0 + 8),
]
REQUESTS = [(0, T0 + 5), (2, T0 + 6)]
MakeState = Callable[..., FunnelState]


def candidates(rows: list[tuple[int, int]]) -> CandidateTable:
    """Rows (request, item); ranks and scores follow from the order."""
    request_id = np.array([request for request, _ in rows], dtype=np.int64)
    rank = np.array([sum(r == request for r, _ in rows[:p]) for p, (request, _) in enumerate(rows)], dtype=np.int32)
    return CandidateTable(
        request_id=request_id,
        item_index=np.array([item for _, item in rows], dtype=np.int64),
        score=(1.0 / (1 + rank)).astype(np.float32),
        rank=rank,
        source=np.zeros(len(rows), dtype=np.int8),
    )


def write_world(directory: Path, items: ItemTable, events: EventTable, requests: RequestTable) -> None:
    spans = zip(items.category_offsets[:-1], items.category_offsets[1:], strict=True)
    columns = ("item_id", "title", "created_at_ms", "duration_s", "eligible")
    written = catalogue(
        len(items),
        categories=[items.category_codes[start:end].tolist() for start, end in spans],
        **{name: getattr(items, name) for name in columns},
    )
    targets = {"request_id": [0, 0, 1], "item_index": [4, 5, 6], "relevance": [3, 1, 1], "task_like": [1, 0, 0]}
    write_snapshot(
        directory,
        (T0, T0 + 3, T0 + 6, T0 + 9),
        signals=SIGNALS,
        tasks=TASKS,
        categories="abcd",
        events=events,
        requests=requests,
        targets=targets,
        items=written,
        users=["a", "b", "c"],
    )


@pytest.fixture
def inputs(tmp_path: Path, make_items: Callable, make_events: Callable, make_requests: Callable) -> dict[str, Path]:
    directories = {name: tmp_path / name for name in ("snapshot", "candidate", "retrieve", "out")}
    for directory in directories.values():
        directory.mkdir()
    write_world(directories["snapshot"], make_items(), make_events(EVENTS), make_requests(REQUESTS))
    np.save(directories["candidate"] / "item_vectors.npy", np.eye(N, 4, dtype=np.float32))
    candidates([(0, 5), (0, 4), (0, 2), (1, 1), (1, 6)]).write(directories["retrieve"] / "candidates.parquet")
    return directories


def test_examples_hold_point_in_time_features_labels_and_the_final_state(
    inputs: dict[str, Path], make_state: MakeState
) -> None:
    out = inputs["out"]
    metrics, info = build_examples(CONFIG, inputs, out)
    examples = Examples.read(out)
    assert metrics == {"rows": 5, "requests": 2, "positive_share": pytest.approx(3 / 5)}
    assert examples.schema_hash == info["feature_schema_hash"] == feature_schema(CONFIG.features, TASKS).hash
    assert examples.relevance.tolist() == [1, 3, 0, 0, 1]
    assert examples.labels.tolist() == [[1, 0], [1, 1], [0, 0], [0, 0], [1, 0]]

    vectors = np.eye(N, 4, dtype=np.float32)
    for request, (rows, n_events) in enumerate(((slice(0, 3), 3), (slice(3, 5), 4))):
        table = examples.rows.take(np.arange(5)[rows])
        user, time_ms = REQUESTS[request]
        state = make_state(EVENTS[:n_events], history_length=3)
        wanted = ranking_features(state, user, time_ms, table.item_index, table.score, table.rank, vectors)
        np.testing.assert_array_equal(examples.features[rows], wanted)

    final = FunnelState.load(out / "state", make_state().items, CONFIG.features, SIGNALS, TASKS)
    assert [final.touched(user).tolist() for user in range(3)] == [[1, 4, 5], [1, 4], []]
    assert final.n_users == 3


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
    names = ("tower", "trending")
    scores = np.array([[3, np.nan], [2, 7], [1, np.nan], [np.nan, np.nan], [np.nan, 5]], dtype=np.float32)
    ranks = np.array([[0, -1], [1, 2], [2, -1], [-1, -1], [-1, 0]], dtype=np.int32)
    source_scores = SourceScores(names, scores, ranks)
    path = inputs["retrieve"] / SOURCE_SCORES_FILE
    pq.write_table(source_scores.table(), path)
    windows = TrendingConfig(windows_minutes=(1,), weights=(1,))
    config = CONFIG.model_copy(update={"sources": names, "trending": windows})
    build_examples(config, inputs, inputs["out"])
    examples = Examples.read(inputs["out"])
    state = make_state(EVENTS[:3], history_length=3)
    table = examples.rows.take(np.arange(3))
    arguments = (
        table.item_index,
        table.score,
        table.rank,
        np.eye(N, 4, dtype=np.float32),
        (),
        source_scores.take(slice(0, 3)),
    )
    np.testing.assert_array_equal(examples.features[:3], ranking_features(state, *REQUESTS[0], *arguments))
    column = examples.feature_names.index("source_trending_score")
    assert examples.features[:, column].tolist() == [0, 7, 0, 0, 5]
    described = json.loads((inputs["out"] / "feature_schema.json").read_text())
    assert described["sources"] == list(names)
    assert described["hash"] == feature_schema(CONFIG.features, TASKS, (), names).hash
    state = FunnelState.load(inputs["out"] / "state", make_items(), CONFIG.features, SIGNALS, TASKS, trending=windows)
    assert state.trending is not None
    assert state.trending.scores(T0 + 9)[0].tolist() == [1, 4, 5]

    for other, message in (
        ((), r"has scores by generator, but sources = \[\]"),
        (("tower", "ease"), r"holds the sources \['tower', 'trending'\], expected \['tower', 'ease'\]"),
    ):
        with pytest.raises(DataError, match=message):
            build_examples(config.model_copy(update={"sources": other}), inputs, inputs["out"])
    pq.write_table(source_scores.take(slice(0, 4)).table(), path)
    with pytest.raises(DataError, match="has 4 rows, the candidates have 5"):
        build_examples(config, inputs, inputs["out"])


def test_requests_without_candidates_are_left_out(inputs: dict[str, Path]) -> None:
    candidates([(1, 1)]).write(inputs["retrieve"] / "candidates.parquet")
    metrics, _ = build_examples(CONFIG, inputs, inputs["out"])
    assert metrics == {"rows": 1, "requests": 1, "positive_share": 0}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], EmptyDatasetError, "holds no candidates"),
        ([(0, 8)], DataError, "item_index spans 8 to 8, allowed are 0 to 7"),
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


def test_vectors_of_another_catalogue_are_refused(inputs: dict[str, Path]) -> None:
    np.save(inputs["candidate"] / "item_vectors.npy", np.zeros((N - 1, 4), dtype=np.float32))
    with pytest.raises(DataError, match=r"item_vectors\.npy has shape \[7, 4\], the snapshot has 8 items"):
        build_examples(CONFIG, inputs, inputs["out"])


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
