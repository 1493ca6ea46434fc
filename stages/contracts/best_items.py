"""The best items of many requests at a time, compiled: best first, and of equal scores the lower item first.

The results are those of ``top_k`` request by request. Nothing here allocates an array of N for each request.

Shapes: B requests, M items that are scored for all of them, N items, m entries of all pools.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import compiled
from stages.contracts.errors import DataError
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists

Pools = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Offsets int64 ``[B + 1]``, items int64 ``[m]`` and scores float32 ``[m]`` of B requests, in any order."""


def allowed_entries(pools: Pools, exclusions: Exclusions, positive: bool = False) -> Pools:
    """Return the entries that the requests allow; an item that is there twice keeps its best score.

    Args:
        pools: items below 0 stand for nothing.
        exclusions: of the B requests.
        positive: also drop scores that are not above 0.

    Raises:
        DataError: if a score is NaN; where ``positive`` is set, NaN is dropped.
    """
    offsets, ids, scores = pools
    if not positive:
        _refuse_nan(scores)
    parts = exclusions.seen_offsets, exclusions.seen, exclusions.time_ms, exclusions.period, exclusions.available_ms
    kept_offsets = np.zeros(len(offsets), dtype=np.int64)
    kept_ids, kept_scores = np.empty(len(ids), dtype=np.int64), np.empty(len(ids), dtype=np.float32)
    _allowed_entries(offsets, ids, scores, *parts, positive, kept_offsets, kept_ids, kept_scores)
    n_kept = int(kept_offsets[-1])
    return kept_offsets, kept_ids[:n_kept], kept_scores[:n_kept]


def best_entries(pools: Pools, k: int) -> ItemLists:
    """Return the best ``k`` entries of each pool; its items are distinct.

    Raises:
        DataError: if k is negative, or a score is NaN.
    """
    offsets, ids, scores = pools
    _refuse_nan(scores)
    room = np.minimum(np.diff(offsets), _checked(k))
    return _lists(len(room), int(room.sum()), lambda out: _best_entries(offsets, ids, scores, k, *out))


def best_scored(scores_BM: np.ndarray, ids_M: np.ndarray, exclusions: Exclusions, k: int) -> ItemLists:
    """Return the best ``k`` allowed items of each request by a matrix of scores.

    Args:
        scores_BM: float32.
        ids_M: int64 distinct items.
        exclusions: of the B requests.
        k: items of a list, at most.

    Raises:
        DataError: if k is negative, or a score is NaN.
    """
    _refuse_nan(scores_BM)
    parts = exclusions.seen_offsets, exclusions.seen, exclusions.time_ms, exclusions.period, exclusions.available_ms
    n_rows = len(scores_BM)
    room = n_rows * min(_checked(k), len(ids_M))
    return _lists(n_rows, room, lambda out: _best_scored(scores_BM, ids_M, *parts, k, *out))


def _lists(n_rows: int, room: int, fill) -> ItemLists:  # type: ignore[no-untyped-def]
    offsets = np.zeros(n_rows + 1, dtype=np.int64)
    ids, scores = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.float32)
    fill((offsets, ids, scores))
    size = int(offsets[-1])
    return ItemLists(offsets, ids[:size], scores[:size])


def _checked(k: int) -> int:
    if k < 0:
        raise DataError(f"top-k: k = {k}, allowed is 0 or more")
    return k


