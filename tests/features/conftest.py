"""A tiny world: factories of catalogues, events, requests and states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import DAY_MS, EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState

SIGNALS = ("click", "rating", "impression")
TASKS = (
    Task(name="click", signals=("click", "rating"), relevance=1.0),
    Task(name="like", signals=("rating",), min_value=0.7, relevance=2.0),
)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
T0 = 10_000 * DAY_MS
Event = tuple[int, int, int, float, int] | tuple[int, int, int, float, int, int]


def build_items(n: int = 8) -> ItemTable:
    """Item i has main category i % 3; odd ones also category 3; item 7 has none; every 4th lacks a duration."""
    lists = [[] if i == 7 else [i % 3] + ([3] if i % 2 else []) for i in range(n)]
    return ItemTable(
        item_id=np.array([f"i{i}" for i in range(n)], dtype=object),
        title=np.array([f"title {i}" for i in range(n)], dtype=object),
        created_at_ms=np.array([T0 - i * DAY_MS for i in range(n)], dtype=np.int64),
        duration_s=np.array([np.nan if i % 4 == 3 else 60.0 * (i + 1) for i in range(n)], dtype=np.float32),
        category_offsets=np.concatenate([[0], np.cumsum([len(c) for c in lists])]).astype(np.int64),
        category_codes=np.array([code for codes in lists for code in codes], dtype=np.int32),
        n_categories=4,
    )


def build_events(events: Sequence[Event]) -> EventTable:
    """Rows (user, item, signal, value, time in ms, row of CONTEXTS), sorted by time here, stably."""
    rows = sorted(((*event, 0)[:6] for event in events), key=lambda event: event[4])
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    return EventTable(
        user_index=np.array(columns[0], dtype=np.int64),
        item_index=np.array(columns[1], dtype=np.int64),
        event_time_ms=np.array(columns[4], dtype=np.int64),
        signal=np.array(columns[2], dtype=np.int16),
        value=np.array(columns[3], dtype=np.float32),
        part=np.zeros(len(rows), dtype=np.int8),
        active=np.ones(len(rows), dtype=np.bool_),
        context=np.array(columns[5], dtype=np.int32),
    )


def build_requests(requests: Sequence[tuple[int, ...]]) -> RequestTable:
    """Rows (user, time in ms, row of CONTEXTS), in the order given."""
    return RequestTable(
        request_id=np.arange(len(requests), dtype=np.int64),
        user_index=np.array([request[0] for request in requests], dtype=np.int64),
        request_time_ms=np.array([request[1] for request in requests], dtype=np.int64),
        part=np.ones(len(requests), dtype=np.int8),
        context=np.array([(*request, 0)[2] for request in requests], dtype=np.int32),
    )


def build_state(
    events: Sequence[Event] = (), n_items: int = 8, context: tuple[ContextColumn, ...] = (), **config: object
) -> FunnelState:
    """A state after ``events``, applied in the order given."""
    parsed = FeatureConfig.model_validate(config)
    state = FunnelState.empty(build_items(n_items), parsed, SIGNALS, TASKS, context=context)
    for event in events:
        moment = CONTEXTS[(*event, 0)[5]].tolist()
        state.apply(*event[:5], state.context_values(moment) if context else ())
    return state


@pytest.fixture(scope="session")
def make_items() -> Callable[..., ItemTable]:
    return build_items


@pytest.fixture(scope="session")
def make_events() -> Callable[..., EventTable]:
    return build_events


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., RequestTable]:
    return build_requests


@pytest.fixture(scope="session")
def make_state() -> Callable[..., FunnelState]:
    return build_state
