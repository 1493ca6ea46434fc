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
        indexed: int64, items that can be found, ascending.
    """

    def __init__(self, index: Any, item_vectors: np.ndarray, refine: int = 1) -> None:
        self._vectors, self._refine = item_vectors, refine
        self._index = index
        self._n_items = len(item_vectors)
        ivf = _inverted(index)
        self._filtered: _Scan | _Lists = _Scan(index) if ivf is None else _Lists(index, ivf, self._n_items)
        self._compressed = not (ivf is None or isinstance(ivf, faiss.IndexIVFFlat))
        self.indexed = self._filtered.ids()
        self._is_indexed = np.zeros(self._n_items, dtype=bool)
        self._is_indexed[self.indexed] = True

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
        exclude = [items[self._is_indexed[items]] for items in exclude]
        found: list[ScoredItems | None] = [None] * len(queries_BTD)
        plain = [row for row, mask in enumerate(masks) if mask is None and len(exclude[row]) <= OVERFETCH]
        if plain:
            margin = max(len(exclude[row]) for row in plain)
            n_fetched = min((k + margin) * self._refine, len(self.indexed))
            flat_BD = queries_BTD[plain].reshape(-1, queries_BTD.shape[2])
            scores_BK, ids_BK = self._index.search(flat_BD, n_fetched)
            shape = len(plain), -1
            for row, scores, ids in zip(plain, scores_BK.reshape(shape), ids_BK.reshape(shape), strict=True):
                found[row] = self._complete(queries_BTD[row], scores, ids, k, exclude[row])
        return [
            self._search_masked(queries_BTD[row], k, exclude[row], masks[row]) if items is None else items
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

    def _search_masked(self, query_TD: np.ndarray, k: int, exclude: np.ndarray, mask: np.ndarray | None) -> ScoredItems:
        """Search one query among the items that remain."""
        mask_N = self._is_indexed.copy() if mask is None else self._is_indexed & mask
        mask_N[exclude] = False
        n_allowed = int(np.count_nonzero(mask_N))
        sparse = 10 * n_allowed <= len(self.indexed)
        if n_allowed <= (5 * EXACT_UP_TO if sparse else EXACT_UP_TO):
            return self._exact(query_TD, np.flatnonzero(mask_N), k)
        n_fetched = min(k * self._refine, n_allowed)
        ids, scores = self._filtered.search(query_TD, n_fetched, mask_N)
        return self._best(query_TD, ids, scores, k)

    def _exact(self, query_TD: np.ndarray, ids: np.ndarray, k: int) -> ScoredItems:
        """Compare with each of ``ids``."""
        scores = (self._vectors[ids] @ query_TD.T).max(axis=1) if len(ids) else np.zeros(0, np.float32)
        return _sorted(ids, scores, k)

    def _best(self, query_TD: np.ndarray, ids: np.ndarray, scores: np.ndarray, k: int) -> ScoredItems:
        """Merge the tastes' answers and keep the best ``k``."""
        if self._compressed:
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
        bits = np.packbits(mask_N, bitorder="little")
        selector = faiss.IDSelectorBitmap(self._n_items, faiss.swig_ptr(bits))
        allowed_C = np.bincount(self._list_of_N[np.flatnonzero(mask_N)], minlength=self._ivf.nlist)
        rotated_TD = query_TD if self._rotation is None else self._rotation.apply(query_TD)
        answers = [self._search(query_D, k, selector, allowed_C) for query_D in rotated_TD]
        return np.concatenate([ids for ids, _ in answers]), np.concatenate([scores for _, scores in answers])

    def _search(
        self, query_D: np.ndarray, k: int, selector: Any, allowed_C: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        nearness_C = self._centres_CD @ query_D
        order_C = np.argsort(-nearness_C)
        compared = max(int(self._sizes_C[order_C[: self._ivf.nprobe]].sum()), k)
        order_C = order_C[allowed_C[order_C] > 0]
        enough = int(np.searchsorted(np.cumsum(allowed_C[order_C]), compared)) + 1
        chosen = np.ascontiguousarray(order_C[:enough], dtype=np.int64)
        nearness = np.ascontiguousarray(nearness_C[chosen], dtype=np.float32)
        scores, ids = np.empty(k, dtype=np.float32), np.empty(k, dtype=np.int64)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=len(chosen))  # type: ignore[call-arg]
        pointers = [faiss.swig_ptr(part) for part in (chosen, nearness, scores, ids)]
        self._ivf.search_preassigned_c(
            1, faiss.swig_ptr(np.ascontiguousarray(query_D)), k, *pointers, False, parameters
        )
        return ids[ids >= 0], scores[ids >= 0]


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
        mask = mask_N[: self._flat.ntotal] if self._id_map is None else mask_N[self._id_map]
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores_TK, rows_TK = self._flat.search(query_TD, k, params=parameters)
        rows, scores = rows_TK[rows_TK >= 0], scores_TK[rows_TK >= 0]
        return (rows if self._id_map is None else self._id_map[rows]), scores


def _inverted(index: Any) -> Any:
    """Return the inverted lists of an index, or None."""
    inner = faiss.try_extract_index_ivf(index)
    return None if inner is None else faiss.downcast_index(inner)


def _sorted(ids: np.ndarray, scores: np.ndarray, k: int) -> ScoredItems:
    order = top_k(scores, k, ids)
    return ScoredItems(ids=ids[order].astype(np.int64), scores=scores[order].astype(np.float32))
