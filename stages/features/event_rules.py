"""Which events a state takes, and what they count as.

Shapes: N items, S signals, T tasks, X moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.contracts.compiled import frozen
from stages.contracts.errors import DataError
from stages.contracts.snapshot import Task
from stages.contracts.tables import EventTable
from stages.contracts.touches import touching
from stages.features.state_arrays import NEVER_MS, EventColumns, Rules

_LARGEST = float(np.finfo(np.float32).max)
_USERS = 1 << 31


def check_event(event: tuple[int, int, int, float, int], n_items: int, signals: tuple[str, ...]) -> None:
    """Refuse one event that is out of range.

    Args:
        event: user, item, signal, value and time, as in ``FunnelState.apply``.
        n_items: N.
        signals: event kinds.

    Raises:
        DataError: with the name of the argument, its value and what is allowed.
    """
    user_index, item_index, signal, value, time_ms = event
    if user_index < 0:
        raise DataError(f"event: user_index = {user_index}, allowed are 0 and above")
    if not 0 <= item_index < n_items:
        raise DataError(f"event: item_index = {item_index}, allowed are 0 to {n_items - 1}")
    if not 0 <= signal < len(signals):
        raise DataError(f"event: signal = {signal}, allowed are 0 to {len(signals) - 1} {signals}")
    if not abs(value) <= _LARGEST:
        raise DataError(f"event: value = {value}, allowed are finite float32 numbers")
    if abs(time_ms) >= -NEVER_MS:
        raise DataError(f"event: time_ms = {time_ms}, allowed are times within ±{-NEVER_MS}")


def check_events(events: EventTable, n_items: int, signals: tuple[str, ...]) -> None:
    """Refuse events that are out of range or out of the order of time.

    Args:
        events: of a log.
        n_items: N.
        signals: event kinds.

    Raises:
        DataError: with the row, the name of the field, its value and what is allowed.
    """
    times = events.event_time_ms
    backwards = np.flatnonzero(times[1:] < times[:-1])
    if len(backwards):
        row = int(backwards[0]) + 1
        raise DataError(
            f"events: event_time_ms of row {row} is {times[row]}, before {times[row - 1]} of the row above; "
            "sort by time"
        )
    limits = (
        ("user_index", events.user_index, 0, _USERS - 1),
        ("item_index", events.item_index, 0, n_items - 1),
        ("signal", events.signal, 0, len(signals) - 1),
        ("value", events.value, -_LARGEST, _LARGEST),
        ("event_time_ms", times, NEVER_MS + 1, -NEVER_MS - 1),
    )
    for name, column, least, most in limits:
        inside = (column >= least) & (column <= most)
        if not inside.all():
            row = int(np.flatnonzero(~inside)[0])
            raise DataError(f"events: {name} of row {row} is {column[row]}, allowed are {least} to {most}")


def event_columns(events: EventTable, contexts: np.ndarray | None, starts: Sequence[int]) -> EventColumns:
    """Return events for compiled functions.

    Args:
        events: of a log.
        contexts: int32 ``[X, columns]``, as ``Snapshot.contexts``; None if no context is kept.
        starts: position of each context column's first value among all values.

    Raises:
        DataError: if an event has a moment that there is not.
    """
    if contexts is None:
        positions, moments = np.full((1, 0), -1, dtype=np.int32), np.zeros(len(events), dtype=np.int32)
    else:
        positions, moments = np.where(contexts > 0, contexts - 1 + np.array(starts, dtype=np.int32), -1), events.context
        if len(moments) and not 0 <= moments.min() <= moments.max() < len(positions):
            raise DataError(
                f"events: context spans {moments.min()} to {moments.max()}, allowed are 0 to {len(positions) - 1}"
            )
    columns = (events.user_index, events.item_index, events.signal, events.value, events.event_time_ms, moments)
    return EventColumns(*(frozen(column) for column in (*columns, positions.astype(np.int32))))


def rules_of(signals: tuple[str, ...], tasks: tuple[Task, ...], exposures: tuple[str, ...]) -> Rules:
    """Return which signals are touches, and from which value on an event of a signal is a positive of each task."""
    smallest = np.full((len(signals), len(tasks)), np.inf)
    for number, task in enumerate(tasks):
        least = -np.inf if task.min_value is None else float(np.float32(task.min_value))
        smallest[[code for code, name in enumerate(signals) if name in task.signals], number] = least
    gains = np.array([task.relevance for task in tasks], dtype=np.float64)
    return Rules(touching(signals, exposures), smallest, gains)
