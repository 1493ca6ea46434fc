"""The nearest neighbours of items by who touched them, from a sparse product that is made a block at a time.

Legend: U users, N items, B items of a block, m cells of a product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stages.candidate.linear.config import ItemKnnSettings
from stages.contracts.best_items import best_entries
from stages.contracts.errors import DataError
from stages.contracts.item_lists import ItemLists
from stages.contracts.progress import progress_of
from stages.contracts.ragged import row_offsets

_CELLS = 1 << 22
"""Most cells of a block's product; a block of one item may have N."""
_PRODUCT_BYTES = 64
"""Bytes of a cell of a product: the cell itself, its item, norms and flags, and the copies of what is kept."""
_CELL_BYTES = 40
"""Bytes of a touch: in the matrix, by item and by user, weighted."""
_KEPT_BYTES = 48
"""Bytes of a neighbour while all blocks are put together and turned round."""
_ITEM_BYTES = 64
_WORKSPACE_BYTES = 8_000_000


def knn_gigabytes(users: int, items: int, cells: int, neighbours: int) -> float:
    """Return the 10^9 bytes that ``nearest_items`` takes at most.

    Args:
        users: U.
        items: N.
        cells: touches.
        neighbours: kept for each item.
    """
    product = _PRODUCT_BYTES * min(max(_CELLS, items), items**2)
    kept = _KEPT_BYTES * items * min(neighbours, items)
    return (product + kept + _CELL_BYTES * cells + _ITEM_BYTES * (items + users) + _WORKSPACE_BYTES) / 1e9


def nearest_items(
    history_UN: sparse.csr_matrix,
    settings: ItemKnnSettings,
    neighbours: int,
    allowed: np.ndarray | None = None,
    longest: int | None = None,
) -> ItemLists:
    """Return for each item the items that have it among their nearest ones, list i those of item i, best first.

    An item's score for a history is the sum of the weights from the history's items to it, and of these only its own
    nearest ones count (Sarwar et al., "Item-Based Collaborative Filtering Recommendation Algorithms", WWW 2001). The
    weight from item i to item j is x_i'x_j / (|x_i|^(2 alpha) |x_j|^(2 - 2 alpha) + shrink): the cosine of their
    columns with alpha = 0.5; asymmetric ones are those of Aiolli, "Efficient Top-N Recommendation for Very Large Scale
    Binary Rated Datasets", RecSys 2013. Of equally near items the lower one counts.

    Args:
        history_UN: what users did, finite; only positive weights count.
        settings: how columns are weighted and compared.
        neighbours: nearest items of each item.
        allowed: int64 items that may be scored; None for all.
        longest: items of a list, the best; None for all. Lists of popular items are long.

    Raises:
        DataError: if the matrix is empty or not finite.
    """
    if not history_UN.nnz or not np.isfinite(history_UN.data).all():
        raise DataError(f"item-KNN: the history matrix {list(history_UN.shape)} must hold finite values, one or more")
    items = history_UN.shape[1]
    weighted_UN = weighted_histories(history_UN, settings)
    by_item_NU = weighted_UN.T.tocsr()
    squares_N = np.bincount(weighted_UN.indices, weighted_UN.data.astype(np.float64) ** 2, items)
    scored_N = np.ones(items, dtype=bool) if allowed is None else np.isin(np.arange(items), allowed)
    parts = []
    with progress_of("item_knn", items, "item") as advance:
        for start, stop in _blocks(by_item_NU, weighted_UN):
            product_BN = by_item_NU[start:stop] @ weighted_UN
            parts.append(_nearest(product_BN, start, squares_N, scored_N, settings, neighbours))
            advance(stop - start)
    lengths, ids, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    nearest_NN = sparse.csr_matrix((weights, ids, row_offsets(lengths)), shape=(items, items)).T.tocsr()
    pools = nearest_NN.indptr.astype(np.int64), nearest_NN.indices.astype(np.int64), nearest_NN.data
    return best_entries(pools, items if longest is None else longest)


def weighted_histories(history_UN: sparse.csr_matrix, settings: ItemKnnSettings) -> sparse.csr_matrix:
    """Return the histories, float32, each times the weight of its user; a factor of an item would cancel in a cosine.

    ``tf_idf`` takes ln(1 + N / n) for a user with n items (a user is a term of the items). ``bm25`` takes the length
    factor of Okapi BM25, (k1 + 1) / (k1 (1 - b + b n / mean) + 1) with k1 = 1.2 and b = 0.75 (a history is a document).
    """
    weighted_UN = sparse.csr_matrix(history_UN, dtype=np.float32, copy=True)
    if settings.weighting == "none":
        return weighted_UN
    length_U = np.diff(weighted_UN.indptr)
    if settings.weighting == "tf_idf":
        weight_U = np.log1p(weighted_UN.shape[1] / np.maximum(length_U, 1))
    else:
        weight_U = 2.2 / (1.2 * (0.25 + 0.75 * length_U / length_U[length_U > 0].mean()) + 1)
    weighted_UN.data *= np.repeat(weight_U, length_U).astype(np.float32)
    return weighted_UN


def _blocks(by_item_NU: sparse.csr_matrix, history_UN: sparse.csr_matrix) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of consecutive items whose product with all items has at most ``_CELLS`` cells."""
    items, lengths_U = len(by_item_NU.indptr) - 1, np.diff(history_UN.indptr).astype(np.int64)
    ends = row_offsets(lengths_U[by_item_NU.indices])[by_item_NU.indptr]
    upto = row_offsets(np.minimum(np.diff(ends), items))
    start = 0
    while start < items:
        stop = int(np.searchsorted(upto, upto[start] + _CELLS, side="right")) - 1
        stop = max(start + 1, min(stop, items))
        yield start, stop
        start = stop


def _nearest(
    product_BN: sparse.csr_matrix,
    start: int,
    squares_N: np.ndarray,
    scored_N: np.ndarray,
    settings: ItemKnnSettings,
    neighbours: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many nearest items each item of a block has; and these items, int32, and the weights from them."""
    size, alpha = product_BN.shape[0], settings.alpha
    row, column = np.repeat(np.arange(size, dtype=np.int32), np.diff(product_BN.indptr)), product_BN.indices
    kept = (product_BN.data > 0) & (column != row + start) & scored_N[row + start]
    row, column = row[kept], column[kept]
    norms = squares_N[column] ** alpha * squares_N[start + row] ** (1 - alpha) + settings.shrink
    weights = (product_BN.data[kept] / norms).astype(np.float32)
    offsets = row_offsets(np.bincount(row, minlength=size))
    lists = best_entries((offsets, column.astype(np.int64), weights), neighbours)
    return lists.lengths, lists.ids.astype(np.int32), lists.scores
