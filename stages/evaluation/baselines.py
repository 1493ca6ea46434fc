"""Popularity rankings from events alone: the baselines that every stage of the funnel has to beat.

Written apart from ``stages.features``, so that a fault there cannot flatter the funnel here; the two share only the
definition of a touch (``stages.contracts.touches``).
Legend: Q requests, N items, T first touches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.contracts.ranking import ranked_table
from stages.contracts.tables import EventTable, RankedTable, RequestTable, ScoredItems
from stages.contracts.top_k import top_k
from stages.contracts.touches import first_touches

_BLOCK_REQUESTS = 512
_BLOCK_HALF_LIVES = 64  # weights inside a block stay below 2**64, far from overflow
_TABLE_ROWS = 4_000_000


class FirstTouches:
    """The first touch of each (user, item) pair, in time order.

    Args:
        events: in time order, exposures among them.
        touching_S: bool ``[S]`` by signal code, which events are touches, see ``stages.contracts.touches``.

    Attributes:
        user_index, item_index, time_ms: int64 ``[T]``, times non-decreasing.
    """

    def __init__(self, events: EventTable, touching_S: np.ndarray) -> None:
        first = np.sort(first_touches(events, touching_S))
        self.user_index: np.ndarray = events.user_index[first]
        self.item_index: np.ndarray = events.item_index[first]
        self.time_ms: np.ndarray = events.event_time_ms[first]
        order = np.argsort(self.user_index, kind="stable")
        self._items: np.ndarray = self.item_index[order]
        self._times: np.ndarray = self.time_ms[order]
        users = int(self.user_index.max(initial=-1)) + 1
        self._offsets = np.searchsorted(self.user_index[order], np.arange(users + 1))

    def touched(self, user_index: int, time_ms: int) -> np.ndarray:
        """Items that a user touched strictly before ``time_ms``, int64, oldest first."""
        if user_index >= len(self._offsets) - 1:
            return self._items[:0]
        start, end = self._offsets[user_index], self._offsets[user_index + 1]
        return self._items[start : start + np.searchsorted(self._times[start:end], time_ms, side="left")]

    def history_lengths(self, requests: RequestTable) -> np.ndarray:
        """Number of items that each request's user touched before it, int64 ``[Q]``."""
        pairs = zip(requests.user_index.tolist(), requests.request_time_ms.tolist(), strict=True)
        return np.array([len(self.touched(user, time)) for user, time in pairs], dtype=np.int64)


class _Scores:
    """Decayed counts of first touches, advanced in time order."""

    def __init__(self, touches: FirstTouches, n_items: int, half_life_ms: float | None) -> None:
        self.touches, self.half_life_ms = touches, half_life_ms
        self.values = np.zeros(n_items, dtype=np.float64)
        self._reference_ms = 0
        self._next = 0

    def rebase(self, time_ms: int) -> None:
        """Express the scores as of ``time_ms``; the ranking stays as it is."""
        self.values *= self.decay(time_ms)
        self._reference_ms = time_ms

    def decay(self, time_ms: int) -> float:
        """Weight at ``time_ms`` of a touch at the reference time."""
        if self.half_life_ms is None:
            return 1.0
        return float(np.exp2((self._reference_ms - time_ms) / self.half_life_ms))

    def advance(self, time_ms: int) -> None:
        """Count the touches strictly before ``time_ms``."""
        end = int(np.searchsorted(self.touches.time_ms, time_ms, side="left"))
        if end <= self._next:
            return
        rows = slice(self._next, end)
        weights = np.ones(end - self._next)
        if self.half_life_ms is not None:
            weights = np.exp2((self.touches.time_ms[rows] - self._reference_ms) / self.half_life_ms)
        np.add.at(self.values, self.touches.item_index[rows], weights)
        self._next = end

    def pending(self, until_ms: int) -> np.ndarray:
        """Items of the touches not yet counted that happen before ``until_ms``."""
        return self.touches.item_index[self._next : np.searchsorted(self.touches.time_ms, until_ms, side="left")]


def popularity_rankings(
    touches: FirstTouches,
    requests: RequestTable,
    available_from_ms: np.ndarray,
    k: int,
    half_life_ms: float | None = None,
) -> Iterator[RankedTable]:
    """Rank the catalogue by first touches strictly before each request.

    Items that the user has touched and items not yet available are left out; ties go to the lower item index. A touch
    counts 1, or 2 ** (-age / half-life).

    Within a block of requests, counts never fall and decay does not change the order. So only a pool of items can be
    answered: the best at the start of the block, those touched in it and those that become available in it. The cost of
    a request grows with the pool, not with the catalogue.

    Args:
        touches: first touches of all events.
        requests: sorted by time.
        available_from_ms: int64 ``[N]``, from when on each item may be recommended: its creation time, or never.
        k: items per request.
        half_life_ms: of a touch's weight; None counts all touches alike.

    Yields:
        Tables of whole requests in time order, at most about four million rows each.
    """
    scores = _Scores(touches, len(available_from_ms), half_life_ms)
    is_touched = np.zeros(len(available_from_ms), dtype=bool)
    request_ids: list[int] = []
    answers: list[ScoredItems] = []
    for block in _blocks(requests.request_time_ms, half_life_ms):
        rows = requests.take(np.arange(block.start, block.stop))
        touched = [touches.touched(int(u), int(t)) for u, t in zip(rows.user_index, rows.request_time_ms, strict=True)]
        first_ms, last_ms = int(rows.request_time_ms[0]), int(rows.request_time_ms[-1])
        scores.rebase(first_ms)
        scores.advance(first_ms)
        pool = _pool(scores, available_from_ms, first_ms, last_ms, k + max(len(items) for items in touched))
        for row, items in enumerate(touched):
            time_ms = int(rows.request_time_ms[row])
            scores.advance(time_ms)
            is_touched[items] = True
            allowed = pool[~is_touched[pool] & (available_from_ms[pool] <= time_ms)]
            is_touched[items] = False
            best = allowed[top_k(scores.values[allowed], k)]
            weights = scores.values[best] * scores.decay(time_ms)
            request_ids.append(int(rows.request_id[row]))
            answers.append(ScoredItems(best, weights.astype(np.float32)))
        if sum(map(len, answers)) >= _TABLE_ROWS - _BLOCK_REQUESTS * k:
            yield ranked_table(request_ids, answers)
            request_ids, answers = [], []
    if answers:
        yield ranked_table(request_ids, answers)


def _blocks(times: np.ndarray, half_life_ms: float | None) -> Iterator[slice]:
    start = 0
    while start < len(times):
        stop = min(start + _BLOCK_REQUESTS, len(times))
        if half_life_ms is not None:
            limit = times[start] + _BLOCK_HALF_LIVES * half_life_ms
            stop = min(stop, int(np.searchsorted(times, limit, side="right")))
        yield slice(start, stop)
        start = stop


def _pool(scores: _Scores, available_from_ms: np.ndarray, first_ms: int, last_ms: int, size: int) -> np.ndarray:
    """Return every item that a request of a block may be answered with, sorted by item index."""
    born = np.flatnonzero(available_from_ms <= first_ms)
    best = born[top_k(scores.values[born], size)]
    newborn = np.flatnonzero((available_from_ms > first_ms) & (available_from_ms <= last_ms))
    return np.unique(np.concatenate([best, newborn, scores.pending(last_ms)]))
