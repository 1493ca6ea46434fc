"""A made log with skewed users and items, and candidates for requests after it.

Shapes: R events, N items, U users, Q requests, n candidates of a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.snapshot import ItemTable, Task
from stages.contracts.tables import DAY_MS, PART_CANDIDATE, PART_EVALUATION, CandidateTable, EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState

START_MS, DAYS = 1_735_689_600_000, 30
EXPOSED_SHARE = 0.7
"""Share of exposures among the events of a log that has them."""
EVENTS_A_USER, EVENTS_AN_ITEM = 50, 50
CATEGORIES, DIMENSION = 20, 64

SIGNALS = ("impression", "click", "like", "watch")
TASKS = (
    Task(name="click", signals=("click",), relevance=1.0),
    Task(name="like", signals=("like",)),
    Task(name="complete", signals=("watch",), min_value=0.8),
)
CONTEXTS = np.zeros((1, 0), dtype=np.int32)
"""The log has no context columns."""


@dataclass(frozen=True)
class MadeLog:
    """A log and its catalogue.

    Attributes:
        items: N items that are there from the start, with durations and one or two categories each.
        n_users: U.
        events: R events in time order.
    """

    items: ItemTable
    n_users: int
    events: EventTable

    @property
    def end_ms(self) -> int:
        """The time just after the last event, int ms UTC."""
        return int(self.events.event_time_ms[-1]) + 1

    def state(self, config: FeatureConfig | None = None) -> FunnelState:
        """Return the state before any event; the default configuration of features, unless one is given."""
        return FunnelState.empty(self.items, config or FeatureConfig(), SIGNALS, TASKS, self.n_users)

    def requests(self, number: int, times_ms: np.ndarray | int) -> RequestTable:
        """Return evaluation requests of users that are drawn as those of the events are.

        Args:
            number: Q.
            times_ms: int64 ``[Q]`` in order, or one time for all.
        """
        return RequestTable(
            request_id=np.arange(number, dtype=np.int64),
            user_index=_skewed(np.random.default_rng(3), self.n_users, number),
            request_time_ms=np.broadcast_to(np.asarray(times_ms, dtype=np.int64), number).copy(),
            part=np.full(number, PART_EVALUATION, dtype=np.int8),
            context=np.zeros(number, dtype=np.int32),
        )

    def candidates(self, requests: RequestTable, each: int, requests_a_block: int) -> Iterator[CandidateBlock]:
        """Yield ``each`` different items a request with falling scores, in blocks of whole requests.

        Raises:
            ValueError: if there are fewer items than candidates.
        """
        if each > len(self.items):
            raise ValueError(f"candidates = {each}: allowed is at most the number of items, {len(self.items)}")
        rng = np.random.default_rng(4)
        for start in range(0, len(requests), requests_a_block):
            rows = requests.request_id[start : start + requests_a_block]
            items = np.concatenate([rng.choice(len(self.items), each, replace=False) for _ in rows])
            ranks = np.tile(np.arange(each), len(rows))
            columns = {
                "request_id": np.repeat(rows, each),
                "item_index": items,
                "score": 1.0 - ranks / each,
                "rank": ranks,
                "source": np.zeros(len(items)),
            }
            typed: dict[str, Any] = {name: columns[name].astype(kind) for name, kind in CandidateTable.TYPES.items()}
            yield CandidateBlock(CandidateTable(**typed))

    def vectors(self) -> np.ndarray:
        """Return float32 ``[N, D]`` item vectors of length 1."""
        drawn = np.random.default_rng(5).standard_normal((len(self.items), DIMENSION), dtype=np.float32)
        unit: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit


def made_log(n_events: int, exposures: bool) -> MadeLog:
    """Return a log; users and items grow with the events.

    Args:
        n_events: R, at least 1.
        exposures: whether most of the events are exposures; else every event is a touch.
    """
    rng = np.random.default_rng(1)
    n_users, n_items = max(10, n_events // EVENTS_A_USER), max(400, n_events // EVENTS_AN_ITEM)
    share = EXPOSED_SHARE if exposures else 0.0
    events = EventTable(
        user_index=_skewed(rng, n_users, n_events),
        item_index=_skewed(rng, n_items, n_events),
        event_time_ms=np.sort(rng.integers(START_MS, START_MS + DAYS * DAY_MS, n_events)),
        signal=rng.choice(len(SIGNALS), n_events, p=[share, *(np.array([0.6, 0.15, 0.25]) * (1 - share))]).astype(
            np.int16
        ),
        value=rng.random(n_events, dtype=np.float32),
        part=np.full(n_events, PART_CANDIDATE, dtype=np.int8),
        active=np.ones(n_events, dtype=bool),
        context=np.zeros(n_events, dtype=np.int32),
    )
    return MadeLog(_items(n_items), n_users, events)


def _items(n_items: int) -> ItemTable:
    rng = np.random.default_rng(2)
    second = rng.random(n_items) < 0.2
    main = rng.integers(0, CATEGORIES, n_items)
    offsets = np.concatenate([[0], np.cumsum(1 + second)])
    codes = np.zeros(offsets[-1], dtype=np.int32)
    codes[offsets[:-1]] = main
    codes[offsets[1:][second] - 1] = (main[second] + 1 + rng.integers(0, CATEGORIES - 1, second.sum())) % CATEGORIES
    names = np.array([f"i{number}" for number in range(n_items)], dtype=object)
    return ItemTable(
        item_id=names,
        title=names,
        created_at_ms=np.full(n_items, START_MS, dtype=np.int64),
        duration_s=np.exp(rng.normal(np.log(300.0), 0.8, n_items)).astype(np.float32),
        category_offsets=offsets.astype(np.int64),
        category_codes=codes,
        n_categories=CATEGORIES,
    )


def _skewed(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Draw int64 rows below n by Zipf's law with exponent 1, after the ten most frequent ones."""
    weights = np.cumsum(1.0 / (np.arange(n) + 10.0))
    rows: np.ndarray = np.searchsorted(weights, rng.random(size) * weights[-1], side="right").clip(0, n - 1)
    return rows.astype(np.int64)
