"""Closed forms for any number of items: the ridge regression of each item on its nearest items alone.

EASE and the directed ridge solve one linear system of all items, whose matrix of items by items takes gigabytes. Here
the weights into item j come from a system of its support S alone, the k items that are nearest to it by the cosine of
the moments: w_S = (G_SS + lambda I)^-1 G_Sj. G_SS is exact, summed up from the histories, so that with all items in the
support the weights are those of the dense model. Ning and Karypis, "SLIM: Sparse Linear Methods for Top-N Recommender
Systems", ICDM 2011, section 4 (fsSLIM), choose the support in this way; Steck, "Markov Random Fields for Collaborative
Filtering", NeurIPS 2019, shows that the closed form of EASE may be solved on sub-matrices. Decision 033 has what was
compared.

Legend: U users, N items, H head items, b items of a block, m entries of its right sides, k items of a support.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from stages.candidate.linear.moments import Moments, moments_gigabytes
from stages.candidate.linear.nearest_kernels import chosen_sums, head_sums, norms, right_sides, systems
from stages.contracts.best_items import best_entries
from stages.contracts.errors import DataError
from stages.contracts.item_lists import ItemLists
from stages.contracts.progress import progress_of
from stages.contracts.ragged import row_offsets

_HEAD = 4096
"""Items with the most cells, whose sums with one another are computed once: at most 134 MB."""
_ENTRIES = 1 << 21
"""Entries of the right sides of a block, unless those of one item are more."""
_ENTRY_BYTES = 56
_CELLS = 1 << 22
"""Cells of the systems of a block, unless those of one item are more."""
_LIST_BYTES = 16
"""Bytes of a cell in the lists of users, see ``nearest_kernels.systems``."""
_WEIGHT_BYTES = 40
"""Bytes of a weight: as it is found, beside it while all are joined, and by rows beside by columns."""
_WORKSPACE_BYTES = 32_000_000
"""What the linear algebra takes for itself."""

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Lengths int64 ``[b]`` of the columns of a block, their int32 rows and their float32 weights."""


def nearest_gigabytes(users: int, items: int, cells: int, neighbours: int, latest: int = 0) -> float:
    """Return the 10^9 bytes that ``nearest_regression`` and making its moments take at most.

    Args:
        users: U.
        items: N.
        cells: of the histories.
        neighbours: k.
        latest: items of a history that count, of directed moments; else 0.
    """
    size = min(neighbours, items)
    head = 8 * min(_HEAD, items) ** 2
    room = _ENTRY_BYTES * max(min(_ENTRIES, items**2), items) + 8 * max(min(_CELLS, items * size**2), size**2)
    room += 8 * users + 40 * items + _LIST_BYTES * cells
    return moments_gigabytes(users, items, cells, latest) + (
        (head + room + _WEIGHT_BYTES * size * items + _WORKSPACE_BYTES) / 1e9
    )


def nearest_regression(moments: Moments, regularisation: float, neighbours: int, what: str) -> sparse.csr_matrix:
    """Return the weights from items to items, float32 ``[N, N]`` with at most k in each column.

    An item's support are the items that occur with it, at most k of them; of equally near ones those come first that
    more cells hold. With k of all other items, those that do not occur with it are in the support as well.

    Args:
        moments: of the histories.
        regularisation: lambda, above 0.
        neighbours: k.
        what: the model, for the progress and for errors.

    Raises:
        DataError: if a system cannot be solved.
    """
    cells = moments.cells
    items = len(moments.given)
    everything = neighbours >= (items if moments.directed else items - 1)
    head_HH = np.zeros((min(_HEAD, items),) * 2)
    norm_N = np.empty(items)
    norms(cells, moments.directed, norm_N)
    head_sums(cells, moments.directed, head_HH)
    most_N = _most_entries(moments, everything)
    columns: list[Columns] = []
    with progress_of(what, items, "item") as advance:
        for first, last in _blocks(most_N, neighbours):
            room = int(most_N[first:last].sum())
            supports, right = _supports(moments, norm_N, everything, (first, last), room, neighbours)
            columns.append(_solved(moments, head_HH, supports, right, regularisation, what))
            advance(last - first)
    del head_HH
    return _by_rows(columns, moments.given)


