"""Searches an index for many requests at a time; the answers are those of ``ItemSearch.search`` request by request.

Requests that exclude few items are searched together, and what they exclude is dropped afterwards. Where more is
excluded, mostly because it does not exist yet, a mask for all requests of about the same time acts inside the search,
and only the rest is dropped. A user who has seen very many items is searched alone.

A score may differ in its last bit from that of a request that is searched alone, since the order of summation depends
on how many queries are multiplied at once. A graph is walked farther where more is fetched.

Shapes: B requests, T tastes a query, D dimensions, M items that can be found, N items, P periods.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from stages.candidate.index import search as one_search
from stages.candidate.index.search import ItemSearch
from stages.contracts.best_items import Pools, allowed_entries, best_entries, best_scored
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import ranges, row_offsets

_SCORES = 1 << 22
"""Most scores that are held at a time where items are compared one by one: 16 MB."""


class BlockSearch:
    """Searches for requests of known periods.

    Args:
        search: the index.
        available_PN: int64, from when each item may be recommended, as in ``Exclusions``.
    """

    def __init__(self, search: ItemSearch, available_PN: np.ndarray) -> None:
        self._search = search
        births_PM = available_PN[:, search.indexed]
        order_PM = np.argsort(births_PM, axis=1, kind="stable")
        self._births_PM = np.take_along_axis(births_PM, order_PM, axis=1)
        self._items_PM = search.indexed[order_PM]

    def search(self, queries: np.ndarray, k: int, exclusions: Exclusions) -> ItemLists:
        """Return the best ``k`` allowed items of each query by dot product, ties by item index.

        Args:
            queries: float32 ``[B, D]`` or ``[B, T, D]``.
            k: how many items, at least 1.
            exclusions: of the B requests, with the ``available_ms`` of this search.

        Raises:
            DataError: if a score is NaN.
        """
        faiss.omp_set_num_threads(1)  # the setting belongs to the calling thread
        queries_BTD = np.ascontiguousarray(queries if queries.ndim == 3 else queries[:, None], dtype=np.float32)
        block = _Block(self._search, queries_BTD, k, exclusions, self._born(exclusions))
        few = np.flatnonzero(block.n_excluded <= one_search.OVERFETCH)
        parts = [(few, self._plain(block, few))] if len(few) else []
        complete = np.zeros(len(exclusions), dtype=bool)
        for rows, lists in parts:
            complete[rows] = lists.lengths >= np.minimum(k, block.n_allowed[rows])
        parts = [(rows[complete[rows]], _taken(lists, complete[rows])) for rows, lists in parts]
        rest = np.flatnonzero(~complete)
        exactly = self._search.few(block.n_allowed[rest])
        parts += self._exact(block, rest[exactly])
        alone = block.n_seen[rest] > one_search.OVERFETCH
        parts += [(np.array([row]), self._alone(block, int(row))) for row in rest[~exactly & alone]]
        parts += self._masked(block, rest[~exactly & ~alone])
        return _joined(parts)

    def _born(self, exclusions: Exclusions) -> np.ndarray:
        """Return int64 ``[B]``: how many items that can be found exist at the time of each request."""
        born = np.zeros(len(exclusions), dtype=np.int64)
        for period in np.unique(exclusions.period):
            of_period = exclusions.period == period
            times = exclusions.time_ms[of_period]
            born[of_period] = np.searchsorted(self._births_PM[period], times, side="right")
        return born

    def _plain(self, block: _Block, rows: np.ndarray) -> ItemLists:
        """Search without a filter, and drop what is excluded."""
        wanted_B = (block.k + block.n_excluded[rows]) * self._search.refine
        n_fetched = min(int(wanted_B.max()), len(self._search.indexed))
        scores_BK, ids_BK = self._search.index.search(block.queries(rows), n_fetched)
        if self._search.compressed:  # what a request would not fetch by itself is not scored again
            ids_BK[np.arange(n_fetched) >= np.repeat(wanted_B, block.n_tastes)[:, None]] = -1
        return self._finished(block, rows, _pools(ids_BK, scores_BK, block.n_tastes))

    def _finished(self, block: _Block, rows: np.ndarray, fetched: Pools) -> ItemLists:
        """Return the best allowed items among those that each request fetched."""
        pools = allowed_entries(fetched, block.exclusions.take(rows))
        if self._search.compressed:
            pools = self._scored_again(block.queries_BTD[rows], pools)
        return best_entries(pools, block.k)

    def _scored_again(self, queries_BTD: np.ndarray, pools: Pools) -> Pools:
        """Return the pools with the scores of whole vectors."""
        offsets, ids, scores = pools
        lengths, found = np.diff(offsets), np.empty_like(scores)
        width = max(1, int(lengths.max(initial=0)))
        size = max(1, _SCORES // (width * queries_BTD.shape[2]))
        for start in range(0, len(lengths), size):
            rows = slice(start, min(start + size, len(lengths)))
            entries = slice(offsets[rows.start], offsets[rows.stop])
            held_BK = np.arange(width) < lengths[rows, None]
            ids_BK = np.zeros(held_BK.shape, dtype=np.int64)
            ids_BK[held_BK] = ids[entries]
            scores_BKT = np.matmul(self._search.vectors[ids_BK], queries_BTD[rows].transpose(0, 2, 1))
            found[entries] = scores_BKT.max(axis=2)[held_BK]
        return offsets, ids, found

    def _exact(self, block: _Block, rows: np.ndarray) -> list[tuple[np.ndarray, ItemLists]]:
        """Compare with each item that exists."""
        found = []
        for period, part, n_born in self._chunks(block, rows, max(1, _SCORES // max(1, len(self._search.indexed)))):
            ids = np.sort(self._items_PM[period, :n_born])
            scores_BTM = (block.queries(part) @ self._search.vectors[ids].T).reshape(len(part), -1, len(ids))
            found.append((part, best_scored(scores_BTM.max(axis=1), ids, block.exclusions.take(part), block.k)))
        return found

    def _chunks(
        self, block: _Block, rows: np.ndarray, size: int, births: int | None = None
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        """Yield a period, some of its requests and how many items exist at the last of them.

        Args:
            block: of the requests.
            rows: int64, which of them.
            size: requests of a chunk, at most.
            births: items that come into being within a chunk, at most; None for any number.
        """
        for period in np.unique(block.exclusions.period[rows]):
            part = rows[block.exclusions.period[rows] == period]
            part = part[np.argsort(block.n_born[part], kind="stable")]
            born, start = block.n_born[part], 0
            while start < len(part):
                stop = min(start + size, len(part))
                if births is not None:
                    stop = min(stop, int(np.searchsorted(born, born[start] + births, side="right")))
                yield int(period), part[start:stop], int(born[stop - 1])
                start = stop

    def _alone(self, block: _Block, row: int) -> ItemLists:
        """Search for one request."""
        exclusions = block.exclusions
        unborn = self._items_PM[exclusions.period[row], block.n_born[row] :]
        exclude = np.concatenate([exclusions.seen_by(row), unborn])
        exclude = exclude[self._search.is_indexed[exclude]]
        return ItemLists.join([self._search.search_masked(block.queries_BTD[row], block.k, exclude, None)])

    def _masked(self, block: _Block, rows: np.ndarray) -> list[tuple[np.ndarray, ItemLists]]:
        """Search among what exists at the last request of a chunk, and drop what its other requests exclude."""
        found = []
        for period, part, n_born in self._chunks(block, rows, 256, one_search.OVERFETCH):
            mask_N = np.zeros(len(self._search.is_indexed), dtype=bool)
            mask_N[self._items_PM[period, :n_born]] = True
            numbers, excluded = self._excluded(block, period, part, n_born)
            margin = int(np.bincount(numbers, minlength=len(part)).max())
            refine, n_tastes = self._search.refine, block.n_tastes
            wanted = np.repeat(np.minimum(block.k * refine, block.n_allowed[part]), n_tastes)
            rows_TR = numbers * n_tastes + np.arange(n_tastes)[:, None]
            ids_BK, scores_BK = self._search.filtered.search_block(
                block.queries(part),
                wanted,
                min(block.k * refine + margin, n_born),
                mask_N,
                rows_TR.reshape(-1),
                np.tile(excluded, n_tastes),
            )
            pools = _pools(ids_BK, scores_BK, 1)
            if self._search.compressed:  # what a request would not fetch by itself is not scored again
                pools = _cut(allowed_entries(pools, block.exclusions.take(np.repeat(part, n_tastes))), wanted)
            found.append((part, self._finished(block, part, (pools[0][::n_tastes], *pools[1:]))))
        return found

    def _excluded(self, block: _Block, period: int, part: np.ndarray, n_born: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what each request of a chunk excludes of its mask, as parallel numbers in ``part`` and items."""
        exclusions = block.exclusions.take(part)
        numbers = np.repeat(np.arange(len(part)), np.diff(exclusions.seen_offsets))
        counted = self._search.is_indexed[exclusions.seen] & ~exclusions.unborn(numbers, exclusions.seen)
        later = n_born - block.n_born[part]
        unborn = self._items_PM[period][ranges(block.n_born[part], later)]
        numbers = np.concatenate([numbers[counted], np.repeat(np.arange(len(part)), later)])
        return numbers, np.concatenate([exclusions.seen[counted], unborn])


