"""Make requests and their targets from the events of the ranker and the evaluation period.

A first touch is a user's first event on an item, in any period; an exposure is not a touch (see
``stages.contracts.touches``). A user's first touches are cut into consecutive chunks. Each chunk is one request at
the time of its first event: what will this user turn to next? The state that answers it holds events strictly
before that time, so it contains no target. Only touches that satisfy a task with relevance count, so every
request has a target: a chunk without one is no request. Caps on requests are applied last, a user's own first.

Shapes: R events, F first touches, T tasks, Q requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.contracts.ragged import places_in_rows, row_offsets, run_offsets
from stages.contracts.snapshot import Targets, Task
from stages.contracts.tables import DAY_MS, PART_CANDIDATE, PART_EVALUATION, PART_RANKER, EventTable, RequestTable
from stages.contracts.touches import first_touches, touching
from stages.dataset.config import RequestConfig

_OF_ALL = 1
"""Last part of the seed of the sample of all requests; the cap a user has none."""


@dataclass(frozen=True)
class Touches:
    """First touches ``[F]``, sorted by (user, time), with the context of their events."""

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray
    context: np.ndarray

    def take(self, rows: np.ndarray) -> Touches:
        """Return the selected rows."""
        return Touches(self.user[rows], self.item[rows], self.time_ms[rows], self.context[rows])

    def __len__(self) -> int:
        return len(self.user)


class TaskLabels:
    """Which tasks a user's events on an item satisfy, within one period and a time limit."""

    def __init__(self, events: EventTable, part: int, n_items: int, tasks: Sequence[Task], signals: Sequence[str]):
        rows = np.flatnonzero(events.part == part)
        self._n_items = n_items
        self._key = events.user_index[rows] * n_items + events.item_index[rows]
        self._time_ms = events.event_time_ms[rows]
        self._satisfied = [_satisfies(events, rows, task, signals) for task in tasks]
        self.relevance = np.array([task.relevance for task in tasks], dtype=np.float32)

    def of(self, touches: Touches, until_ms: np.ndarray) -> np.ndarray:
        """Return labels float32 ``[F, T]`` 0/1 from events before ``until_ms`` ``[F]``."""
        labels = np.zeros((len(touches), len(self._satisfied)), dtype=np.float32)
        if len(touches) == 0:
            return labels
        key = touches.user * self._n_items + touches.item
        order = np.argsort(key, kind="stable")
        slot = np.searchsorted(key[order], self._key).clip(0, len(key) - 1)
        row = order[slot]
        counts = (key[row] == self._key) & (self._time_ms < until_ms[row])
        for column, satisfied in enumerate(self._satisfied):
            labels[row[counts & satisfied], column] = 1.0
        return labels


def _satisfies(events: EventTable, rows: np.ndarray, task: Task, signals: Sequence[str]) -> np.ndarray:
    codes = [signals.index(signal) for signal in task.signals]
    satisfied = np.isin(events.signal[rows], codes)
    if task.min_value is not None:
        satisfied &= events.value[rows] >= task.min_value
    return satisfied


def build_requests(
    events: EventTable,
    n_items: int,
    config: RequestConfig,
    tasks: Sequence[Task],
    signals: Sequence[str],
    exposure_signals: Sequence[str],
    seed: int,
) -> tuple[RequestTable, Targets, dict[str, int]]:
    """Make the requests of the ranker period (active users) and of the evaluation period (all users).

    Args:
        events: all events, in time order.
        n_items: number of items.
        config: chunk size, window and caps.
        tasks: T tasks.
        signals: names by signal code.
        exposure_signals: signals that are not touches.
        seed: of the even spread under the caps.

    Returns:
        Requests sorted by time; their targets, sorted by (request_id, item_index), all with relevance
        above zero; counts of touches, requests and targets that were made or left out: requests by the cap a
        user (``<part>_requests_over_the_cap``) and by the cap on all (``<part>_requests_not_sampled``).
    """
    counts: dict[str, int] = {}
    first = first_touches(events, touching(signals, exposure_signals))
    pieces = [
        _part_requests(
            touches_of_part(events, part, first),
            part,
            config,
            TaskLabels(events, part, n_items, tasks, signals),
            seed,
            counts,
        )
        for part in (PART_RANKER, PART_EVALUATION)
    ]
    request_time, request_user, request_part, request_context = (
        np.concatenate([piece[k] for piece in pieces]) for k in range(4)
    )
    offsets = row_offsets([len(piece[0]) for piece in pieces])
    target_request = np.concatenate([piece[4] + offset for piece, offset in zip(pieces, offsets[:-1], strict=True)])
    target_item, labels = (np.concatenate([piece[k] for piece in pieces]) for k in (5, 6))
    order = np.lexsort((request_user, request_time))  # stable: the chunks of one user at one time stay in order
    new_id = np.empty(len(order), dtype=np.int64)
    new_id[order] = np.arange(len(order))
    requests = RequestTable(
        request_id=np.arange(len(order), dtype=np.int64),
        user_index=request_user[order],
        request_time_ms=request_time[order],
        part=request_part[order],
        context=request_context[order],
    )
    request_id = new_id[target_request]
    rows = np.lexsort((target_item, request_id))
    relevance = np.array([task.relevance for task in tasks], dtype=np.float32)
    targets = Targets(
        request_id=request_id[rows],
        item_index=target_item[rows],
        relevance=labels[rows] @ relevance,
        labels=labels[rows],
    )
    return requests, targets, counts


