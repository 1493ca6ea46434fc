"""Models of the user-item matrix that are solved exactly: EASE and implicit ALS.

Neither stores rows of users: both score a history, so a new user is treated like any other. numpy and scipy only.

Legend: U users, N items, B histories of a block, D factors, R rows of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from stages.candidate.linear.config import EaseSettings, ImplicitAlsSettings, MemoryLimit
from stages.candidate.linear.least_squares import least_squares
from stages.candidate.linear.method import Method, method_of, require, scores_of
from stages.candidate.linear.moments import weighted_moments
from stages.candidate.linear.nearest_regression import nearest_gigabytes, nearest_regression
from stages.contracts.errors import ConfigError, DataError

_MEMORY_GB = MemoryLimit().memory_gb
_COLUMNS = 1024
_UNOBSERVED = 8.0
"""How many times as much as the touches all cells weigh together, where no weight is given."""
_EASE_BYTES = 12
"""Bytes of an item-item cell while EASE is fitted: float64 to invert, and the float32 that stays."""
_CELL_BYTES = 16
"""Bytes of a cell of a sparse matrix: a float64 and its column, which takes 8 bytes in the largest matrices."""
_WORKSPACE_BYTES = 32_000_000
"""What the linear algebra takes for itself."""


def recency_weights(rank: np.ndarray, decay: float) -> np.ndarray:
    """Return exp(-rank / decay), float64: the weight of an item ``rank`` places before the latest one.

    Raises:
        ConfigError: if ``decay`` is not above 0.
    """
    if not decay > 0:
        raise ConfigError(f"decay = {decay}: allowed is a number above 0")
    weights: np.ndarray = np.exp(-np.asarray(rank, dtype=np.float64) / decay)
    return weights


def ease_gigabytes(items: int, cells: int = 0) -> float:
    """Return the 10^9 bytes that fitting EASE on so many items takes: two item-item matrices, and the histories.

    With a small catalogue, filling the first matrix takes more: a block of columns is both sparse and dense then.
    """
    filling = 8 * items**2 + (8 + _CELL_BYTES) * min(_COLUMNS, items) * items + 2 * _CELL_BYTES * cells
    return (max(filling, _EASE_BYTES * items**2 + _CELL_BYTES * cells) + _WORKSPACE_BYTES) / 1e9


def ease_method(settings: EaseSettings, users: int, items: int, cells: int, memory_gb: float) -> Method:
    """Return how EASE is solved within ``memory_gb``, and what this takes, which may be more.

    Args:
        settings: the method, and how many neighbours a sparse one has.
        users: U.
        items: N.
        cells: of the histories.
        memory_gb: in 10^9 bytes.
    """
    found = nearest_gigabytes(users, items, cells, settings.neighbours) + 2 * _CELL_BYTES * cells / 1e9
    return method_of(settings, ease_gigabytes(items, cells), found, memory_gb)


def als_gigabytes(users: int, items: int, cells: int, factors: int) -> float:
    """Return the 10^9 bytes that fitting implicit ALS takes: factors, and the matrix by users and by items.

    While one side is solved for it has two sets of factors; a row's cells take two of their vectors.
    """
    vectors = 8 * factors * (users + items + max(users, items)) + 24 * max(users, items)
    row = 2 * 8 * factors * max(users, items) + 3 * 8 * factors**2
    return (vectors + row + (2 * _CELL_BYTES + 8) * cells + _WORKSPACE_BYTES) / 1e9


@dataclass(frozen=True)
class Ease:
    """A linear item-item autoencoder.

    Attributes:
        weights: float32 ``[N, N]`` with a diagonal of zeros, a scipy CSR matrix where ``method`` is ``sparse``.
        method: ``dense`` or ``sparse``, see ``EaseSettings``.
    """

    weights: np.ndarray | sparse.csr_matrix
    method: str = "dense"

    @classmethod
    def fit(cls, history_UN: sparse.csr_matrix, settings: EaseSettings, memory_gb: float = _MEMORY_GB) -> Ease:
        """Minimise |X - X W|^2 + regularisation |W|^2 over W with a diagonal of zeros.

        Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019, equation 8: with P the inverse of
        X'X + regularisation I, W[i, j] = -P[i, j] / P[j, j]. That is the ridge regression of each item on all others;
        the sparse method regresses it on its nearest ones, see ``nearest_regression``.

        Args:
            history_UN: what users did, weights of any sign; 1 in the paper.
            settings: the regularisation, and the method.
            memory_gb: in 10^9 bytes, see ``ease_method``.

        Raises:
            ConfigError: if the catalogue is too large for ``memory_gb``.
            DataError: if the matrix is empty or not finite.
        """
        history_UN = _checked(history_UN)
        users, items = history_UN.shape
        method = ease_method(settings, users, items, history_UN.nnz, memory_gb)
        require("EASE", items, method, memory_gb)
        if method.name == "sparse":
            moments = weighted_moments(history_UN)
            return cls(nearest_regression(moments, settings.regularisation, settings.neighbours, "EASE"), "sparse")
        return cls(_zero_diagonal_weights(_inverse(_gram(history_UN, settings.regularisation))))

    def score(self, history_BN: sparse.csr_matrix) -> np.ndarray:
        """Return float32 scores ``[B, N]`` of the catalogue; items of the history are scored as well.

        Raises:
            DataError: if the histories are over another number of items.
        """
        return scores_of(history_BN, self.weights)


@dataclass(frozen=True)
class ImplicitAls:
    """``item_factors``, float64 ``[N, D]``; and what folds a history in: the settings, and the weight of all cells."""

    item_factors: np.ndarray
    settings: ImplicitAlsSettings
    unobserved_weight: float

    @classmethod
    def fit(cls, history_UN: sparse.csr_matrix, settings: ImplicitAlsSettings, seed: int) -> ImplicitAls:
        """Alternate exact least squares over users and items.

        Hu, Koren and Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", 2008, in the form of Rendle,
        Krichene, Zhang and Koren, "Revisiting the Performance of iALS on Item Recommendation Benchmarks", RecSys 2022,
        section 3: minimise the sum of c (1 - x'y)^2 over the cells of the history, c being ``confidence`` times the
        value; plus ``unobserved_weight`` times the sum of (x'y)^2 over all cells; plus the squared factors, those of a
        user times ``regularisation`` (the sum of the user's c + unobserved_weight N)^regularisation_power, and those of
        an item likewise. The first factors are normal with a standard deviation of 0.1 / sqrt(D), as there.

        Args:
            history_UN: what users did; values above 0.
            settings: factors, weights, penalty and iterations.
            seed: of the first factors.

        Raises:
            DataError: if the matrix is empty, or a value is not finite and above 0.
        """
        history_UN = _checked(history_UN, positive=True)
        history_NU = history_UN.T.tocsr()
        factors, unobserved = settings.factors, _unobserved_weight(settings, history_UN)
        item_ND = np.random.default_rng(seed).normal(0, 0.1 / np.sqrt(factors), (history_UN.shape[1], factors))
        for _ in range(settings.iterations):
            user_UD = _best_factors(history_UN, item_ND, settings, unobserved)
            item_ND = _best_factors(history_NU, user_UD, settings, unobserved)
        return cls(item_ND, settings, unobserved)

    def user_vectors(self, history_BN: sparse.csr_matrix) -> np.ndarray:
        """Return the best factors of each history, float64 ``[B, D]``; zeros for an empty one.

        Raises:
            DataError: if the histories are over another number of items.
        """
        _check_items(history_BN, len(self.item_factors))
        return _best_factors(history_BN, self.item_factors, self.settings, self.unobserved_weight)

    def score(self, history_BN: sparse.csr_matrix) -> np.ndarray:
        """Return float32 scores ``[B, N]`` of the catalogue; items of the history are scored as well."""
        scores_BN: np.ndarray = (self.user_vectors(history_BN) @ self.item_factors.T).astype(np.float32)
        return scores_BN


def _checked(history_UN: sparse.csr_matrix, positive: bool = False) -> sparse.csr_matrix:
    history_UN = sparse.csr_matrix(history_UN, dtype=np.float64)
    if not history_UN.nnz:
        raise DataError(f"the history matrix {list(history_UN.shape)} is empty")
    if not np.isfinite(history_UN.data).all() or (positive and history_UN.data.min() <= 0):
        allowed = "finite values above 0" if positive else "finite values"
        raise DataError(f"the history matrix {list(history_UN.shape)} must hold {allowed}")
    return history_UN


def _check_items(history_BN: sparse.csr_matrix, items: int) -> None:
    if history_BN.shape[1] != items:
        raise DataError(f"histories are over {history_BN.shape[1]} items, the model has {items}")


def _gram(history_UN: sparse.csr_matrix, regularisation: float) -> np.ndarray:
    """Return X'X + regularisation I, float64 ``[N, N]`` in Fortran's order, block by block."""
    items = history_UN.shape[1]
    gram_NN = np.empty((items, items), order="F")
    by_item = history_UN.tocsc()
    for start in range(0, items, _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        gram_NN[:, columns] = (history_UN.T @ by_item[:, columns]).toarray()
    gram_NN[np.diag_indices(items)] += regularisation
    return gram_NN


def _inverse(gram_NN: np.ndarray) -> np.ndarray:
    """Return the inverse of a positive definite matrix in its own memory, from its Cholesky factor."""
    gram_NN, fault = lapack.dpotrf(gram_NN, lower=1, overwrite_a=1)
    if not fault:
        gram_NN, fault = lapack.dpotri(gram_NN, lower=1, overwrite_c=1)
    if fault:
        raise DataError(f"EASE: the item-item matrix is not positive definite (LAPACK says {fault}): regularise more")
    for start in range(0, len(gram_NN), _COLUMNS):
        stop = min(start + _COLUMNS, len(gram_NN))
        gram_NN[start:stop, stop:] = gram_NN[stop:, start:stop].T
        square = np.tril(gram_NN[start:stop, start:stop])
        gram_NN[start:stop, start:stop] = square + np.tril(square, -1).T
    return gram_NN


def _zero_diagonal_weights(inverse_NN: np.ndarray) -> np.ndarray:
    diagonal_N = np.diagonal(inverse_NN).copy()
    weights_NN = np.empty(inverse_NN.shape, dtype=np.float32)
    for start in range(0, len(inverse_NN), _COLUMNS):
        rows = slice(start, start + _COLUMNS)
        # Written into the weights directly: a float64 block beside both matrices would raise the peak memory.
        np.divide(inverse_NN[rows], -diagonal_N, out=weights_NN[rows], casting="same_kind")
    np.fill_diagonal(weights_NN, 0)
    return weights_NN


def _unobserved_weight(settings: ImplicitAlsSettings, history_UN: sparse.csr_matrix) -> float:
    """Return the weight of all cells: that of the settings, or one that follows from the touches."""
    if settings.unobserved_weight is not None:
        return settings.unobserved_weight
    users, items = history_UN.shape
    return _UNOBSERVED * settings.confidence * float(history_UN.sum()) / float(users * items)


def _best_factors(
    history_RN: sparse.csr_matrix, other_ND: np.ndarray, settings: ImplicitAlsSettings, unobserved: float
) -> np.ndarray:
    """Return the factors ``[R, D]`` that are best for fixed factors of the other side."""
    confidence = settings.confidence
    touched_R = confidence * np.asarray(history_RN.sum(axis=1), dtype=np.float64).ravel()
    weight_R = touched_R + unobserved * history_RN.shape[1]
    penalty_R = settings.regularisation * weight_R**settings.regularisation_power
    return least_squares(history_RN, other_ND, confidence, unobserved, penalty_R)
