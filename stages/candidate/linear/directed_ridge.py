"""Predicts the next item from a history by ridge regression: a directed item-item model, solved exactly.

EASE models which items a user has together. Here each event is regressed on the events before it, so the weight from
item i to item j differs from the weight from j to i. Choi et al., "Session-aware Linear Item-Item Models for
Session-based Recommendation", WWW 2021, regress the rest of a session on its beginning in the same way. numpy and scipy
only.

Legend: N items, R events, B histories of a block, b events of a chunk, K places back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.ragged import places_in_rows, run_offsets

_BYTES = 20
"""Bytes of an item-item cell: the Gram matrix and the right side in float64, and the weights that stay in float32."""
_CHUNK = 1 << 13
_COLUMNS = 1024
_PRODUCT_BYTES = 40
"""Bytes of a cell of a sparse product while it is added: its value, its place, and the sum that it is added to."""
_HISTORY_BYTES = 80
"""Bytes of an item of a chunk's histories: its event, its place back, its weight, and two sparse matrices of them."""
_EVENT_BYTES = 40
_WORKSPACE_BYTES = 32_000_000
"""What the linear algebra takes for itself."""
_SPARSE_COST = 10
"""Cost of a product of two non-zeros of sparse matrices, relative to one of dense matrices."""


def power_weights(back: np.ndarray, power: float, latest: int) -> np.ndarray:
    """Return back ** -power, float64: the weight of an item ``back`` places back, from 1; 0 beyond ``latest``.

    Raises:
        ConfigError: if a number is out of range.
    """
    if not power >= 0 or latest < 1:
        raise ConfigError(f"power = {power}, latest = {latest}: allowed are a number from 0 and a whole number from 1")
    back = np.asarray(back, dtype=np.float64)
    weights: np.ndarray = np.where(back <= latest, np.maximum(back, 1) ** -power, 0.0)
    return weights


def ridge_gigabytes(items: int, longest: int, events: int = 0) -> float:
    """Return the 10^9 bytes that fitting ``DirectedRidge`` takes at most.

    Args:
        items: N.
        longest: items of the longest history that counts.
        events: R.
    """
    chunk = _PRODUCT_BYTES * min(_COLUMNS, items) * items
    if _SPARSE_COST * longest**2 >= items**2:  # see ``_add_gram``: histories and their product may be dense
        chunk = max(chunk, 4 * items**2 + 2 * 4 * _CHUNK * items)
    chunk += _HISTORY_BYTES * min(_CHUNK, events) * longest
    fixed = _EVENT_BYTES * events + _WORKSPACE_BYTES
    return (max(16 * items**2 + chunk, _BYTES * items**2) + fixed) / 1e9


