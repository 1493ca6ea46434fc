"""The definition of a touch, and of the first touch of a user-item pair, for all stages.

A *touch* is an event in which a user acted on an item. An *exposure* is an event that says that the item was shown; it
is not a touch. Requests, baselines, the popular list, training histories and the serving state all use this definition.
The recipe's ``features.exposure_signals``, kept in ``snapshot.json``, lists the signals that are exposures.

Shapes: B requests, F first touches, R events, S signals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.tables import EventTable

EXPOSURE_SIGNALS = ("impression",)
"""Signals that are exposures by default."""


def touching(signals: Sequence[str], exposure_signals: Sequence[str]) -> np.ndarray:
    """Return bool ``[S]`` by signal code: whether events of the signal are touches.

    Args:
        signals: names by code.
        exposure_signals: names that say that an item was shown; those that are not among ``signals`` do not matter.
    """
    return np.array([name not in exposure_signals for name in signals], dtype=bool)


def first_touches(events: EventTable, touching_S: np.ndarray) -> np.ndarray:
    """Return int64 ``[F]`` rows of the first touch of every user-item pair, sorted by (user, item).

    Args:
        events: in time order; of touches of a pair at the same time the first row counts.
        touching_S: bool ``[S]``, see ``touching``.
    """
    rows = np.flatnonzero(touching_S[events.signal])
    order, first = by_pair(events.user_index[rows], events.item_index[rows])
    first_F: np.ndarray = rows[order[first]]
    return first_F


def by_pair(user_index: np.ndarray, item_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return int64 ``[R]`` rows sorted by (user, item, row), and bool ``[R]``: which of these begin a pair.

    Args:
        user_index: int64 ``[R]``, of touches in time order.
        item_index: int64 ``[R]``.
    """
    key = user_index * (int(item_index.max(initial=-1)) + 1) + item_index
    order = np.argsort(key, kind="stable")
    return order, np.diff(key[order], prepend=-1) != 0


class TouchedBefore:
    """What users had touched before given times.

    Args:
        user_index, item_index, time_ms: int64 ``[F]``, the first touch of each user-item pair in time order.
    """

    def __init__(self, user_index: np.ndarray, item_index: np.ndarray, time_ms: np.ndarray) -> None:
        order = np.argsort(user_index, kind="stable")
        self._times, self._items = time_ms, item_index[order]
        self._keys = user_index[order] * (len(order) + 1) + order  # ascending: a user's touches lie in time order

    def ends(self, user_index: np.ndarray, time_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where each user's touches begin, and where those strictly before each time end, int64 ``[B]``."""
        first = user_index * (len(self._keys) + 1)
        before = np.searchsorted(self._times, time_ms, side="left")
        return np.searchsorted(self._keys, first), np.searchsorted(self._keys, first + before)

    def items(self, user_index: np.ndarray, time_ms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the items that each user touched strictly before each time.

        Args:
            user_index: int64 ``[B]``, 0 or more; a user without touches has none.
            time_ms: int64 ``[B]``.

        Returns:
            Offsets int64 ``[B + 1]``, and the int64 items of one request after the other, oldest first.
        """
        starts, ends = self.ends(user_index, time_ms)
        return row_offsets(ends - starts), self._items[ranges(starts, ends - starts)]