class _Block:
    """What is searched, and how much of the index each request excludes.

    Attributes:
        n_born: int64 ``[B]``, items of the index that exist.
        n_seen: int64 ``[B]``, items of the index that were seen.
        n_excluded: int64 ``[B]``, seen ones and such as do not exist yet; an item that is both counts twice.
        n_allowed: int64 ``[B]``, items of the index that remain.
        n_tastes: T.
    """

    def __init__(
        self, search: ItemSearch, queries_BTD: np.ndarray, k: int, exclusions: Exclusions, n_born: np.ndarray
    ) -> None:
        self.queries_BTD, self.k, self.exclusions, self.n_born = queries_BTD, k, exclusions, n_born
        self.n_tastes = queries_BTD.shape[1]
        rows = np.repeat(np.arange(len(exclusions)), np.diff(exclusions.seen_offsets))
        counted = search.is_indexed[exclusions.seen]
        born = counted & ~exclusions.unborn(rows, exclusions.seen)
        self.n_seen = np.bincount(rows[counted], minlength=len(exclusions))
        self.n_excluded = self.n_seen + len(search.indexed) - n_born
        self.n_allowed = n_born - np.bincount(rows[born], minlength=len(exclusions))

    def queries(self, rows: np.ndarray) -> np.ndarray:
        """Return the tastes of some requests one after the other, float32 ``[n * T, D]``."""
        queries_BD: np.ndarray = self.queries_BTD[rows].reshape(-1, self.queries_BTD.shape[2])
        return queries_BD


