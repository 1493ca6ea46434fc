"""Solves the weighted least squares of implicit ALS, a row of the user-item matrix at a time, in compiled code.

Both sides are turned to the eigenvectors of Y'Y, where the part of a system that all rows share is diagonal. A row of
few cells is then a system of its cells, and one of many cells a system of the factors. Of each symmetric system the
upper half is filled and factorised (Cholesky, A = U'U), in memory that all rows share.

Legend: N items, D factors, R rows, n cells of a row.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from stages.contracts.compiled import compiled, frozen, in_place_sum

_ROWS = 4096
"""Rows that are turned back at a time."""


def least_squares(
    history_RN: sparse.csr_matrix, other_ND: np.ndarray, confidence: float, unobserved: float, penalty_R: np.ndarray
) -> np.ndarray:
    """Return the factors ``[R, D]`` that are best for fixed factors of the other side; zeros for an empty row.

    Row r solves (unobserved Y'Y + Y'CY + penalty[r] I) x = Y'C p, where C holds ``confidence`` times the row's values,
    and p is 1 in the row's own cells.

    Args:
        history_RN: values above 0.
        other_ND: Y.
        confidence: factor of the values.
        unobserved: weight of all cells.
        penalty_R: float64, above 0.
    """
    eigenvalues_D, turn_DD = np.linalg.eigh(other_ND.T @ other_ND)
    solved_RD = np.empty((history_RN.shape[0], other_ND.shape[1]))
    _solve_rows(
        frozen(history_RN.indptr.astype(np.int64)),
        frozen(history_RN.indices.astype(np.int64)),
        frozen(history_RN.data.astype(np.float64)),
        frozen(other_ND @ turn_DD),
        frozen(unobserved * np.maximum(eigenvalues_D, 0)),
        float(confidence),
        frozen(penalty_R),
        solved_RD,
    )
    for start in range(0, len(solved_RD), _ROWS):
        solved_RD[start : start + _ROWS] = solved_RD[start : start + _ROWS] @ turn_DD.T
    return solved_RD


@in_place_sum
def _subtract_four(
    target: np.ndarray,
    one: np.ndarray,
    two: np.ndarray,
    three: np.ndarray,
    four: np.ndarray,
    by: tuple[float, float, float, float],
) -> None:
    """Subtract multiples of four vectors: the target is loaded and stored once for all of them."""
    first, second, third, fourth = by
    for column in range(len(target)):
        target[column] -= first * one[column] + second * two[column] + third * three[column] + fourth * four[column]


@in_place_sum
def _subtract(target: np.ndarray, other: np.ndarray, by: float) -> None:
    """Subtract a multiple of a vector."""
    for column in range(len(target)):
        target[column] -= by * other[column]


@in_place_sum
def _dot(one: np.ndarray, other: np.ndarray) -> float:
    total = 0.0
    for column in range(len(one)):
        total += one[column] * other[column]
    return total


@in_place_sum
def _add_four(
    upper: np.ndarray,
    lower: np.ndarray,
    one: np.ndarray,
    two: np.ndarray,
    three: np.ndarray,
    four: np.ndarray,
    by: tuple[float, float, float, float],
) -> None:
    """Add four outer products to two rows of a matrix, so that each vector is loaded once for both."""
    first, second, third, fourth = by
    a1, a2, a3, a4 = first * one[0], second * two[0], third * three[0], fourth * four[0]
    b1, b2, b3, b4 = first * one[1], second * two[1], third * three[1], fourth * four[1]
    for column in range(len(upper)):
        c1, c2, c3, c4 = one[column], two[column], three[column], four[column]
        upper[column] += a1 * c1 + a2 * c2 + a3 * c3 + a4 * c4
        lower[column] += b1 * c1 + b2 * c2 + b3 * c3 + b4 * c4


@in_place_sum
def _add_cells(system_DD: np.ndarray, other_ND: np.ndarray, columns: np.ndarray, weights: np.ndarray) -> None:
    """Add Y'CY to the upper half; of every second row, one place below the diagonal is written too."""
    factors, n_cells = len(system_DD), len(columns)
    fours, pairs = n_cells - n_cells % 4, factors - factors % 2
    for cell in range(0, fours, 4):
        one, two = other_ND[columns[cell]], other_ND[columns[cell + 1]]
        three, four = other_ND[columns[cell + 2]], other_ND[columns[cell + 3]]
        by = (weights[cell], weights[cell + 1], weights[cell + 2], weights[cell + 3])
        for row in range(0, pairs, 2):
            upper, lower = system_DD[row, row:], system_DD[row + 1, row:]
            _add_four(upper, lower, one[row:], two[row:], three[row:], four[row:], by)
        if pairs < factors:
            last = factors - 1
            first, second, third, fourth = one[last], two[last], three[last], four[last]
            squares = by[0] * first**2 + by[1] * second**2 + by[2] * third**2 + by[3] * fourth**2
            system_DD[last, last] += squares
    for cell in range(fours, n_cells):
        vector = other_ND[columns[cell]]
        for row in range(factors):
            _subtract(system_DD[row, row:], vector[row:], -weights[cell] * vector[row])


