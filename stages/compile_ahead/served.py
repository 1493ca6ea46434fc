"""A small made-up log, and all that a server calls.

Shapes: N items, E events, Q requests.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stages.candidate.generators.pools import Pools
from stages.contracts.item_lists import ItemLists
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import DAY_MS, PART_RANKER, EventTable, RequestTable
from stages.features.config import FeatureConfig, TrendingConfig, TrendsConfig
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState

SIGNALS = ("click",)
TASKS = (Task(name="click", signals=SIGNALS, relevance=1.0),)
CONTEXT = (ContextColumn(name="device", values=("phone", "desktop")),)
TRENDS = TrendsConfig(lists={"trending": TrendingConfig(segment="device")})
N_USERS, N_ITEMS, N_EVENTS, N_REQUESTS = 3, 8, 16, 4


class SmallWorld:
    """A log of a few events, and requests that come after them.

    Attributes:
        items, events, requests, contexts: as in a snapshot; the last request's user has no history.
        available_ms: int64 ``[N]``.
        vectors: float32 ``[N, 4]``.
    """

    def __init__(self) -> None:
        numbers = np.arange(N_EVENTS)
        names = np.array([f"i{number}" for number in range(N_ITEMS)], dtype=object)
        self.items = ItemTable(
            item_id=names,
            title=names,
            created_at_ms=np.zeros(N_ITEMS, dtype=np.int64),
            duration_s=np.ones(N_ITEMS, dtype=np.float32),
            category_offsets=np.arange(N_ITEMS + 1),
            category_codes=np.zeros(N_ITEMS, dtype=np.int32),
            n_categories=1,
        )
        self.events = EventTable(
            user_index=numbers % N_USERS,
            item_index=numbers % (N_ITEMS - 1),
            event_time_ms=numbers * 1000,
            signal=np.zeros(N_EVENTS, dtype=np.int16),
            value=np.ones(N_EVENTS, dtype=np.float32),
            part=np.zeros(N_EVENTS, dtype=np.int8),
            active=np.ones(N_EVENTS, dtype=np.bool_),
            context=np.ones(N_EVENTS, dtype=np.int32),
        )
        self.requests = RequestTable(
            request_id=np.arange(N_REQUESTS),
            user_index=np.arange(N_REQUESTS),
            request_time_ms=np.full(N_REQUESTS, N_EVENTS * 1000, dtype=np.int64),
            part=np.full(N_REQUESTS, PART_RANKER, dtype=np.int8),
            context=np.ones(N_REQUESTS, dtype=np.int32),
        )
        self.contexts = np.arange(2, dtype=np.int32)[:, None]
        self.available_ms = self.items.available_from_ms(PART_RANKER)
        self.vectors = np.ones((N_ITEMS, 4), dtype=np.float32)

    def state(self) -> FunnelState:
        """Return a state before any event."""
        return FunnelState.empty(self.items, FeatureConfig(), SIGNALS, TASKS, N_USERS, CONTEXT, TRENDS)


@cache
def compile_served() -> None:
    """Compile all that a server calls, or load it from the cache; later calls in this process do nothing.

    The state is one of its own, which a release's state has nothing to do with but the types of its arrays.
    """
    world = SmallWorld()
    state = world.state()
    with TemporaryDirectory() as directory:
        state.save(Path(directory))
        given = world.items, state.config, SIGNALS, TASKS, CONTEXT, TRENDS
        state = FunnelState.load(Path(directory), *given)
    state.apply(0, 0, 0, 1.0, 0, state.context_values((1,)))
    state.has_touched(0, 0)
    state.covisitation.neighbours(0)
    if state.trending is not None:
        state.trending.scores(DAY_MS, 1)
    item = np.zeros(1, dtype=np.int64)
    Pools.of([ItemLists(np.arange(2), item, np.ones(1, np.float32))], item)
    ranking_features(state, 0, DAY_MS, item, np.ones(1, np.float32), np.zeros(1, np.int32), world.vectors, (1,))
