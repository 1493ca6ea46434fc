"""Microseconds an event: how long it takes to advance the state, and how that grows with the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.scale.made import CONTEXTS, MadeLog, made_log
from benchmarks.scale.turns import Cost, cost_of, markdown, medians
from stages.contracts.tables import PART_EVALUATION
from stages.features.reading import Wanted, read_blocks

EVENTS_A_REQUEST, BLOCK = 100, 1024


def replay_all(log: MadeLog) -> None:
    """Apply all events in one call of ``FunnelState.apply_all``; nothing is read."""
    state = log.state()
    state.apply_all(state.columns(log.events, CONTEXTS), 0, len(log.events))


def read_all(log: MadeLog) -> None:
    """Apply all events through ``read_blocks``, which reads one request's history every hundred events."""
    times_ms = log.events.event_time_ms[::EVENTS_A_REQUEST]
    wanted = Wanted({PART_EVALUATION: np.zeros(len(log.items), dtype=np.int64)})
    requests = log.requests(len(times_ms), times_ms)
    for _ in read_blocks(log.events, requests, log.state(), wanted, BLOCK, CONTEXTS):
        pass


def apply_all(log: MadeLog) -> None:
    """Apply events one by one through ``FunnelState.apply``, as the server does with posted ones."""
    state, events = log.state(), log.events
    columns = (events.user_index, events.item_index, events.signal, events.value, events.event_time_ms)
    for event in zip(*(column.tolist() for column in columns), strict=True):
        state.apply(*event)


PATHS: dict[str, Callable[[MadeLog], None]] = {"replay": replay_all, "read_blocks": read_all, "apply": apply_all}


def measure_replay(sizes: Sequence[int], turns: int, paths: Sequence[str] = tuple(PATHS)) -> dict[str, Any]:
    """Return microseconds an event by path, size and kind of log; medians of turns that alternate between all.

    Code that is compiled on its first use is compiled before the first turn.

    Args:
        sizes: events of each log.
        turns: at least 1.
        paths: names of ``PATHS``.
    """
    chosen = {path: PATHS[path] for path in paths}
    logs = {(size, exposures): made_log(size, exposures) for size in sizes for exposures in (True, False)}
    for run in chosen.values():
        run(made_log(min(sizes), exposures=True))
    works = {(path, *key): partial(_cost, run, log) for path, run in chosen.items() for key, log in logs.items()}
    costs = medians(works, turns)
    rows = [
        {
            "path": path,
            "exposures": exposures,
            "events": size,
            "users": logs[size, exposures].n_users,
            "items": len(logs[size, exposures].items),
            "us_an_event": 1e6 * cost.clock,
            "processor_us_an_event": 1e6 * cost.processor,
            "growth": cost.processor / costs[path, min(sizes), exposures].processor,
        }
        for (path, size, exposures), cost in costs.items()
    ]
    return {"turns": turns, "rows": rows}


def _cost(run: Callable[[MadeLog], None], log: MadeLog) -> Cost:
    return cost_of(partial(run, log)).of_one(len(log.events))


def render_replay(found: dict[str, Any]) -> str:
    """Return the figures as a table; ``growth`` is that of processor time, from the smallest log of the same kind."""
    columns = ("path", "exposures", "events", "users", "items", "us an event", "processor us", "growth")
    rows = [
        (
            row["path"],
            "yes" if row["exposures"] else "no",
            *(f"{row[name]:,}" for name in ("events", "users", "items")),
            *(f"{row[name]:.3g}" for name in ("us_an_event", "processor_us_an_event")),
            f"{row['growth']:.2f}",
        )
        for row in found["rows"]
    ]
    return markdown(columns, rows)