def _part_requests(
    touches: Touches,
    part: int,
    config: RequestConfig,
    labels: TaskLabels,
    seed: int,
    counts: dict[str, int],
) -> tuple[np.ndarray, ...]:
    """Return (request time, user, part, context; target's request, item, labels) of one period."""
    name = "ranker" if part == PART_RANKER else "evaluation"
    window_ms = round(config.window_days * DAY_MS)
    counts[f"{name}_first_touches"] = len(touches)
    wanted = labels.of(touches, touches.time_ms + window_ms) @ labels.relevance > 0
    touches = touches.take(np.flatnonzero(wanted))
    counts[f"{name}_touches_without_relevance"] = int((~wanted).sum())
    starts = chunk_starts(touches, config.targets_per_request, window_ms)
    chunk = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(touches))))
    # A label must fall within the request's window, which may begin before the touch.
    found = labels.of(touches, touches.time_ms[starts][chunk] + window_ms)
    relevant = found @ labels.relevance > 0
    counts[f"{name}_touches_relevant_too_late"] = int((~relevant).sum())
    answered = np.bincount(chunk[relevant], minlength=len(starts)) > 0
    kept = answered.copy()
    kept[answered] = _spread(touches.user[starts[answered]], config.max_requests_per_user, [seed, part])
    counts[f"{name}_requests_over_the_cap"] = int(answered.sum() - kept.sum())
    within = np.flatnonzero(kept)
    kept[within] = _sampled(touches.take(starts[within]), config.largest_number(part), [seed, part, _OF_ALL])
    counts[f"{name}_requests_not_sampled"] = len(within) - int(kept.sum())
    counts[f"{name}_requests"] = int(kept.sum())
    number = np.cumsum(kept) - 1
    rows = np.flatnonzero(relevant & kept[chunk])
    counts[f"{name}_targets"] = len(rows)
    request_rows = starts[kept]
    return (
        touches.time_ms[request_rows],
        touches.user[request_rows],
        np.full(len(request_rows), part, dtype=np.int8),
        touches.context[request_rows],
        number[chunk[rows]],
        touches.item[rows],
        found[rows],
    )


def touches_of_part(events: EventTable, part: int, first: np.ndarray) -> Touches:
    """Return the first touches that fall into a period, sorted by (user, time).

    In the ranker period only rows of active users count.

    Args:
        events: in time order.
        part: PART_RANKER or PART_EVALUATION.
        first: int64 rows of the first touches of all periods.
    """
    assert part != PART_CANDIDATE  # noqa: S101 - the candidate period has no requests
    chosen = events.part[first] == part
    if part == PART_RANKER:
        chosen &= events.active[first]
    rows = np.sort(first[chosen])  # back to time order
    rows = rows[np.argsort(events.user_index[rows], kind="stable")]
    return Touches(events.user_index[rows], events.item_index[rows], events.event_time_ms[rows], events.context[rows])


def chunk_starts(touches: Touches, size: int, window_ms: int) -> np.ndarray:
    """Return the first row of each chunk: at most ``size`` touches of one user within ``window_ms``."""
    n = len(touches)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    earliest = int(touches.time_ms.min())
    span = int(touches.time_ms.max()) - earliest + window_ms + 1
    key = touches.user * span + (touches.time_ms - earliest)
    leaves_window = np.searchsorted(key, key + window_ms, side="left")
    end_of_user = np.searchsorted(touches.user, touches.user, side="right")
    following = np.minimum(np.minimum(np.arange(n) + size, leaves_window), end_of_user).tolist()
    starts, row = [], 0
    while row < n:
        starts.append(row)
        row = following[row]
    return np.array(starts, dtype=np.int64)


def _spread(users: np.ndarray, cap: int | None, seed: list[int]) -> np.ndarray:
    """Return bool ``[Q]``: which requests (grouped by user, in time order) are kept under a cap a user.

    The start of the even spread depends on the user's index only.
    """
    if cap is None or len(users) == 0:
        return np.ones(len(users), dtype=bool)
    sizes = np.diff(run_offsets(users))
    start = np.random.default_rng(seed).random(int(users.max()) + 1)[users]
    return _evenly(places_in_rows(sizes), np.repeat(sizes, sizes), cap, start)


def _sampled(first: Touches, cap: int | None, seed: list[int]) -> np.ndarray:
    """Return bool ``[Q]``: which requests are kept under a cap on all of them, evenly in the order of (time, user).

    Args:
        first: the first touch of each request, sorted by (user, time).
        cap: largest number of requests; None keeps all.
        seed: of the start.
    """
    keep = np.ones(len(first), dtype=bool)
    if cap is not None:
        in_time = np.lexsort((first.user, first.time_ms))
        keep[in_time] = _evenly(np.arange(len(first)), len(first), cap, np.random.default_rng(seed).random())
    return keep


def _evenly(ordinal: np.ndarray, size: np.ndarray | int, cap: int, start: np.ndarray | float) -> np.ndarray:
    """Return bool ``[Q]``: the systematic sample of each series of requests.

    Every (m / cap)-th of a series' m requests is kept, counted from a random start. So each of them is kept with
    probability cap / m, and any run of r requests keeps r cap / m of them, rounded up or down.

    Args:
        ordinal: int64 ``[Q]``, 0-based place of each request in its series.
        size: m of the request's series.
        cap: requests that a series keeps; one that has no more keeps all.
        start: of the series, uniform in [0, 1).
    """
    before, after = (np.ceil((ordinal + step) * cap / size - start).clip(0, cap) for step in (0, 1))
    return np.asarray((size <= cap) | (after > before))
