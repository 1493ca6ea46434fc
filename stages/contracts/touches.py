"""What a touch is, and which touch of a user-item pair is the first: the one definition for all stages.

A *touch* is an event by which a user turned to an item. An event that says that the item was shown, an
*exposure*, is none. Requests, baselines, the popular list, training histories and the serving state
all read it here; which signals are exposures is the recipe's ``features.exposure_signals``, kept in ``snapshot.json``.

Shapes: S signals, R events, F first touches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.contracts.tables import EventTable

EXPOSURE_SIGNALS = ("impression",)
"""Exposures where a recipe names no others."""


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
        events: in time order; of a pair's touches at one time the upper row is the first.
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