def _most_entries(moments: Moments, everything: bool) -> np.ndarray:
    """Return how many entries each item's right side may have, int64 ``[N]``."""
    cells, items = moments.cells, len(moments.given)
    if everything:
        return np.full(items, items)
    lengths_U = np.diff(cells.user_offsets)
    met_N = np.add.reduceat(np.append(lengths_U[cells.users], 0), cells.item_offsets[:-1])
    most_N: np.ndarray = np.minimum(np.where(np.diff(cells.item_offsets) > 0, met_N, 0), items)
    return most_N


def _blocks(most_N: np.ndarray, neighbours: int) -> Iterator[tuple[int, int]]:
    """Yield the first item of each block, and one past its last, so that their right sides and systems fit."""
    entries = row_offsets(most_N)
    systems_N = row_offsets(np.minimum(most_N, neighbours) ** 2)
    first = 0
    while first < len(most_N):
        within = np.searchsorted(entries, entries[first] + _ENTRIES, side="right") - 1
        within = min(within, np.searchsorted(systems_N, systems_N[first] + _CELLS, side="right") - 1)
        last = max(first + 1, int(within))
        yield first, last
        first = last


def _supports(
    moments: Moments, norm_N: np.ndarray, everything: bool, block: tuple[int, int], room: int, neighbours: int
) -> tuple[ItemLists, np.ndarray]:
    """Return the supports of a block of items, nearest first, and the right sides of their systems."""
    first, last = block
    offsets = np.zeros(last - first + 1, dtype=np.int64)
    ids, sums = np.empty(room, dtype=np.int64), np.empty(room)
    right_sides(moments.cells, moments.directed, everything, first, offsets, ids, sums)
    ids, sums = ids[: offsets[-1]], sums[: offsets[-1]]
    near = (np.abs(sums) / np.maximum(norm_N[ids], 1e-300)).astype(np.float32)
    supports = best_entries((offsets, ids, near), neighbours)
    right = np.empty(len(supports.ids))
    chosen_sums(offsets, ids, sums, supports.offsets, supports.ids, np.empty(len(norm_N)), right)
    return supports, right


def _solved(
    moments: Moments, head_HH: np.ndarray, supports: ItemLists, right: np.ndarray, regularisation: float, what: str
) -> Columns:
    """Solve the systems of a block, each in the memory of its matrix."""
    lengths = supports.lengths
    places = row_offsets(lengths**2)
    flat = np.zeros(int(places[-1]))
    given = moments.cells, moments.directed, regularisation, head_HH
    systems(*given, supports.offsets, supports.ids, flat)
    # A plain loop: LAPACK takes hundreds of times as long as a step of it, and takes one system at a time.
    for row, size in enumerate(lengths.tolist()):
        own = slice(supports.offsets[row], supports.offsets[row + 1])
        matrix = flat[places[row] : places[row + 1]].reshape(size, size)
        if size:
            _, right[own], fault = lapack.dposv(matrix.T, right[own], lower=0, overwrite_a=1)
            if fault:
                raise DataError(
                    f"{what}: the system of an item's {size} nearest items is not positive definite (LAPACK says "
                    f"{fault}): regularise more"
                )
    return lengths, supports.ids.astype(np.int32), right.astype(np.float32)


def _by_rows(columns: list[Columns], item_N: np.ndarray) -> sparse.csr_matrix:
    """Join the columns of all blocks, number the items as they were, and return the matrix by rows."""
    lengths, rows, weights = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    columns.clear()
    rows = item_N.astype(np.int32)[rows]
    items = len(item_N)
    matrix = sparse.csc_matrix((weights, rows, row_offsets(lengths)), shape=(items, items)).tocsr()
    matrix.indices = item_N.astype(matrix.indices.dtype)[matrix.indices]
    matrix.has_sorted_indices = False
    matrix.sort_indices()
    return matrix
