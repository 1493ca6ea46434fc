"""Replay: walk through requests in time order, each with the state just before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.tables import EventTable, RequestTable
from stages.features.state import FunnelState

_CHUNK = 1 << 16


def replay(
    events: EventTable, requests: RequestTable, state: FunnelState, contexts: np.ndarray | None = None
) -> Iterator[int]:
    """Yield request rows in time order while advancing ``state``.

    When a row is yielded, the state holds exactly the events with
    ``event_time_ms < request_time_ms``. Requests of the same time come in row order. After the last
    request the remaining events are applied, if the iterator is exhausted.

    Args:
        events: events in time order; events of equal time are applied in row order.
        requests: requests in any order.
        state: advanced in place; normally empty at the start.
        contexts: int32 ``[X, C]``, as ``Snapshot.contexts``; None if the state keeps no context.

    Raises:
        DataError: if the events are not in time order.
    """
    backwards = np.flatnonzero(np.diff(events.event_time_ms) < 0)
    if len(backwards):
        row = int(backwards[0]) + 1
        found, before = events.event_time_ms[row], events.event_time_ms[row - 1]
        raise DataError(
            f"events: event_time_ms of row {row} is {found}, before {before} of the row above; sort by time"
        )
    order = np.argsort(requests.request_time_ms, kind="stable")
    borders = np.searchsorted(events.event_time_ms, requests.request_time_ms[order], side="left")
    known: list[tuple[int, ...]] = (
        [()] if contexts is None else [state.context_values(codes) for codes in contexts.tolist()]
    )
    moments = np.zeros(len(events), dtype=np.int32) if contexts is None else events.context
    done = 0
    for row, border in zip(order.tolist(), borders.tolist(), strict=True):
        _apply(events, done, border, state, known, moments)
        done = border
        yield row
    _apply(events, done, len(events), state, known, moments)


def _apply(
    events: EventTable,
    start: int,
    stop: int,
    state: FunnelState,
    known: list[tuple[int, ...]],
    moments: np.ndarray,
) -> None:
    for first in range(start, stop, _CHUNK):
        rows = slice(first, min(first + _CHUNK, stop))
        columns = (events.user_index, events.item_index, events.signal, events.value, events.event_time_ms, moments)
        for user, item, signal, value, time_ms, moment in zip(
            *(column[rows].tolist() for column in columns), strict=True
        ):
            state.apply(user, item, signal, value, time_ms, known[moment])
