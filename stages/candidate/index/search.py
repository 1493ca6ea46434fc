"""Finds the nearest items in a Faiss index, among all items or those that a filter allows.

Filters act inside the search, and adapt it. Inverted lists without an allowed item are skipped. The nearest
other lists are searched until as many allowed vectors were compared as a search without a filter compares.
Where few items are allowed, all of them are compared exactly. A graph is not walked with a filter, since the
walk would miss items far from the query: the vectors that it holds are scanned.

Shapes: B queries, T tastes a query, D dimensions, K fetched neighbours, C lists, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np

from stages.contracts.tables import ScoredItems
from stages.contracts.top_k import top_k

OVERFETCH = 512
"""Up to this many excluded items a query are fetched and dropped; more are masked inside the search."""
EXACT_UP_TO = 20_000
"""Up to this many allowed items are compared one by one. Up to five times as many are if they are at most a tenth of
the index, since its lists would then hold few allowed items. That is 5 and 26 MB at 64 dimensions."""


class ItemSearch:
    """Searches an index of any kind that ``index.kinds`` makes.

    Args:
        index: its ids are rows of ``item_vectors``.
        item_vectors: float32 ``[N, D]``, may be memory-mapped.
        refine: refine * k items are fetched from an index with compressed vectors, and scored again by
            their whole vectors.

    Attributes:
        index, vectors, refine: as given.
        indexed: int64, items that can be found, ascending.
        is_indexed: bool ``[N]``, the same items.
        filtered: searches among the items of a mask.
        compressed: whether what is found is scored again by whole vectors.
    """

    def __init__(self, index: Any, item_vectors: np.ndarray, refine: int = 1) -> None:
        self.vectors, self.refine = item_vectors, refine
        self.index = index
        self._n_items = len(item_vectors)
        ivf = _inverted(index)
        self.filtered: _Scan | _Lists = _Scan(index) if ivf is None else _Lists(index, ivf, self._n_items)
        self.compressed = not (ivf is None or isinstance(ivf, faiss.IndexIVFFlat))
        self.indexed = self.filtered.ids()
        self.is_indexed = np.zeros(self._n_items, dtype=bool)
        self.is_indexed[self.indexed] = True

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Sequence[np.ndarray],
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> list[ScoredItems]:
        """Return the best ``k`` items of each query by dot product, ties by item index.

        Fewer are returned only where fewer remain. With several tastes, the best taste scores an item.

        Args:
            queries: float32 ``[B, D]`` or ``[B, T, D]``.
            k: how many items, at least 1.
            exclude: for each query int64 item indices that must not be returned.
            allowed: for each query bool ``[N]``, the items that may be returned, or None for all.
        """
        faiss.omp_set_num_threads(1)  # the setting belongs to the calling thread, and servers have many
        queries_BTD = np.ascontiguousarray(queries if queries.ndim == 3 else queries[:, None], dtype=np.float32)
        masks = [None] * len(queries_BTD) if allowed is None else list(allowed)
        exclude = [items[self.is_indexed[items]] for items in exclude]
        found: list[ScoredItems | None] = [None] * len(queries_BTD)
        plain = [row for row, mask in enumerate(masks) if mask is None and len(exclude[row]) <= OVERFETCH]
        if plain:
            margin = max(len(exclude[row]) for row in plain)
            n_fetched = min((k + margin) * self.refine, len(self.indexed))
            flat_BD = queries_BTD[plain].reshape(-1, queries_BTD.shape[2])
            scores_BK, ids_BK = self.index.search(flat_BD, n_fetched)
            shape = len(plain), -1
            for row, scores, ids in zip(plain, scores_BK.reshape(shape), ids_BK.reshape(shape), strict=True):
                found[row] = self._complete(queries_BTD[row], scores, ids, k, exclude[row])
        return [
            self.search_masked(queries_BTD[row], k, exclude[row], masks[row]) if items is None else items
            for row, items in enumerate(found)
        ]

    def _complete(
        self, query_TD: np.ndarray, scores: np.ndarray, ids: np.ndarray, k: int, exclude: np.ndarray
    ) -> ScoredItems | None:
        """Drop excluded items; None if the search found too few although more may remain."""
        kept = (ids >= 0) & ~np.isin(ids, exclude)
        items = self._best(query_TD, ids[kept], scores[kept], k)
        remaining = len(self.indexed) - len(np.unique(exclude))
        return items if len(items) >= min(k, remaining) else None

    def search_masked(self, query_TD: np.ndarray, k: int, exclude: np.ndarray, mask: np.ndarray | None) -> ScoredItems:
        """Search one query among the items that remain.

        Args:
            query_TD: float32, the tastes of one user.
            k: how many items, at least 1.
            exclude: int64 indexed items that must not be returned.
            mask: bool ``[N]``, the items that may be returned, or None for all.
        """
        mask_N = self.is_indexed.copy() if mask is None else self.is_indexed & mask
        mask_N[exclude] = False
        n_allowed = int(np.count_nonzero(mask_N))
        if self.few(n_allowed):
            return self._exact(query_TD, np.flatnonzero(mask_N), k)
        n_fetched = min(k * self.refine, n_allowed)
        ids, scores = self.filtered.search(query_TD, n_fetched, mask_N)
        return self._best(query_TD, ids, scores, k)

    def few(self, n_allowed: Any) -> Any:
        """Return whether so many allowed items are compared one by one; of an array, for each entry."""
        sparse = 10 * n_allowed <= len(self.indexed)
        return n_allowed <= EXACT_UP_TO * (1 + 4 * sparse)

    def _exact(self, query_TD: np.ndarray, ids: np.ndarray, k: int) -> ScoredItems:
        """Compare with each of ``ids``."""
        scores = (self.vectors[ids] @ query_TD.T).max(axis=1) if len(ids) else np.zeros(0, np.float32)
        return _sorted(ids, scores, k)

    def _best(self, query_TD: np.ndarray, ids: np.ndarray, scores: np.ndarray, k: int) -> ScoredItems:
        """Merge the tastes' answers and keep the best ``k``."""
        if self.compressed:
            return self._exact(query_TD, np.unique(ids), k)
        if len(query_TD) > 1:
            order = np.lexsort((-scores, ids))
            first = order[np.flatnonzero(np.diff(ids[order], prepend=-1))]
            ids, scores = ids[first], scores[first]
        return _sorted(ids, scores, k)


