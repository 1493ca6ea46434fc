"""The best items of many requests at a time, compiled: best first, and of equal scores the lower item first.

The results are those of ``top_k`` request by request. Nothing here allocates an array of N for each request.

A score and its item are compared as one int64 key: the bits of the score in an order that falls, then the item.

Shapes: B requests, M items that are scored for all of them, N items, m entries of all pools.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stages.contracts.compiled import compiled
from stages.contracts.errors import DataError
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.top_k_kernels import kth_smallest

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
    bits, widest = _bits(scores), int(np.diff(offsets).max(initial=0))
    return _lists(len(room), int(room.sum()), lambda out: _best_entries(offsets, ids, bits, k, widest, *out))


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
    n_rows, bits_BM = len(scores_BM), _bits(scores_BM)
    room = n_rows * min(_checked(k), len(ids_M))
    return _lists(n_rows, room, lambda out: _best_scored(bits_BM, ids_M, *parts, k, *out))


def _lists(n_rows: int, room: int, fill: Callable[[Pools], None]) -> ItemLists:
    """Return the lists that ``fill`` writes: offsets, items and the bits of scores."""
    offsets = np.zeros(n_rows + 1, dtype=np.int64)
    ids, scores = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.float32)
    fill((offsets, ids, scores.view(np.int32)))
    size = int(offsets[-1])
    return ItemLists(offsets, ids[:size], scores[:size])


def _bits(scores: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(scores, dtype=np.float32).view(np.int32)


def _checked(k: int) -> int:
    if k < 0:
        raise DataError(f"top-k: k = {k}, allowed is 0 or more")
    return k


def _refuse_nan(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise DataError("top-k: a score is NaN, allowed are numbers and infinities")


@compiled
def _key(bits: int, item: int) -> int:
    """Return a number that is lower for a better score, and of equal scores for the lower item."""
    return (~_rising(bits) << 32) | item


@compiled
def _rising(bits: int) -> int:
    """Return a number that is higher for a higher score; the same for both zeros."""
    wide = np.int64(bits)
    if wide == -0x80000000:
        wide = np.int64(0)
    return int(wide ^ ((wide >> 31) & 0x7FFFFFFF))


@compiled
def _item_of(key: int) -> int:
    return key & 0xFFFFFFFF


@compiled
def _bits_of(key: int) -> int:
    rising = ~(key >> 32)
    return rising ^ ((rising >> 31) & 0x7FFFFFFF)


@compiled
def _write(keys: np.ndarray, size: int, k: int, ids: np.ndarray, bits: np.ndarray, start: int) -> int:
    """Write the best ``k`` of the first ``size`` keys in their order; return where they end."""
    if size > k:
        if k > 0:
            kth_smallest(keys, size, k - 1)
        size = k
    keys[:size].sort()
    for place in range(size):
        ids[start + place] = _item_of(keys[place])
        bits[start + place] = _bits_of(keys[place])
    return start + size


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
    bits: np.ndarray,
    k: int,
    widest: int,
    best_offsets: np.ndarray,
    best_ids: np.ndarray,
    best_bits: np.ndarray,
) -> None:
    keys = np.empty(widest, dtype=np.int64)
    for row in range(len(offsets) - 1):
        size = offsets[row + 1] - offsets[row]
        for place in range(size):
            keys[place] = _key(bits[offsets[row] + place], ids[offsets[row] + place])
        best_offsets[row + 1] = _write(keys, size, k, best_ids, best_bits, best_offsets[row])


@compiled
def _best_scored(
    bits_BM: np.ndarray,
    ids_M: np.ndarray,
    seen_offsets: np.ndarray,
    seen: np.ndarray,
    time_ms: np.ndarray,
    period: np.ndarray,
    available_PN: np.ndarray,
    k: int,
    best_offsets: np.ndarray,
    best_ids: np.ndarray,
    best_bits: np.ndarray,
) -> None:
    seen_in = np.full(available_PN.shape[1], -1, dtype=np.int32)
    kept = min(k, len(ids_M))
    keys = np.empty(4 * kept + 64, dtype=np.int64)  # the best so far, and room for those to compare them with
    for row in range(len(bits_BM)):
        for entry in range(seen_offsets[row], seen_offsets[row + 1]):
            seen_in[seen[entry]] = row
        size, lowest = 0, np.int64(-0x80000000)  # below the lowest of the best so far is none of the best
        for column in range(len(ids_M) if kept else 0):
            if _rising(bits_BM[row, column]) < lowest:
                continue
            item = ids_M[column]
            if seen_in[item] == row or available_PN[period[row], item] > time_ms[row]:
                continue
            keys[size] = _key(bits_BM[row, column], item)
            size += 1
            if size == len(keys):
                kth_smallest(keys, size, kept - 1)
                size, lowest = kept, ~(keys[kept - 1] >> 32)
        best_offsets[row + 1] = _write(keys, size, kept, best_ids, best_bits, best_offsets[row])
