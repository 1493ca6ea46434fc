"""What the state says of requests, read in blocks, against a request at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import DAY_MS, EventTable, RequestTable
from stages.features import reading as reading_module
from stages.features.config import FeatureConfig, TrendingConfig, TrendsConfig
from stages.features.reading import CovisitationReading, Reading, Wanted, read_blocks
from stages.features.state import FunnelState
from tests.features.plain.reading import read_blocks as plain_blocks

T0 = 10_000 * DAY_MS
HOUR = 3_600_000
N, USERS = 8, 4
SIGNALS = ("click", "rating", "impression")
TASKS = (Task(name="click", signals=("click", "rating"), relevance=1.0),)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
CONFIG = FeatureConfig(covisitation_neighbours=3, covisitation_window=3, history_length=3)
SEGMENT = {"segment": "region", "segment_smoothing": 2.0}
WINDOWS = TrendsConfig(
    lists={
        "trending": TrendingConfig(windows_minutes=(60, 6000), weights=(1.0, 0.5), **SEGMENT),
        "trending_1h": TrendingConfig(windows_minutes=(60,), weights=(1.0,)),
        "segment_trending_1d": TrendingConfig(windows_minutes=(1440,), weights=(1.0,), **SEGMENT),
    }
)
AVAILABLE_MS = T0 + HOUR * np.random.default_rng(5).integers(-50, 150, N)

EVENTS = st.lists(
    st.tuples(
        st.integers(0, USERS - 1),
        st.integers(0, N - 1),
        st.integers(0, 2),
        st.just(1.0),
        st.integers(0, 300).map(lambda hours: T0 + hours * HOUR),
        st.integers(0, 4),
    ),
    max_size=60,
)
REQUESTS = st.lists(
    st.tuples(st.integers(0, USERS), st.integers(0, 320).map(lambda hours: T0 + hours * HOUR), st.integers(0, 4)),
    max_size=12,
)


def empty_state(items: ItemTable) -> FunnelState:
    return FunnelState.empty(items, CONFIG, SIGNALS, TASKS, 0, CONTEXT, WINDOWS)


def wanted(k: int, **others: object) -> Wanted:
    weights = np.exp(-np.arange(2.0))
    return Wanted(
        available_ms={1: AVAILABLE_MS, 2: np.full(N, T0)},
        lists_k=k,
        covisitation=CovisitationReading(weights, 2.0),
        trending=tuple(WINDOWS.lists)[::-1],
        popular_k=k,
        **others,  # type: ignore[arg-type]
    )


def assert_same(found: list[Reading], expected: list[Reading]) -> None:
    def joined(blocks: list[Reading], read: Callable[[Reading], np.ndarray]) -> list:
        return [value for block in blocks for value in read(block).tolist()]

    columns: list[Callable[[Reading], np.ndarray]] = [
        lambda block: block.rows,
        lambda block: block.lengths,
        lambda block: np.diff(block.seen_offsets),
        lambda block: block.seen,
        *(lambda block, name=name: block.inputs.named()[name] for name in ("history_items", "history_signals")),
        *(lambda block, name=name: block.inputs.named()[name] for name in ("history_ages", "user", "context")),
    ]
    for name in ("covisitation", *WINDOWS.lists):
        columns += [
            lambda block, name=name: block.lists[name].lengths,
            lambda block, name=name: block.lists[name].ids,
            lambda block, name=name: block.lists[name].scores,
        ]
    columns += [lambda block: block.popular.lengths, lambda block: block.popular.ids]
    for read in columns:
        assert joined(found, read) == joined(expected, read)
    scores = [joined(blocks, lambda block: block.popular.scores) for blocks in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


@given(EVENTS, REQUESTS, st.integers(1, 5), st.integers(1, 9), st.booleans(), st.sampled_from([None, 0, 1, -1]))
@settings(deadline=None)
def test_blocks_hold_what_single_requests_read(
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
    events: list[tuple],
    asked: list[tuple],
    size: int,
    k: int,
    later_part: bool,
    half_life: int | None,
) -> None:
    table = make_requests(sorted(asked, key=lambda request: request[1]))
    if later_part:
        table = RequestTable(**{**vars(table), "part": np.arange(len(table), dtype=np.int8) % 2 + np.int8(1)})
    log, (one, other) = make_events(events), (empty_state(make_items()) for _ in range(2))
    chosen = np.arange(len(table)) % 3 != 1
    asks = wanted(k, popular_half_life=half_life)
    found = list(read_blocks(log, table, one, asks, size, CONTEXTS, chosen))
    expected = list(plain_blocks(log, table, other, asks, size, CONTEXTS, chosen))
    assert [len(block) for block in found] == [len(block) for block in expected]
    assert_same(found, expected)
    for user in range(USERS):
        np.testing.assert_array_equal(one.touched(user), other.touched(user))


def log_of_one_user(make_events: Callable[..., EventTable]) -> EventTable:
    return make_events([(0, item, 0, 1.0, T0 + item * HOUR) for item in range(N)])


def test_a_block_ends_early_where_its_users_have_seen_very_much(
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, table = log_of_one_user(make_events), make_requests([(0, T0 + hour * HOUR) for hour in range(N + 1)])
    expected = list(read_blocks(log, table, empty_state(make_items()), wanted(3), 100, CONTEXTS))
    monkeypatch.setattr(reading_module, "_SEEN", 3)
    found = list(read_blocks(log, table, empty_state(make_items()), wanted(3), 100, CONTEXTS))
    assert [len(block) for block in expected] == [N + 1]
    assert len(found) > 3
    assert_same(found, expected)


def test_generators_without_a_compiled_reader_see_the_state_at_each_request(
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
) -> None:
    log, table = log_of_one_user(make_events), make_requests([(0, T0 + hour * HOUR) for hour in range(N + 1)])
    visited: list[tuple[int, int]] = []
    visit = wanted(3, visit=lambda row, state: visited.append((row, len(state.touched(0)))))
    found = list(read_blocks(log, table, empty_state(make_items()), visit, 4, CONTEXTS))
    assert visited == [(row, row) for row in range(N + 1)]
    assert_same(found, list(read_blocks(log, table, empty_state(make_items()), wanted(3), 4, CONTEXTS)))


def test_requests_of_an_unknown_part_or_out_of_order_are_refused(
    make_items: Callable[..., ItemTable],
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
) -> None:
    log, table = log_of_one_user(make_events), make_requests([(0, T0 + HOUR), (0, T0)])
    with pytest.raises(DataError, match="sorted by request_time_ms"):
        list(read_blocks(log, table, empty_state(make_items()), wanted(3), 4, CONTEXTS))
    only = Wanted(available_ms={2: AVAILABLE_MS})
    with pytest.raises(DataError, match=r"part = 1, allowed are \[2\]"):
        list(read_blocks(log, table.take(np.array([1])), empty_state(make_items()), only, 4, CONTEXTS))
