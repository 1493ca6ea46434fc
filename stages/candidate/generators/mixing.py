"""Mixes the lists of all generators for a block of requests, compiled; ``blend`` says how one request is mixed.

Shapes: B requests, N items, S generators, n chosen items of all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.candidate.generators.table import TOWER
from stages.contracts.compiled import compiled
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.sources import SourceScores, source_code

RRF_K = 60
"""The constant of the paper: the larger it is, the less the first ranks weigh against the next ones."""

_UNRANKED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class MixedLists:
    """Candidates of B requests with their origin.

    Attributes:
        items: each request's items by fused score.
        source: int8 ``[n]``, see ``Blended.source``.
        sources: score and rank of each in every generator's list, ``[n, S]``; None where there is one generator.
    """

    items: ItemLists
    source: np.ndarray
    sources: SourceScores | None = None


@dataclass(frozen=True)
class Columns:
    """The lists of S generators as flat arrays.

    Attributes:
        offsets: int64 ``[S, B + 1]``, into ``ids`` and ``scores``.
        ids, scores: int64 and float32, one generator after the other.
    """

    offsets: np.ndarray
    ids: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[ItemLists]) -> Columns:
        """Join the lists, at least one generator's."""
        starts = row_offsets([len(each.ids) for each in lists])
        return cls(
            offsets=np.stack([each.offsets + start for each, start in zip(lists, starts[:-1], strict=True)]),
            ids=np.concatenate([each.ids for each in lists]),
            scores=np.concatenate([each.scores for each in lists]),
        )


def mixed_lists(lists: Mapping[str, ItemLists], quotas: Mapping[str, int], k: int, n_items: int) -> MixedLists:
    """Choose by quotas and order by fused rank, see the module ``blend``.

    Args:
        lists: of every generator, in the order of the columns of ``SourceScores``.
        quotas: items of each, by name.
        k: ``candidate_k``.
        n_items: N.
    """
    names = tuple(lists)
    columns, quotas_S = Columns.of(list(lists.values())), np.array([quotas[name] for name in names], dtype=np.int64)
    shares_S = quotas_S / k
    codes_S = np.array([source_code(name) for name in names], dtype=np.int8)
    room = np.minimum(np.diff(columns.offsets, axis=1).sum(axis=0), max(k, int(quotas_S.sum())))
    size = int(room.sum())
    offsets, ids, source = row_offsets(room * 0), np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int8)
    fused = np.empty(size, dtype=np.float64)
    scores, ranks = np.empty((size, len(names)), dtype=np.float32), np.empty((size, len(names)), dtype=np.int32)
    given = columns.offsets, columns.ids, columns.scores, quotas_S, shares_S, codes_S, names.index(TOWER)
    _mix(*given, k, n_items, offsets, ids, fused, source, scores, ranks)
    used = slice(int(offsets[-1]))
    return MixedLists(
        items=ItemLists(offsets, ids[used], fused[used].astype(np.float32)),
        source=source[used],
        sources=SourceScores(names, scores[used], ranks[used]),
    )


def joined_lists(lists: Sequence[ItemLists], popular: ItemLists, k: int, n_items: int) -> ItemLists:
    """Return the answers to requests without history, see ``Blend.for_newcomer``.

    Args:
        lists: of the generators that answer such requests, in their order.
        popular: the answers where none of them has an item.
        k: items of an answer, at most.
        n_items: N.
    """
    if not any(len(each.ids) for each in lists):
        return popular
    columns = Columns.of([*lists, popular])
    room = np.maximum(np.minimum(np.diff(columns.offsets, axis=1).sum(axis=0), k), popular.lengths)
    offsets = row_offsets(room * 0)
    ids, scores = np.empty(int(room.sum()), dtype=np.int64), np.empty(int(room.sum()), dtype=np.float32)
    _join(columns.offsets, columns.ids, columns.scores, k, n_items, offsets, ids, scores)
    used = slice(int(offsets[-1]))
    return ItemLists(offsets, ids[used], scores[used])


@compiled
def _comes_before(fused: float, rank: int, item: int, other_fused: float, other_rank: int, other_item: int) -> bool:
    if fused != other_fused:
        return fused > other_fused
    if rank != other_rank:
        return rank < other_rank
    return item < other_item


@compiled
def _sift(order: np.ndarray, start: int, size: int, fused: np.ndarray, best: np.ndarray, ids: np.ndarray) -> None:
    """Restore the heap of positions whose root comes last, from ``start`` down."""
    place, moved = start, order[start]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size:
            left, right = order[child], order[child + 1]
            if _comes_before(fused[left], best[left], ids[left], fused[right], best[right], ids[right]):
                child += 1
        lower = order[child]
        if not _comes_before(fused[moved], best[moved], ids[moved], fused[lower], best[lower], ids[lower]):
            break
        order[place] = lower
        place = child
    order[place] = moved