class _Lists:
    """Inverted lists, the list of each item, and a search that chooses lists by the allowed items."""

    def __init__(self, index: Any, ivf: Any, n_items: int) -> None:
        self._ivf = ivf
        self._rotation: Any = index.chain.at(0) if hasattr(index, "chain") else None
        self._n_items = n_items
        self._centres_CD = self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)
        lists = self._ivf.invlists
        sizes = [lists.list_size(number) for number in range(self._ivf.nlist)]
        self._sizes_C = np.array(sizes, dtype=np.int64)
        parts = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size]
        self._ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        self._list_of_N = np.full(n_items, -1, dtype=np.int32)
        self._list_of_N[self._ids] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    def ids(self) -> np.ndarray:
        return np.sort(self._ids)

    def search(self, query_TD: np.ndarray, k: int, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and scores of up to ``k`` allowed items a taste."""
        nobody = np.zeros(0, dtype=np.int64)
        wanted = np.full(len(query_TD), k)
        ids_TK, scores_TK = self.search_block(query_TD, wanted, k, mask_N, nobody, nobody)
        return ids_TK[ids_TK >= 0], scores_TK[ids_TK >= 0]

    def search_block(
        self,
        queries_BD: np.ndarray,
        wanted_B: np.ndarray,
        n_fetched: int,
        mask_N: np.ndarray,
        rows: np.ndarray,
        excluded: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items of a mask for each query; each searches as many lists as it needs.

        Args:
            queries_BD: float32.
            wanted_B: int64, how many vectors each query must at least be compared with.
            n_fetched: how many items each query fetches.
            mask_N: bool, the items that may be fetched.
            rows: int64 ``[m]`` queries, parallel to ``excluded``.
            excluded: int64 ``[m]`` items of the mask that do not count as allowed for that query. They are fetched.

        Returns:
            int64 ids and float32 scores ``[B, n_fetched]``; the id is -1 where fewer are found.
        """
        rotated_BD = queries_BD if self._rotation is None else self._rotation.apply(queries_BD)
        nearness_BC = rotated_BD @ self._centres_CD.T
        allowed_C = np.bincount(self._list_of_N[np.flatnonzero(mask_N)], minlength=self._ivf.nlist)
        allowed_BC = np.repeat(allowed_C[None], len(queries_BD), axis=0)
        np.subtract.at(allowed_BC, (rows, self._list_of_N[excluded]), 1)
        lists, nearness = self._chosen(nearness_BC, allowed_BC, wanted_B)
        scores_BK = np.empty((len(queries_BD), n_fetched), dtype=np.float32)
        ids_BK = np.empty((len(queries_BD), n_fetched), dtype=np.int64)
        bits = np.packbits(mask_N, bitorder="little")
        selector = faiss.IDSelectorBitmap(self._n_items, faiss.swig_ptr(bits))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists.shape[1])  # type: ignore[call-arg]
        pointers = [faiss.swig_ptr(part) for part in (lists, nearness, scores_BK, ids_BK)]
        rotated_BD = np.ascontiguousarray(rotated_BD)
        self._ivf.search_preassigned_c(
            len(queries_BD), faiss.swig_ptr(rotated_BD), n_fetched, *pointers, False, parameters
        )
        return ids_BK, scores_BK

    def _chosen(
        self, nearness_BC: np.ndarray, allowed_BC: np.ndarray, wanted_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lists to search, int64 ``[B, P]`` with -1 behind the last one of a query, and their nearness."""
        order_BC = np.argsort(-nearness_BC, axis=1)
        compared_B = np.maximum(self._sizes_C[order_BC[:, : self._ivf.nprobe]].sum(axis=1), wanted_B)
        allowed_BC = np.take_along_axis(allowed_BC, order_BC, axis=1)
        before_BC = np.cumsum(allowed_BC, axis=1) - allowed_BC
        chosen_BC = (allowed_BC > 0) & (before_BC < compared_B[:, None])
        width = max(1, int(chosen_BC.sum(axis=1).max()))
        first_BP = np.argsort(~chosen_BC, axis=1, kind="stable")[:, :width]
        lists_BP = np.take_along_axis(order_BC, first_BP, axis=1)
        nearness_BP = np.take_along_axis(nearness_BC, lists_BP, axis=1).astype(np.float32)
        lists_BP[~np.take_along_axis(chosen_BC, first_BP, axis=1)] = -1
        return np.ascontiguousarray(lists_BP, dtype=np.int64), np.ascontiguousarray(nearness_BP)


class _Scan:
    """Scans whole vectors, also those of a graph, with a selector."""

    def __init__(self, index: Any) -> None:
        self._id_map: np.ndarray | None = None
        if isinstance(index, faiss.IndexIDMap):
            self._id_map = faiss.vector_to_array(index.id_map)
            index = faiss.downcast_index(index.index)
        self._flat = faiss.downcast_index(index.storage) if isinstance(index, faiss.IndexHNSW) else index

    def ids(self) -> np.ndarray:
        return np.arange(self._flat.ntotal, dtype=np.int64) if self._id_map is None else np.sort(self._id_map)

    def search(self, query_TD: np.ndarray, k: int, mask_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and scores of the best ``k`` allowed items of each taste."""
        nobody = np.zeros(0, dtype=np.int64)
        ids_TK, scores_TK = self.search_block(query_TD, nobody, k, mask_N, nobody, nobody)
        return ids_TK[ids_TK >= 0], scores_TK[ids_TK >= 0]

    def search_block(
        self,
        queries_BD: np.ndarray,
        wanted_B: np.ndarray,
        n_fetched: int,
        mask_N: np.ndarray,
        rows: np.ndarray,
        excluded: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items of a mask for each query, as ``_Lists.search_block``; all of the mask is scanned."""
        mask = mask_N[: self._flat.ntotal] if self._id_map is None else mask_N[self._id_map]
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores_BK, rows_BK = self._flat.search(np.ascontiguousarray(queries_BD), n_fetched, params=parameters)
        ids_BK = rows_BK if self._id_map is None else np.where(rows_BK >= 0, self._id_map[rows_BK], -1)
        return ids_BK, scores_BK


def _inverted(index: Any) -> Any:
    """Return the inverted lists of an index, or None."""
    inner = faiss.try_extract_index_ivf(index)
    return None if inner is None else faiss.downcast_index(inner)


def _sorted(ids: np.ndarray, scores: np.ndarray, k: int) -> ScoredItems:
    order = top_k(scores, k, ids)
    return ScoredItems(ids=ids[order].astype(np.int64), scores=scores[order].astype(np.float32))