@dataclass(frozen=True)
class DirectedRidge:
    """``weights`` is float32 ``[N, N]``, from an item of a history to the next item."""

    weights: np.ndarray

    @classmethod
    def fit(
        cls,
        user_R: np.ndarray,
        item_R: np.ndarray,
        items: int,
        regularisation: float,
        power: float,
        latest: int,
        memory_gb: float = 4.0,
    ) -> DirectedRidge:
        """Minimise |X W - Y|^2 + regularisation |W|^2; rows of X are histories, rows of Y the items that followed.

        Args:
            user_R: int64, users one after the other.
            item_R: int64, each user's items, oldest first.
            items: N.
            regularisation: above 0.
            power: the item k places back weighs k ** -power.
            latest: items of a history that count, the newest ones.
            memory_gb: what fitting may take, see ``ridge_gigabytes``; 20 N^2 bytes are needed for a large catalogue.

        Raises:
            ConfigError: if a number is out of range, or the catalogue is too large for ``memory_gb``.
            DataError: if no user has two events, or users are mixed.
        """
        if not regularisation > 0:
            raise ConfigError(f"regularisation = {regularisation}: allowed is a number above 0")
        place_R = _places(user_R)
        longest = min(latest, int(place_R.max(initial=0)))
        if (needed := ridge_gigabytes(items, longest, len(item_R))) > memory_gb:
            raise ConfigError(
                f"directed ridge: {items:,} items need {needed:.1f} GB for dense item-item matrices, memory_gb = "
                f"{memory_gb:g}: allow more, or select fewer items"
            )
        # In Fortran order LAPACK solves in the memory of the two matrices; otherwise it would copy both.
        gram_NN, right_NN = (np.zeros((items, items), order="F") for _ in range(2))
        targets = np.flatnonzero(place_R > 0)
        if not len(targets):
            raise DataError("directed ridge: no user has two events; allowed are histories and what followed them")
        for start in range(0, len(targets), _CHUNK):
            rows_b = targets[start : start + _CHUNK]
            history_bN = _histories(rows_b, place_R, item_R, items, power, latest)
            _add_gram(gram_NN, history_bN)
            _add_right(right_NN, history_bN, item_R[rows_b])
        gram_NN[np.diag_indices(items)] += regularisation
        factor = linalg.cho_factor(gram_NN, lower=True, overwrite_a=True, check_finite=False)
        return cls(linalg.cho_solve(factor, right_NN, overwrite_b=True, check_finite=False).astype(np.float32))

    def score(self, history_BN: sparse.csr_matrix) -> np.ndarray:
        """Return float32 scores ``[B, N]`` of the catalogue for histories weighted by ``power_weights``.

        Raises:
            DataError: if the histories are over another number of items.
        """
        if history_BN.shape[1] != len(self.weights):
            raise DataError(f"histories are over {history_BN.shape[1]} items, the model has {len(self.weights)}")
        scores_BN: np.ndarray = history_BN.astype(np.float32) @ self.weights
        return scores_BN


def _places(user_R: np.ndarray) -> np.ndarray:
    """Return how many events of the same user come before each, int64 ``[R]``.

    Raises:
        DataError: if a user's events are not together.
    """
    sizes = np.diff(run_offsets(user_R))
    if len(np.unique(user_R)) != len(sizes):
        raise DataError("directed ridge: the events of a user are not together; allowed are users one after the other")
    return places_in_rows(sizes)


def _histories(
    rows_b: np.ndarray, place_R: np.ndarray, item_R: np.ndarray, items: int, power: float, latest: int
) -> sparse.csr_matrix:
    """Return weighted histories before some events, float64 ``[b, N]``."""
    length_b = np.minimum(place_R[rows_b], latest)
    row = np.repeat(np.arange(len(rows_b)), length_b)
    back = 1 + places_in_rows(length_b)
    columns = item_R[rows_b[row] - back]
    return sparse.csr_matrix((power_weights(back, power, latest), (row, columns)), shape=(len(rows_b), items))


def _add_gram(gram_NN: np.ndarray, history_bN: sparse.csr_matrix) -> None:
    pairs = float((np.diff(history_bN.indptr).astype(np.float64) ** 2).sum())
    if _SPARSE_COST * pairs < history_bN.shape[0] * float(history_bN.shape[1]) ** 2:
        by_item = history_bN.tocsc()
        for start in range(0, len(gram_NN), _COLUMNS):
            found = (history_bN.T @ by_item[:, start : start + _COLUMNS]).tocoo()
            gram_NN[found.row, found.col + start] += found.data
    else:
        dense_bN = history_bN.astype(np.float32).toarray()
        gram_NN += dense_bN.T @ dense_bN


def _add_right(right_NN: np.ndarray, history_bN: sparse.csr_matrix, target_b: np.ndarray) -> None:
    shape = history_bN.shape
    next_bN = sparse.csr_matrix((np.ones(shape[0]), (np.arange(shape[0]), target_b)), shape=shape)
    found = (history_bN.T @ next_bN).tocoo()
    right_NN[found.row, found.col] += found.data
