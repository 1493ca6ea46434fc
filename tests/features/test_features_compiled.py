"""The compiled state and features against the plain ones, event by event."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS, CandidateTable, EventTable, RequestTable
from stages.features.config import FeatureConfig, TrendingConfig, TrendsConfig
from stages.features.feature_blocks import feature_blocks
from stages.features.ranking import feature_schema, ranking_features
from stages.features.state import FunnelState
from tests.features.plain.ranking import ranking_features as plain_features
from tests.features.plain.state import FunnelState as PlainState

T0 = 10_000 * DAY_MS
HOUR = 3_600_000
N, USERS = 8, 5
SIGNALS = ("click", "rating", "impression")
TASKS = (
    Task(name="click", signals=("click", "rating"), relevance=1.0),
    Task(name="like", signals=("rating",), min_value=0.7, relevance=2.0),
)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
CONFIG = FeatureConfig(covisitation_neighbours=2, covisitation_window=3, similarity_history=3, history_length=4)
WINDOWS = TrendsConfig(
    lists={
        "trending": TrendingConfig(
            windows_minutes=(60, 600), weights=(1.0, 0.5), segment="region", segment_smoothing=2.0
        )
    }
)
VECTORS = np.random.default_rng(3).normal(size=(N, 5)).astype(np.float32)

Event = tuple[int, int, int, float, int, int]
EVENTS = st.lists(
    st.tuples(
        st.integers(0, USERS - 1),
        st.integers(0, N - 1),
        st.integers(0, 2),
        st.floats(0, 1, width=32),
        st.integers(0, 300).map(lambda hours: T0 + hours * HOUR),
        st.integers(0, 4),
    ),
    max_size=60,
)
COUNTERS = (
    "touches",
    "exposures",
    "positives",
    "item_events",
    "item_value_sum",
    "totals",
    "category_touches",
    "category_positives",
    "context_counts",
    "context_categories",
    "context_totals",
)
DECAYED = ("item_counts", "category_counts", "task_counts", "category_task_counts", "exposure_counts")


def both(items: ItemTable) -> tuple[FunnelState, PlainState]:
    made = (items, CONFIG, SIGNALS, TASKS, 0, CONTEXT, WINDOWS)
    return FunnelState.empty(*made), PlainState.empty(*made)


def assert_equal(found: FunnelState, wanted: PlainState) -> None:
    """Counts and rows are equal; decayed counts to the last digits, which the library of functions decides."""
    assert found.n_users == wanted.n_users
    for name in COUNTERS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
    for name in DECAYED:
        np.testing.assert_array_equal(getattr(found, name).last_ms, getattr(wanted, name).last_ms, name)
        np.testing.assert_allclose(getattr(found, name).values, getattr(wanted, name).values, rtol=1e-13, err_msg=name)
    for user in range(USERS + 1):
        for name, column in vars(wanted.history(user)).items():
            np.testing.assert_array_equal(getattr(found.history(user), name), column, name)
        for name in ("touched", "touch_times", "touch_values", "touch_positives", "last_event_ms"):
            np.testing.assert_array_equal(getattr(found, name)(user), getattr(wanted, name)(user), name)
        for item in range(N):
            assert found.has_touched(user, item) == (item in wanted.touched(user))
    for item in range(N):
        links = [
            dict(zip(*(c.tolist() for c in state.covisitation.neighbours(item)), strict=True))
            for state in (found, wanted)
        ]
        assert links[0] == links[1]
    for segment in (0, 2):
        scores = [state.trending.scores(T0, segment) for state in (found, wanted)]
        np.testing.assert_array_equal(scores[0][0], scores[1][0])
        np.testing.assert_array_equal(scores[0][1], scores[1][1])


@given(EVENTS)
def test_after_each_event_the_state_is_the_plain_one(make_items: Callable[..., ItemTable], events: list[Event]) -> None:
    compiled, plain = both(make_items())
    for *event, moment in events:
        codes = CONTEXTS[moment].tolist()
        for state in (compiled, plain):
            state.apply(*event, state.context_values(codes))
        assert_equal(compiled, plain)


def plain_rows(state: PlainState, request: tuple[int, int, int], rows: CandidateBlock) -> np.ndarray:
    user, time_ms, moment = request
    table = rows.rows
    return plain_features(
        state,
        user,
        time_ms,
        table.item_index,
        table.score,
        table.rank,
        VECTORS,
        CONTEXTS[moment].tolist(),
        rows.sources,
    )


def block_of(request_ids: list[int], items: list[list[int]], rng: np.random.Generator) -> CandidateBlock:
    lengths = [len(each) for each in items]
    n = sum(lengths)
    ranks = np.where(rng.random((n, 2)) < 0.5, rng.integers(0, 9, (n, 2)), -1).astype(np.int32)
    scores = np.where(ranks >= 0, rng.normal(size=(n, 2)), np.nan).astype(np.float32)
    rows = CandidateTable(
        request_id=np.repeat(np.array(request_ids, dtype=np.int64), lengths),
        item_index=np.array([item for each in items for item in each], dtype=np.int64),
        score=rng.normal(size=n).astype(np.float32),
        rank=np.array([rank for length in lengths for rank in range(length)], dtype=np.int32),
        source=np.zeros(n, dtype=np.int8),
    )
    return CandidateBlock(rows, SourceScores(("tower", "trending"), scores, ranks))


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, USERS),
        st.integers(0, 320).map(lambda hours: T0 + hours * HOUR),
        st.integers(0, 4),
        st.lists(st.integers(0, N - 1), unique=True, max_size=N),
    ),
    min_size=1,
    max_size=8,
)


@given(EVENTS, REQUESTS, st.integers(1, 4))
@settings(deadline=None)
def test_features_of_blocks_are_the_plain_ones_and_those_of_single_requests(
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
    events: list[Event],
    asked: list[tuple[int, int, int, list[int]]],
    size: int,
) -> None:
    asked = sorted(asked, key=lambda request: request[1])
    ordered = sorted(events, key=lambda event: event[4])
    rng = np.random.default_rng(len(events))
    answered = [row for row, request in enumerate(asked) if request[3]]
    parts = [answered[first : first + size] for first in range(0, len(answered), size)]
    blocks = [block_of(part, [asked[row][3] for row in part], rng) for part in parts]
    compiled, plain = both(make_items())
    requests = make_requests([request[:3] for request in asked])
    made = feature_blocks(blocks, make_events(ordered), requests, compiled, VECTORS, CONTEXTS)
    single, _ = both(make_items())
    done = 0
    names = feature_schema(CONFIG, TASKS, CONTEXT, ("tower", "trending")).names
    for block in made:
        for row in np.unique(block.candidates.rows.request_id).tolist():
            user, time_ms, moment, _ = asked[row]
            while done < len(ordered) and ordered[done][4] < time_ms:
                *event, context = ordered[done]
                for state in (plain, single):
                    state.apply(*event, state.context_values(CONTEXTS[context].tolist()))
                done += 1
            chosen = block.candidates.rows.request_id == row
            part = block.candidates.take(chosen)
            wanted = plain_rows(plain, (user, time_ms, moment), part)
            for column, name in enumerate(names):
                np.testing.assert_allclose(
                    block.features[chosen, column], wanted[:, column], rtol=2e-5, atol=2e-6, err_msg=name
                )
            alone = ranking_features(
                single,
                user,
                time_ms,
                part.rows.item_index,
                part.rows.score,
                part.rows.rank,
                VECTORS,
                CONTEXTS[moment].tolist(),
                part.sources,
            )
            np.testing.assert_array_equal(block.features[chosen], alone)
    assert_equal_at_the_end(compiled, plain, ordered[done:])


def assert_equal_at_the_end(compiled: FunnelState, plain: PlainState, rest: list[Event]) -> None:
    for *event, context in rest:
        plain.apply(*event, plain.context_values(CONTEXTS[context].tolist()))
    assert_equal(compiled, plain)


def test_a_long_log_of_few_users_is_the_plain_one(make_items: Callable[..., ItemTable]) -> None:
    """Rows that outgrow their chunks, get an index, and links that are cut many times."""
    rng, n = np.random.default_rng(1), 300
    items = make_items(n)
    config = FeatureConfig(covisitation_neighbours=7, covisitation_window=4)
    compiled, plain = (kind.empty(items, config, SIGNALS, TASKS) for kind in (FunnelState, PlainState))
    for number in range(4_000):
        user, item = int(rng.integers(0, 6)), int(n * rng.random() ** 2)
        event = (user, item, int(rng.integers(0, 3)), float(np.float32(rng.random())), T0 + number * 60_000)
        compiled.apply(*event)
        plain.apply(*event)
    for user in range(6):
        np.testing.assert_array_equal(compiled.touched(user), plain.touched(user))
        np.testing.assert_array_equal(compiled.touch_values(user), plain.touch_values(user))
    for item in range(n):
        links = [
            dict(zip(*(c.tolist() for c in state.covisitation.neighbours(item)), strict=True))
            for state in (compiled, plain)
        ]
        assert links[0] == links[1]
    np.testing.assert_array_equal(compiled.positives, plain.positives)
