"""Predicts the next item from a history by ridge regression: a directed item-item model, solved exactly.

EASE models which items a user has together. Here each event is regressed on the events before it, so the weight from
item i to item j differs from the weight from j to i. Choi et al., "Session-aware Linear Item-Item Models for
Session-based Recommendation", WWW 2021, regress the rest of a session on its beginning in the same way. numpy and scipy
only.

Legend: U users, N items, R events, B histories of a block, b events of a chunk, K places back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg, sparse

from stages.candidate.linear.config import MemoryLimit, RidgeSettings
from stages.candidate.linear.history_weights import power_weights
from stages.candidate.linear.method import Method, method_of, require, scores_of
from stages.candidate.linear.moments import directed_moments
from stages.candidate.linear.nearest_regression import nearest_gigabytes, nearest_regression
from stages.contracts.errors import DataError
from stages.contracts.ragged import places_in_rows, run_offsets

_MEMORY_GB = MemoryLimit().memory_gb
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


def ridge_method(
    settings: RidgeSettings, users: int, items: int, events: int, longest: int, memory_gb: float
) -> Method:
    """Return how the directed ridge is solved within ``memory_gb``, and what this takes, which may be more.

    Args:
        settings: the method, and how many neighbours a sparse one has.
        users: U.
        items: N.
        events: R.
        longest: events of a user, at most.
        memory_gb: in 10^9 bytes.
    """
    latest = max(1, min(settings.latest, longest - 1))
    found = nearest_gigabytes(users, items, events, settings.neighbours, latest) + _EVENT_BYTES * events / 1e9
    return method_of(settings, ridge_gigabytes(items, latest, events), found, memory_gb)


@dataclass(frozen=True)
class DirectedRidge:
    """Predicts the next item.

    Attributes:
        weights: float32 ``[N, N]``, from an item of a history to the next item, a scipy CSR matrix where ``method`` is
            ``sparse``.
        method: ``dense`` or ``sparse``, see ``RidgeSettings``.
    """

    weights: np.ndarray | sparse.csr_matrix
    method: str = "dense"

    @classmethod
    def fit(
        cls, user_R: np.ndarray, item_R: np.ndarray, items: int, settings: RidgeSettings, memory_gb: float = _MEMORY_GB
    ) -> DirectedRidge:
        """Minimise |X W - Y|^2 + regularisation |W|^2; rows of X are histories, rows of Y the items that followed.

        The sparse method regresses each item on its nearest ones, see ``nearest_regression``.

        Args:
            user_R: int64, users one after the other.
            item_R: int64, each user's items, oldest first.
            items: N.
            settings: how histories weigh, the regularisation, and the method.
            memory_gb: what fitting may take, see ``ridge_method``; 20 N^2 bytes are needed for a dense one of a large
                catalogue.

        Raises:
            ConfigError: if the catalogue is too large for ``memory_gb``.
            DataError: if no user has two events, or users are mixed.
        """
        place_R = _places(user_R)
        longest = 1 + int(place_R.max(initial=0))
        if longest < 2:
            raise DataError("directed ridge: no user has two events; allowed are histories and what followed them")
        users = int((place_R == 0).sum())
        method = ridge_method(settings, users, items, len(item_R), longest, memory_gb)
        require("directed ridge", items, method, memory_gb)
        if method.name == "sparse":
            moments = directed_moments(user_R, item_R, items, settings.power, settings.latest)
            found = nearest_regression(moments, settings.regularisation, settings.neighbours, "directed ridge")
            return cls(found, "sparse")
        return cls(_dense_weights(place_R, item_R, items, settings))

    def score(self, history_BN: sparse.csr_matrix) -> np.ndarray:
        """Return float32 scores ``[B, N]`` of the catalogue for histories weighted by ``power_weights``.

        Raises:
            DataError: if the histories are over another number of items.
        """
        return scores_of(history_BN, self.weights)


def _dense_weights(place_R: np.ndarray, item_R: np.ndarray, items: int, settings: RidgeSettings) -> np.ndarray:
    # In Fortran order LAPACK solves in the memory of the two matrices; otherwise it would copy both.
    gram_NN, right_NN = (np.zeros((items, items), order="F") for _ in range(2))
    targets = np.flatnonzero(place_R > 0)
    for start in range(0, len(targets), _CHUNK):
        rows_b = targets[start : start + _CHUNK]
        history_bN = _histories(rows_b, place_R, item_R, items, settings.power, settings.latest)
        _add_gram(gram_NN, history_bN)
        _add_right(right_NN, history_bN, item_R[rows_b])
    gram_NN[np.diag_indices(items)] += settings.regularisation
    factor = linalg.cho_factor(gram_NN, lower=True, overwrite_a=True, check_finite=False)
    solved: np.ndarray = linalg.cho_solve(factor, right_NN, overwrite_b=True, check_finite=False)
    return solved.astype(np.float32)


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
