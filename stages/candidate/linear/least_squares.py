"""Solves the weighted least squares of implicit ALS, a row of the user-item matrix at a time.

Legend: N items, D factors, R rows, n cells of a row.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from stages.contracts.errors import DataError


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

    Raises:
        DataError: if a system cannot be solved.
    """
    factors = other_ND.shape[1]
    shared_DD, diagonal = unobserved * (other_ND.T @ other_ND), np.diag_indices(factors)
    weights = confidence * np.asarray(history_RN.data, dtype=np.float64)
    solved_RD = np.zeros((history_RN.shape[0], factors))
    # A plain loop: LAPACK and the product of a row's vectors take several times as long as a step of it.
    for row in np.flatnonzero(np.diff(history_RN.indptr)):
        own = slice(history_RN.indptr[row], history_RN.indptr[row + 1])
        vectors_nD = other_ND[history_RN.indices[own]]
        weighted_Dn = vectors_nD.T * weights[own]
        system_DD = shared_DD + weighted_Dn @ vectors_nD
        system_DD[diagonal] += penalty_R[row]
        _, solved_RD[row], fault = lapack.dposv(system_DD.T, weighted_Dn.sum(axis=1), overwrite_a=1)
        if fault:
            raise DataError(
                f"implicit ALS: the system of row {row} is not positive definite (LAPACK says {fault}): regularise more"
            )
    return solved_RD