def _refuse_nan(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise DataError("top-k: a score is NaN, allowed are numbers and infinities")


@compiled
def _worse(score: float, item: int, other_score: float, other_item: int) -> bool:
    return score < other_score or (score == other_score and item > other_item)


@compiled
def _sift_down(scores: np.ndarray, ids: np.ndarray, start: int, size: int) -> None:
    """Restore the heap whose root is its worst entry, from ``start`` down."""
    score, item, place = scores[start], ids[start], start
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _worse(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not _worse(scores[child], ids[child], score, item):
            break
        scores[place], ids[place] = scores[child], ids[child]
        place = child
    scores[place], ids[place] = score, item


@compiled
def _offer(scores: np.ndarray, ids: np.ndarray, size: int, score: float, item: int) -> int:
    """Add an entry to a heap with room for ``len(ids)``, in place of its worst if it is full; return the new size."""
    if size == len(ids):
        if size and _worse(scores[0], ids[0], score, item):
            scores[0], ids[0] = score, item
            _sift_down(scores, ids, 0, size)
        return size
    place = size
    while place:
        parent = (place - 1) // 2
        if not _worse(score, item, scores[parent], ids[parent]):
            break
        scores[place], ids[place] = scores[parent], ids[parent]
        place = parent
    scores[place], ids[place] = score, item
    return size + 1


@compiled
def _sort(scores: np.ndarray, ids: np.ndarray, size: int) -> None:
    """Turn the heap into a list, best first."""
    for last in range(size - 1, 0, -1):
        score, item = scores[0], ids[0]
        scores[0], ids[0] = scores[last], ids[last]
        scores[last], ids[last] = score, item
        _sift_down(scores, ids, 0, last)


@compiled
def _allowed_entries(
    offsets: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    time_ms: np.ndarray,
    period: np.ndarray,
    available_PN: np.ndarray,
    positive: bool,
    kept_offsets: np.ndarray,
    kept_ids: np.ndarray,
    kept_scores: np.ndarray,
) -> None:
    seen_in = np.full(available_PN.shape[1], -1, dtype=np.int32)  # the last request that has seen the item
    kept_in = np.full(available_PN.shape[1], -1, dtype=np.int32)
    place = np.empty(available_PN.shape[1], dtype=np.int64)
    size = 0
    for row in range(len(offsets) - 1):
        for entry in range(seen_offsets[row], seen_offsets[row + 1]):
            seen_in[seen[entry]] = row
        for entry in range(offsets[row], offsets[row + 1]):
            item, score = ids[entry], scores[entry]
            if item < 0 or (positive and not score > 0):
                continue
            if kept_in[item] == row:
                kept_scores[place[item]] = max(kept_scores[place[item]], score)
            elif seen_in[item] != row and available_PN[period[row], item] <= time_ms[row]:
                kept_in[item], place[item] = row, size
                kept_ids[size], kept_scores[size] = item, score
                size += 1
        kept_offsets[row + 1] = size


@compiled
def _best_entries(
    offsets: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
    k: int,
    best_offsets: np.ndarray,
    best_ids: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    for row in range(len(offsets) - 1):
        start = best_offsets[row]
        stop = start + min(k, offsets[row + 1] - offsets[row])
        heap_scores, heap_ids, size = best_scores[start:stop], best_ids[start:stop], 0
        for entry in range(offsets[row], offsets[row + 1]):
            size = _offer(heap_scores, heap_ids, size, scores[entry], ids[entry])
        _sort(heap_scores, heap_ids, size)
        best_offsets[row + 1] = start + size


@compiled
def _best_scored(
    scores_BM: np.ndarray,
    ids_M: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    time_ms: np.ndarray,
    period: np.ndarray,
    available_PN: np.ndarray,
    k: int,
    best_offsets: np.ndarray,
    best_ids: np.ndarray,
    best_scores: np.ndarray,
) -> None:
    seen_in = np.full(available_PN.shape[1], -1, dtype=np.int32)
    room = min(k, len(ids_M))
    for row in range(len(scores_BM)):
        for entry in range(seen_offsets[row], seen_offsets[row + 1]):
            seen_in[seen[entry]] = row
        start, size = best_offsets[row], 0
        heap_scores, heap_ids = best_scores[start : start + room], best_ids[start : start + room]
        for column in range(len(ids_M) if room else 0):
            score, item = scores_BM[row, column], ids_M[column]
            if size == room and not _worse(heap_scores[0], heap_ids[0], score, item):
                continue
            if seen_in[item] != row and available_PN[period[row], item] <= time_ms[row]:
                size = _offer(heap_scores, heap_ids, size, score, item)
        _sort(heap_scores, heap_ids, size)
        best_offsets[row + 1] = start + size
