"""Popularity rankings from events alone: the baselines that every stage of the funnel has to beat.

Written apart from ``stages.features``, so that a fault there cannot flatter the funnel here; the two share only the
definition of a touch (``stages.contracts.touches``).
Legend: Q requests, N items, T first touches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.contracts.compiled import compiled
from stages.contracts.ragged import places_in_rows
from stages.contracts.tables import EventTable, RankedTable, RequestTable
from stages.contracts.top_k import top_k
from stages.contracts.touches import TouchedBefore, first_touches

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
        self._before = TouchedBefore(self.user_index, self.item_index, self.time_ms)

    def touched(self, user_index: int, time_ms: int) -> np.ndarray:
        """Items that a user touched strictly before ``time_ms``, int64, oldest first."""
        return self._before.items(np.array([user_index]), np.array([time_ms]))[1]

    def seen(self, requests: RequestTable) -> tuple[np.ndarray, np.ndarray]:
        """Items that each request's user touched before it: offsets int64 ``[Q + 1]`` and int64 items."""
        return self._before.items(requests.user_index, requests.request_time_ms)

    def history_lengths(self, requests: RequestTable) -> np.ndarray:
        """Number of items that each request's user touched before it, int64 ``[Q]``."""
        starts, ends = self._before.ends(requests.user_index, requests.request_time_ms)
        lengths: np.ndarray = ends - starts
        return lengths


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

    def decay(self, time_ms: np.ndarray | int) -> np.ndarray:
        """Weight at each time of a touch at the reference time, float64."""
        if self.half_life_ms is None:
            return np.ones(np.shape(time_ms))
        weights: np.ndarray = np.exp2((self._reference_ms - np.asarray(time_ms)) / self.half_life_ms)
        return weights

    def advance(self, time_ms: int) -> None:
        """Count the touches strictly before ``time_ms``."""
        items, weights = self.pending(time_ms)
        np.add.at(self.values, items, weights)
        self._next += len(items)

    def pending(self, until_ms: int) -> tuple[np.ndarray, np.ndarray]:
        """Items of the touches not yet counted that happen before ``until_ms``, and what each adds to its item."""
        end = max(int(np.searchsorted(self.touches.time_ms, until_ms, side="left")), self._next)
        rows = slice(self._next, end)
        weights = np.ones(end - self._next)
        if self.half_life_ms is not None:
            weights = np.exp2((self.touches.time_ms[rows] - self._reference_ms) / self.half_life_ms)
        return self.touches.item_index[rows], weights

    def rank(self, requests: RequestTable, available_from_ms: np.ndarray, pool: np.ndarray, k: int) -> RankedTable:
        """Answer requests in the order of time from a pool of items, and count the touches before the last of them.

        Args:
            requests: none is before a touch that is counted already.
            available_from_ms: int64 ``[N]``.
            pool: int64 items; all that can be answered.
            k: items per request.
        """
        times = requests.request_time_ms
        items, weights = self.pending(int(times[-1]))
        ends = np.searchsorted(self.touches.time_ms, times, side="left") - self._next
        pool = pool[np.lexsort((pool, -self.values[pool]))]
        offsets, room = np.zeros(len(requests) + 1, dtype=np.int64), len(requests) * min(k, len(pool))
        ids, scores = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.float32)
        given = (*self.touches.seen(requests), times, available_from_ms, self.decay(times))
        _rank_block(self.values, pool, items, weights, ends, *given, k, offsets, ids, scores)
        self._next += len(items)
        lengths = np.diff(offsets)
        return RankedTable(
            request_id=np.repeat(requests.request_id, lengths),
            item_index=ids[: offsets[-1]].copy(),
            score=scores[: offsets[-1]].copy(),
            rank=places_in_rows(lengths).astype(np.int32),
        )


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
    answers: list[RankedTable] = []
    for block in _blocks(requests.request_time_ms, half_life_ms):
        rows = requests.take(np.arange(block.start, block.stop))
        first_ms, last_ms = int(rows.request_time_ms[0]), int(rows.request_time_ms[-1])
        scores.rebase(first_ms)
        scores.advance(first_ms)
        most_seen = int(touches.history_lengths(rows).max())
        pool = _pool(scores, available_from_ms, first_ms, last_ms, k + most_seen)
        answers.append(scores.rank(rows, available_from_ms, pool, k))
        if sum(map(len, answers)) >= _TABLE_ROWS - _BLOCK_REQUESTS * k:
            yield _joined(answers)
            answers = []
    if answers:
        yield _joined(answers)


def _joined(tables: list[RankedTable]) -> RankedTable:
    return RankedTable(
        **{name: np.concatenate([getattr(table, name) for table in tables]) for name in RankedTable.TYPES}
    )


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
    return np.unique(np.concatenate([best, newborn, scores.pending(last_ms)[0]]))


@compiled
def _rank_block(
    values: np.ndarray,
    pool: np.ndarray,
    items: np.ndarray,
    weights: np.ndarray,
    ends: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    times: np.ndarray,
    available_from_ms: np.ndarray,
    decays: np.ndarray,
    k: int,
    offsets: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Walk down the pool, which stays sorted by value and item while touches are counted, once for each request."""
    seen_in = np.full(len(values), -1, dtype=np.int32)  # the last request whose user has touched the item
    place = np.empty(len(values), dtype=np.int64)
    for position in range(len(pool)):
        place[pool[position]] = position
    counted = 0
    for row in range(len(times)):
        while counted < ends[row]:
            values[items[counted]] += weights[counted]
            _rise(values, pool, place, items[counted])
            counted += 1
        for entry in range(seen_offsets[row], seen_offsets[row + 1]):
            seen_in[seen[entry]] = row
        size, last = offsets[row], offsets[row] + k
        for item in pool:
            if size == last:
                break
            if seen_in[item] != row and available_from_ms[item] <= times[row]:
                ids[size], scores[size] = item, values[item] * decays[row]
                size += 1
        offsets[row + 1] = size


@compiled
def _rise(values: np.ndarray, pool: np.ndarray, place: np.ndarray, item: int) -> None:
    """Move an item up to its place in the pool after its value has grown."""
    position, value = place[item], values[item]
    while position > 0:
        above = pool[position - 1]
        if values[above] > value or (values[above] == value and above < item):
            break
        pool[position], place[above] = above, position
        position -= 1
    pool[position], place[item] = item, position
