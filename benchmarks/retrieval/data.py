"""Interactions of users with items, and splits of them. The readers of the published files are in ``readers.py``.

Users and items are numbered from 0 in the order in which the file names them first. That is also the order in which
items of equal score are ranked, so that a tie never depends on a sorting algorithm.

Legend: R interactions, U users, N items, B users of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from stages.candidate.linear.history_weights import power_weights
from stages.candidate.linear.models import recency_weights
from stages.contracts.errors import DataError


@dataclass(frozen=True)
class Interactions:
    """What users did, one row a user-item pair.

    Attributes:
        user, item: int64 ``[R]``.
        time: int64 ``[R]``, larger is later within a user; None where the data have no order.
        users, items: U and N; rows may name fewer.
        in_seconds: whether ``time`` is in seconds, the same clock for all users, and not only an order.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    users: int
    items: int
    in_seconds: bool = False

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Interactions:
        """Return some rows of the same users and items."""
        time = None if self.time is None else self.time[rows]
        return Interactions(self.user[rows], self.item[rows], time, self.users, self.items, self.in_seconds)

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """Ones where a user has an item, float32 ``[U, N]``; a user's items in ascending order."""
        matrix = self._matrix(np.ones(len(self), dtype=np.float32))
        matrix.data[:] = 1
        return matrix

    def recency_matrix(self, decay: float) -> sparse.csr_matrix:
        """Like ``matrix``, with exp(-rank / decay) for the item ``rank`` places before a user's latest.

        Raises:
            DataError: if the data have no order.
        """
        return self._matrix(recency_weights(self.rank_from_latest, decay).astype(np.float32))

    def power_matrix(self, power: float, latest: int) -> sparse.csr_matrix:
        """Like ``matrix``, with k ** -power for a user's k-th latest item, and nothing beyond the ``latest`` ones.

        Raises:
            DataError: if the data have no order.
        """
        matrix = self._matrix(power_weights(self.rank_from_latest + 1, power, latest).astype(np.float32))
        matrix.eliminate_zeros()
        return matrix

    @cached_property
    def rank_from_latest(self) -> np.ndarray:
        """How many interactions of the same user come after each, int64 ``[R]``; of equal times the later row is later.

        Raises:
            DataError: if the data have no order.
        """
        if self.time is None:
            raise DataError("these data have no order within a user: models that read one cannot run on them")
        order = np.lexsort((np.arange(len(self)), self.time, self.user))
        ends = np.cumsum(np.bincount(self.user, minlength=self.users))
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = ends[self.user[order]] - 1 - np.arange(len(self))
        return rank

    def _matrix(self, values: np.ndarray) -> sparse.csr_matrix:
        matrix = sparse.csr_matrix((values, (self.user, self.item)), shape=(self.users, self.items))
        matrix.sort_indices()
        return matrix


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows.

    Attributes:
        train: all that a model may see. It is fitted on these rows. A user's training rows are the history for the
            answers, and their items are removed from the answers.
        test: held-out pairs; users without one are not judged.
    """

    train: Interactions
    test: Interactions


def number(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Number the values of several columns together, in the order of their first appearance.

    Returns:
        int64 codes of each column, and the values in the order of their codes.
    """
    values, first, code = np.unique(np.concatenate(columns), return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(values), dtype=np.int64)
    place[order] = np.arange(len(values))
    return *np.split(place[code], np.cumsum([len(column) for column in columns])[:-1]), values[order]