def _pools(ids_BK: np.ndarray, scores_BK: np.ndarray, n_rows: int) -> Pools:
    """Return what was fetched, ``n_rows`` rows to a pool."""
    offsets = np.arange(0, len(ids_BK) + 1, n_rows, dtype=np.int64) * ids_BK.shape[1]
    return offsets, ids_BK.reshape(-1), scores_BK.reshape(-1)


def _cut(pools: Pools, longest: np.ndarray) -> Pools:
    """Return the first entries of each pool, at most so many."""
    offsets, ids, scores = pools
    lengths = np.minimum(np.diff(offsets), longest)
    entries = ranges(offsets[:-1], lengths)
    return row_offsets(lengths), ids[entries], scores[entries]


def _taken(lists: ItemLists, kept: np.ndarray) -> ItemLists:
    """Return some of the lists, by a bool array."""
    entries = np.repeat(kept, lists.lengths)
    return ItemLists(row_offsets(lists.lengths[kept]), lists.ids[entries], lists.scores[entries])


def _joined(parts: list[tuple[np.ndarray, ItemLists]]) -> ItemLists:
    """Return the lists of all parts in the order of their rows."""
    if not parts:
        return ItemLists.join([])
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    lengths = np.concatenate([lists.lengths for _, lists in parts])
    entries = ranges(row_offsets(lengths)[:-1][order], lengths[order])
    ids, scores = (np.concatenate([getattr(lists, name) for _, lists in parts])[entries] for name in ("ids", "scores"))
    return ItemLists(row_offsets(lengths[order]), ids, scores)
