"""Inputs of the user tower: a user's history with signals and ages, and the context of the request.

Shapes: B users, L history length, X context columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.contracts.snapshot import Task
from stages.features.config import FeatureConfig
from stages.features.state import History

UNKNOWN_USER = -1


class Moment(NamedTuple):
    """A request's user, time and context, for which the user tower computes a vector.

    Attributes:
        time_ms: time of the request, int ms UTC.
        user: index of the user; it may be UNKNOWN_USER or a user that the tower was not trained with.
        context: one code a context column, 0 if the value is unknown.
    """

    time_ms: int
    user: int = UNKNOWN_USER
    context: tuple[int, ...] = ()


@dataclass(frozen=True)
class TowerInputs:
    """The inputs that a user tower may read; each tower takes the inputs that it was built with.

    Attributes:
        items: int64 ``[B, L]``, newest first, padded on the right with the number of items.
        signals: int64 ``[B, L]`` codes of signals, 0 at padding.
        ages: int64 ``[B, L]`` seconds between the first touch and the request, 0 at padding.
        users: int64 ``[B]``, as ``Moment.user``.
        context: int64 ``[B, X]``, as ``Moment.context``.
    """

    items: np.ndarray
    signals: np.ndarray
    ages: np.ndarray
    users: np.ndarray
    context: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def named(self) -> dict[str, np.ndarray]:
        """Return the arrays by the names of the exported tower's inputs."""
        return {
            "history_items": self.items,
            "history_signals": self.signals,
            "history_ages": self.ages,
            "user": self.users,
            "context": self.context,
        }


def age_seconds(event_ms: np.ndarray, request_ms: np.ndarray | int) -> np.ndarray:
    """Return int64 whole seconds from events to requests; 0 for an event after its request."""
    ages: np.ndarray = np.maximum(request_ms - event_ms, 0) // 1000
    return ages.astype(np.int64, copy=False)


def tower_inputs(
    histories: Sequence[History], moments: Sequence[Moment], config: FeatureConfig, n_items: int
) -> TowerInputs:
    """Return the user tower's inputs for B users.

    Args:
        histories: one a user, newest first; only the newest L entries are read.
        moments: time, user and context of each request.
        config: ``history_length`` is L.
        n_items: N, also the id of padding.
    """
    shape = (len(histories), config.history_length)
    items_BL = np.full(shape, n_items, dtype=np.int64)
    signals_BL, ages_BL = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, (history, moment) in enumerate(zip(histories, moments, strict=True)):
        kept = min(len(history.items), config.history_length)
        items_BL[row, :kept] = history.items[:kept]
        signals_BL[row, :kept] = history.signals[:kept]
        ages_BL[row, :kept] = age_seconds(history.times_ms[:kept], moment.time_ms)
    n_columns = len(moments[0].context) if moments else 0
    context_BX = np.array([moment.context for moment in moments], dtype=np.int64).reshape(len(histories), n_columns)
    users_B = np.array([moment.user for moment in moments], dtype=np.int64)
    return TowerInputs(items_BL, signals_BL, ages_BL, users_B, context_BX)


def event_relevance(signal: np.ndarray, value: np.ndarray, signals: Sequence[str], tasks: Sequence[Task]) -> np.ndarray:
    """Return the float64 relevance of events, summed over the tasks; a state selects an item's best event by it.

    Args:
        signal: int codes into ``signals``.
        value: float32 strengths.
        signals: names of the event kinds.
        tasks: tasks that an event may be a positive of.
    """
    relevance = np.zeros(len(signal))
    for task in tasks:
        counts = np.array([name in task.signals for name in signals], dtype=bool)[signal]
        if task.min_value is not None:
            counts &= value >= np.float32(task.min_value)
        relevance += task.relevance * counts
    return relevance