@compiled
def _sorted(order: np.ndarray, size: int, fused: np.ndarray, best: np.ndarray, ids: np.ndarray) -> None:
    """Fill ``order`` with the positions by fused score, then best rank, then item."""
    for place in range(size):
        order[place] = place
    for place in range(size // 2 - 1, -1, -1):
        _sift(order, place, size, fused, best, ids)
    for last in range(size - 1, 0, -1):
        order[0], order[last] = order[last], order[0]
        _sift(order, 0, last, fused, best, ids)


@compiled
def _choose(
    row: int,
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    quotas_S: np.ndarray,
    tower: int,
    k: int,
    chosen_in: np.ndarray,
    place: np.ndarray,
    ids: np.ndarray,
) -> int:
    """Write the items of one request: all that are within a quota, then the tower's; return how many."""
    size = 0
    for column in range(len(quotas_S)):
        start, stop = offsets_SB[column, row], offsets_SB[column, row + 1]
        for entry in range(start, min(stop, start + quotas_S[column])):
            item = listed[entry]
            if chosen_in[item] != row:
                chosen_in[item], place[item], ids[size] = row, size, item
                size += 1
    for entry in range(offsets_SB[tower, row], offsets_SB[tower, row + 1]):
        if size >= k:
            break
        item = listed[entry]
        if chosen_in[item] != row:
            chosen_in[item], place[item], ids[size] = row, size, item
            size += 1
    return size


@compiled
def _look_up(
    row: int,
    size: int,
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    listed_scores: np.ndarray,
    chosen_in: np.ndarray,
    place: np.ndarray,
    scores: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """Write rank and score of each chosen item of one request in every list."""
    scores[:size] = np.nan
    ranks[:size] = -1
    for column in range(len(offsets_SB)):
        start = offsets_SB[column, row]
        for entry in range(start, offsets_SB[column, row + 1]):
            item = listed[entry]
            if chosen_in[item] == row:
                ranks[place[item], column] = entry - start
                scores[place[item], column] = listed_scores[entry]


@compiled
def _judge(
    size: int,
    ranks: np.ndarray,
    quotas_S: np.ndarray,
    shares_S: np.ndarray,
    codes_S: np.ndarray,
    tower: int,
    fused: np.ndarray,
    best: np.ndarray,
    source: np.ndarray,
) -> None:
    """Write the fused score, the best rank and the origin of each chosen item of one request."""
    for number in range(size):
        total, lowest, inside, origin = 0.0, _UNRANKED, _UNRANKED, codes_S[tower]
        for column in range(len(quotas_S)):
            rank = ranks[number, column]
            if rank < 0:
                continue
            total += shares_S[column] / (RRF_K + rank + 1.0)
            lowest = min(lowest, rank)
            if rank < quotas_S[column] and rank < inside:
                inside, origin = rank, codes_S[column]
        fused[number], best[number], source[number] = total, lowest, origin


@compiled
def _mix(
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    listed_scores: np.ndarray,
    quotas_S: np.ndarray,
    shares_S: np.ndarray,
    codes_S: np.ndarray,
    tower: int,
    k: int,
    n_items: int,
    offsets: np.ndarray,
    ids: np.ndarray,
    fused: np.ndarray,
    source: np.ndarray,
    scores: np.ndarray,
    ranks: np.ndarray,
) -> None:
    chosen_in = np.full(n_items, -1, dtype=np.int32)  # the last request that the item was chosen for
    place = np.empty(n_items, dtype=np.int64)
    room, n_sources = max(k, quotas_S.sum()), len(quotas_S)
    own_ids, own_fused = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.float64)
    own_best, own_source = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int8)
    own_scores = np.empty((room, n_sources), dtype=np.float32)
    own_ranks, order = np.empty((room, n_sources), dtype=np.int32), np.empty(room, dtype=np.int64)
    for row in range(len(offsets) - 1):
        start = offsets[row]
        size = _choose(row, offsets_SB, listed, quotas_S, tower, k, chosen_in, place, own_ids)
        _look_up(row, size, offsets_SB, listed, listed_scores, chosen_in, place, own_scores, own_ranks)
        _judge(size, own_ranks, quotas_S, shares_S, codes_S, tower, own_fused, own_best, own_source)
        _sorted(order, size, own_fused, own_best, own_ids)
        for rank in range(size):
            number = order[rank]
            ids[start + rank], fused[start + rank] = own_ids[number], own_fused[number]
            source[start + rank] = own_source[number]
            scores[start + rank], ranks[start + rank] = own_scores[number], own_ranks[number]
        offsets[row + 1] = start + size


@compiled
def _join(
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    listed_scores: np.ndarray,
    k: int,
    n_items: int,
    offsets: np.ndarray,
    ids: np.ndarray,
    scores: np.ndarray,
) -> None:
    taken_in = np.full(n_items, -1, dtype=np.int32)
    last = len(offsets_SB) - 1
    for row in range(len(offsets) - 1):
        start = offsets[row]
        named = 0
        for column in range(last):
            named += offsets_SB[column, row + 1] - offsets_SB[column, row]
        size = 0
        for column in range(last if not named else 0, last + 1):
            for entry in range(offsets_SB[column, row], offsets_SB[column, row + 1]):
                item = listed[entry]
                if named and (size == k or taken_in[item] == row):
                    continue
                taken_in[item] = row
                ids[start + size] = item
                scores[start + size] = 1.0 / (RRF_K + 1.0 + size) if named else listed_scores[entry]
                size += 1
        offsets[row + 1] = start + size
