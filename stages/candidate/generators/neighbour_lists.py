"""Finds the neighbours of items, by a model of the users' touches or by the content of the items.

Legend: U users, N items, B rows of a block, V words and categories, E neighbours of all items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from scipy import sparse

from stages.candidate.generators.generator import Arrays, FitSize
from stages.candidate.linear.directed_ridge import DirectedRidge
from stages.candidate.linear.method import Method
from stages.candidate.linear.models import Ease, ImplicitAls
from stages.contracts.progress import progress
from stages.contracts.ragged import places_in_rows, row_offsets
from stages.contracts.snapshot import ItemTable
from stages.contracts.top_k import top_k

_BLOCK = 256
_SCORE_BYTES = 40
"""Bytes of a score of a block of items: as the model computes it, and while the best are chosen."""
_ROW_BYTES = 400
"""Bytes of an item's row before all rows are joined, apart from its neighbours."""
_ENTRY_BYTES = 40
"""Bytes of a neighbour: before and after all rows are joined."""
_CHOSEN_BYTES = 64
"""Bytes of a sparse weight: in its matrix, and while the best of each item are chosen."""
_WORD = re.compile(r"\w+")

Row = tuple[np.ndarray, np.ndarray]


def fitted_neighbours(
    name: str,
    model: Ease | DirectedRidge | ImplicitAls,
    history_UN: sparse.csr_matrix,
    neighbours: int,
    allowed: np.ndarray,
) -> Arrays:
    """Keep each item's best neighbours by a fitted model.

    An item's neighbours are the model's answer to a history of that item alone. An item that nobody touched has none.

    Args:
        name: of the generator, for the progress bar.
        model: fitted to ``history_UN``.
        history_UN: the users' touches.
        neighbours: kept for each item.
        allowed: int64 items that may be candidates.
    """
    items = history_UN.shape[1]
    known = np.diff(history_UN.tocsc().indptr) > 0
    closed = np.ones(items, dtype=bool)
    closed[allowed] = False
    alone_NN = sparse.identity(items, dtype=np.float64, format="csr")

    def rows() -> Iterator[Row]:
        for start in progress(range(0, items, _BLOCK), name, unit="block"):
            scores_BN = model.score(alone_NN[start : start + _BLOCK])
            scores_BN[:, closed] = 0
            for item, scores in enumerate(scores_BN, start=start):
                scores[item] = 0
                found = np.flatnonzero(scores > 0) if known[item] else np.zeros(0, dtype=np.int64)
                yield _cut(found, scores[found], found, neighbours)

    return _joined(rows())


def weighed_neighbours(
    name: str, model: Ease | DirectedRidge, history_UN: sparse.csr_matrix, neighbours: int, allowed: np.ndarray
) -> Arrays:
    """Keep each item's best neighbours by weights from items to items, see ``fitted_neighbours``."""
    if sparse.issparse(model.weights):
        return sparse_neighbours(model.weights, neighbours, allowed)
    return fitted_neighbours(name, model, history_UN, neighbours, allowed)


def sparse_neighbours(weights_NN: sparse.csr_matrix, neighbours: int, allowed: np.ndarray) -> Arrays:
    """Keep the best weights above 0 of each row, best first, equal ones by item index.

    Args:
        weights_NN: from each item to its neighbours.
        neighbours: kept for each item.
        allowed: int64 items that may be candidates.
    """
    items = weights_NN.shape[0]
    is_allowed = np.zeros(items, dtype=bool)
    is_allowed[allowed] = True
    row = np.repeat(np.arange(items, dtype=np.int32), np.diff(weights_NN.indptr))
    kept = (weights_NN.data > 0) & is_allowed[weights_NN.indices] & (weights_NN.indices != row)
    row, found, weights = row[kept], weights_NN.indices[kept], weights_NN.data[kept]
    order = np.lexsort((found, -np.round(weights, 6), row))
    order = order[places_in_rows(np.bincount(row, minlength=items)) < neighbours]
    lengths = np.bincount(row[order], minlength=items)
    return as_arrays(lengths, found[order], weights[order])


def as_arrays(lengths: np.ndarray | list[int], items: np.ndarray, weights: np.ndarray) -> Arrays:
    """Return the arrays of a ``NeighbourGenerator``.

    Args:
        lengths: neighbours of each item.
        items: of all neighbours, those of one item after the other, best first.
        weights: parallel to ``items``.
    """
    return {"offsets": row_offsets(lengths), "items": items.astype(np.int32), "weights": weights.astype(np.float32)}