@in_place_sum
def _factorise(system: np.ndarray) -> None:
    """Replace the upper half of a positive definite matrix by its Cholesky factor U."""
    for row in range(len(system)):
        target = system[row, row:]
        fours = row - row % 4
        for above in range(0, fours, 4):
            one, two = system[above, row:], system[above + 1, row:]
            three, four = system[above + 2, row:], system[above + 3, row:]
            _subtract_four(target, one, two, three, four, (one[0], two[0], three[0], four[0]))
        for above in range(fours, row):
            _subtract(target, system[above, row:], system[above, row])
        scale = 1.0 / np.sqrt(target[0])
        for column in range(len(target)):
            target[column] *= scale


@in_place_sum
def _substitute(factor: np.ndarray, right: np.ndarray) -> None:
    """Replace the right side b by the solution of U'U x = b."""
    for row in range(len(right)):
        right[row] /= factor[row, row]
        _subtract(right[row + 1 :], factor[row, row + 1 :], right[row])
    for row in range(len(right) - 1, -1, -1):
        right[row] = (right[row] - _dot(factor[row, row + 1 :], right[row + 1 :])) / factor[row, row]


@in_place_sum
def _solve_by_cells(
    system: np.ndarray,
    other_ND: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
    diagonal_D: np.ndarray,
    room: np.ndarray,
    solved_D: np.ndarray,
) -> None:
    """Solve a row of few cells.

    With S the diagonal, (S + Y'CY) x = Y'C p has the solution x = S^-1 Y'z, where (C^-1 + Y S^-1 Y') z = p (Woodbury).
    ``system`` and ``room`` are memory for n x n and for n + D numbers.
    """
    n_cells, factors = len(columns), len(diagonal_D)
    right, scaled = room[:n_cells], room[n_cells : n_cells + factors]
    for cell in range(n_cells):
        vector = other_ND[columns[cell]]
        for factor in range(factors):
            scaled[factor] = vector[factor] / diagonal_D[factor]
        for after in range(cell, n_cells):
            system[cell, after] = _dot(scaled, other_ND[columns[after]])
        system[cell, cell] += 1.0 / weights[cell]
        right[cell] = 1.0
    _factorise(system)
    _substitute(system, right)
    for cell in range(n_cells):
        _subtract(solved_D, other_ND[columns[cell]], -right[cell])
    for factor in range(factors):
        solved_D[factor] /= diagonal_D[factor]


@compiled
def _solve_rows(
    offsets: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    other_ND: np.ndarray,
    shared_D: np.ndarray,
    confidence: float,
    penalty_R: np.ndarray,
    solved_RD: np.ndarray,
) -> None:
    """Write the solution of each row to ``solved_RD``; all factors are turned so that unobserved Y'Y is diagonal."""
    factors = other_ND.shape[1]
    system_DD, diagonal_D, room = np.empty((factors, factors)), np.empty(factors), np.empty(2 * factors)
    longest = 0
    for row in range(len(solved_RD)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    weights_n = np.empty(longest)
    for row in range(len(solved_RD)):
        own, n_cells = columns[offsets[row] : offsets[row + 1]], offsets[row + 1] - offsets[row]
        weights, solved_D = weights_n[:n_cells], solved_RD[row]
        solved_D[:] = 0.0
        if n_cells == 0:
            continue
        for cell in range(n_cells):
            weights[cell] = confidence * values[offsets[row] + cell]
        for factor in range(factors):
            diagonal_D[factor] = shared_D[factor] + penalty_R[row]
        if 2 * n_cells <= factors:
            system = system_DD[:n_cells, :n_cells]
            _solve_by_cells(system, other_ND, own, weights, diagonal_D, room, solved_D)
            continue
        system_DD[:] = 0.0
        for factor in range(factors):
            system_DD[factor, factor] = diagonal_D[factor]
        for cell in range(n_cells):
            _subtract(solved_D, other_ND[own[cell]], -weights[cell])
        _add_cells(system_DD, other_ND, own, weights)
        _factorise(system_DD)
        _substitute(system_DD, solved_D)
