"""Recommend by item-to-item cosine, in bounded memory.

Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001. Neighbours are
computed only for items that a user with a request touched. These items are compared with all others in
blocks, and only the strongest neighbours of each are kept.

Shapes: Q requests, N items, S users, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stages.contracts.ranking import ranked_table
from stages.contracts.tables import RankedTable, ScoredItems
from stages.contracts.top_k import top_k

_BLOCK = 32
"""Number of requests that are answered at a time."""
_PRODUCTS = 1 << 23
"""Largest number of entries of a block of similarities, unless a single item has more."""


def answers(
    touched: sparse.csr_array,
    seen: sparse.csr_array,
    request_id: np.ndarray,
    users: np.ndarray,
    neighbours: int,
    k: int,
) -> RankedTable:
    """Return the k best items of each request; ties, and users without history, are decided by popularity.

    Args:
        touched: float32 ``[S, N]``, 1 if a user touched an item: the training data and the histories.
        seen: ``[S, N]``, non-zero if an item must not be recommended to a user.
        request_id: int64 ``[Q]``.
        users: int64 ``[Q]``, the row of each request's user.
        neighbours: K, the number of neighbours of an item.
        k: number of items a request; fewer if fewer items are left.
    """
    popularity = _popularity(touched)
    tie_break = 1e-6 * popularity / max(popularity.max(initial=0), 1.0)
    by_popularity = np.argsort(-tie_break, kind="stable")
    histories, hidden = touched[users], seen[users]
    similar = similarities(touched, np.unique(histories.indices), neighbours)
    found: list[ScoredItems] = []
    for start in range(0, len(users), _BLOCK):
        near = sparse.csr_array(histories[start : start + _BLOCK] @ similar)
        for row in range(near.shape[0]):
            (close, value), (refused, _) = _row(near, row), _row(hidden, start + row)
            # Enough popular items that k remain after the refused ones; less popular items cannot be among the best.
            popular = np.setdiff1d(by_popularity[: k + len(refused)], close)
            items = np.concatenate([close, popular])
            score = np.concatenate([value + tie_break[close], tie_break[popular]])
            best = _best(items, score, refused, k)
            found.append(ScoredItems(items[best].astype(np.int64), score[best].astype(np.float32)))
    return ranked_table(request_id, found)


def _best(items: np.ndarray, scores: np.ndarray, refused: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k best items that are not refused; ties go to the lower item index."""
    shown = np.flatnonzero(~np.isin(items, refused))
    best: np.ndarray = shown[top_k(scores[shown], k, items[shown])]
    return best


def similarities(touched: sparse.csr_array, items: np.ndarray, neighbours: int) -> sparse.csr_array:
    """Return float32 ``[N, N]``: the cosines of some items with their strongest neighbours, other rows empty.

    Among equally strong neighbours the lower indices are kept; no item is its own neighbour.

    Args:
        touched: float32 ``[S, N]`` of 0 and 1.
        items: int64, ascending: the items whose rows are computed.
        neighbours: K.
    """
    n_items = touched.shape[1]
    scale = (1.0 / np.sqrt(np.maximum(_popularity(touched), 1.0))).astype(np.float32)
    normed = sparse.csr_array(touched @ sparse.diags_array(scale))
    by_item = sparse.csr_array(normed.T)
    rows, columns, values = [], [], []
    for block in _blocks(touched, items):
        product = sparse.csr_array(by_item[block] @ normed)
        for place, item in enumerate(block.tolist()):
            near, value = _strongest(*_row(product, place), item, neighbours)
            rows.append(np.full(len(near), item))
            columns.append(near)
            values.append(value)
    if not rows:
        return sparse.csr_array((n_items, n_items), dtype=np.float32)
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(n_items, n_items))


def _popularity(touched: sparse.csr_array) -> np.ndarray:
    """Return float32 ``[N]``: the number of users who touched each item."""
    return np.asarray(touched.sum(axis=0)).ravel()


def _row(matrix: sparse.csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and values of the stored entries of a row."""
    inside = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[inside], matrix.data[inside]


def _blocks(touched: sparse.csr_array, items: np.ndarray) -> Iterator[np.ndarray]:
    """Cut items into blocks whose product has at most ``_PRODUCTS`` entries, or that have one item."""
    reach = touched.T @ np.diff(touched.indptr).astype(np.float64)
    ends = np.cumsum(np.minimum(reach[items], touched.shape[1]))
    start = 0
    while start < len(items):
        before = ends[start - 1] if start else 0.0
        stop = max(int(np.searchsorted(ends, before + _PRODUCTS, side="right")), start + 1)
        yield items[start:stop]
        start = stop


def _strongest(items: np.ndarray, values: np.ndarray, own: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items with the largest values, and their values, without the item ``own``."""
    others = items != own
    items, values = items[others], values[others]
    chosen = top_k(values, k, items)
    return items[chosen], values[chosen]
