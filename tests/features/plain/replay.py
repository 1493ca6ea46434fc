"""Replay: walk through requests in time order, each with the state just before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.contracts.tables import EventTable, RequestTable
from stages.features.state import FunnelState


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
        DataError: if an event is out of range or out of the order of time.
    """
    columns = state.columns(events, contexts)
    order = np.argsort(requests.request_time_ms, kind="stable")
    borders = np.searchsorted(events.event_time_ms, requests.request_time_ms[order], side="left")
    done = 0
    for row, border in zip(order.tolist(), borders.tolist(), strict=True):
        state.apply_all(columns, done, border)
        done = border
        yield row
    state.apply_all(columns, done, len(events))