def lists_gigabytes(size: FitSize, neighbours: int) -> float:
    """Return the 10^9 bytes that keeping each item's neighbours takes at most, beside the model itself.

    Args:
        size: of the touches and the catalogue.
        neighbours: kept for each item.
    """
    rows = (_ROW_BYTES + _ENTRY_BYTES * min(neighbours, size.items)) * size.items
    return (_SCORE_BYTES * min(_BLOCK, size.items) * size.items + rows + 32 * size.touches) / 1e9


def weighed_gigabytes(method: Method, entries: int, size: FitSize, neighbours: int) -> float:
    """Return the 10^9 bytes that the weights of a closed form and ``weighed_neighbours`` take at most.

    Args:
        method: how it is solved.
        entries: weights that lead to an item where the method is sparse.
        size: of the touches and the catalogue.
        neighbours: kept for each item.
    """
    if method.name == "sparse":
        return (
            _CHOSEN_BYTES * size.items * min(entries, size.items) + _ROW_BYTES * size.items + 32 * size.touches
        ) / 1e9
    return 4 * size.items**2 / 1e9 + lists_gigabytes(size, neighbours)


def content_neighbours(items: ItemTable, neighbours: int, allowed: np.ndarray) -> Arrays:
    """Return the items that share categories and words of the title, by cosine of tf-idf vectors.

    Each word and category of an item weighs 1 + ln(N / items that have it) (Salton and Buckley, 1988). Of equally
    similar items, which are many within a category, those come first that were created closest in time to the item;
    then the lower item index decides.

    Args:
        items: the catalogue, N.
        neighbours: kept for each item.
        allowed: int64 items that may be candidates.
    """
    content_NV = _content(items)
    others_VN = content_NV[allowed].T.tocsr()

    def rows() -> Iterator[Row]:
        for start in progress(range(0, len(items), _BLOCK), "content", unit="block"):
            cosine_BN = (content_NV[start : start + _BLOCK] @ others_VN).tocsr()
            for item in range(start, start + cosine_BN.shape[0]):
                cells = slice(*cosine_BN.indptr[item - start : item - start + 2])
                found, cosine = allowed[cosine_BN.indices[cells]], cosine_BN.data[cells]
                other = found != item
                found, cosine = found[other], cosine[other]
                apart_ms = np.abs(items.created_at_ms[found] - items.created_at_ms[item])
                yield _cut(found, cosine, np.lexsort((found, apart_ms)).argsort(), neighbours)

    return _joined(rows())


def _content(items: ItemTable) -> sparse.csr_matrix:
    """Return unit tf-idf vectors, float32 ``[N, V]``; zeros for an item without words or categories."""
    numbers: dict[str, int] = {}
    rows, columns = [], []
    for item, title in enumerate(items.title):
        for word in dict.fromkeys(_WORD.findall(str(title).lower())):  # a set's order differs from process to process
            rows.append(item)
            columns.append(numbers.setdefault(word, len(numbers)) + items.n_categories)
    owners = np.repeat(np.arange(len(items)), np.diff(items.category_offsets))
    rows_E = np.concatenate([owners, np.array(rows, dtype=np.int64)])
    columns_E = np.concatenate([items.category_codes.astype(np.int64), np.array(columns, dtype=np.int64)])
    shape = len(items), items.n_categories + len(numbers)
    held = sparse.csr_matrix((np.ones(len(rows_E)), (rows_E, columns_E)), shape=shape)
    held.data[:] = 1.0  # a category that is listed twice counts once
    weights_V = 1.0 + np.log(len(items) / np.maximum(np.bincount(held.indices, minlength=shape[1]), 1))
    held.data = weights_V[held.indices]
    norms_N = np.sqrt(np.asarray(held.multiply(held).sum(axis=1)).ravel())
    scaled = sparse.diags(1.0 / np.maximum(norms_N, 1e-12)) @ held
    return scaled.tocsr().astype(np.float32)


def _cut(found: np.ndarray, weights: np.ndarray, ties: np.ndarray, keep: int) -> Row:
    """Return the ``keep`` strongest neighbours, the best first, equal ones by ``ties``.

    Weights are rounded for the comparison, so that ties do not depend on the order of summation.
    """
    order = top_k(np.round(weights, 6), keep, ties)
    return found[order], weights[order]


def _joined(rows: Iterator[Row]) -> Arrays:
    """Join the rows of all items."""
    pieces = list(rows)
    items = np.concatenate([np.zeros(0, dtype=np.int64), *(found for found, _ in pieces)])
    weights = np.concatenate([np.zeros(0, dtype=np.float32), *(weights for _, weights in pieces)])
    return as_arrays([len(found) for found, _ in pieces], items, weights)
