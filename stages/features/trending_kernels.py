"""Recent touches in compiled code, see ``trending``.

No function here makes room: callers do, where ``log_has_room`` says so.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import in_place
from stages.features.state_arrays import LOG_FIRST_VALUE, LOG_LAST_VALUE, LOG_NEWEST, LOG_SIZE, Log


@in_place
def log_add(log: Log, item: int, time_ms: int, positions: np.ndarray) -> None:
    """Count one touch; the log has room for it."""
    log.numbers[LOG_NEWEST] = max(time_ms, log.numbers[LOG_NEWEST])
    segment = 0
    for value in positions:
        if log.numbers[LOG_FIRST_VALUE] <= value < log.numbers[LOG_LAST_VALUE]:
            segment = value - log.numbers[LOG_FIRST_VALUE] + 1
            break
    place = log.numbers[LOG_SIZE]
    log.times_ms[place], log.items[place], log.segments[place] = log.numbers[LOG_NEWEST], item, segment
    log.numbers[LOG_SIZE] += 1


@in_place
def _count_entries(log: Log, slot: int, window: int, segment: int, first: int, last: int, amount: int) -> None:
    counted = 0
    for place in range(first, last):
        if segment == 0 or log.segments[place] == segment:
            log.counts[slot, window, log.items[place]] += amount
            counted += amount
    log.totals[slot, window] += counted


@in_place
def _first_since(log: Log, time_ms: int) -> int:
    """Return the first entry of the log at a time or later."""
    low, high = 0, log.numbers[LOG_SIZE]
    while low < high:
        middle = (low + high) // 2
        if log.times_ms[middle] < time_ms:
            low = middle + 1
        else:
            high = middle
    return low


@in_place
def _forget_tally(log: Log, slot: int) -> None:
    log.ends[slot] = 0
    for window in range(len(log.windows_ms)):
        log.totals[slot, window], log.starts[slot, window] = 0, 0
        for item in range(log.counts.shape[2]):
            log.counts[slot, window, item] = 0


@in_place
def advance_tally(log: Log, segment: int, time_ms: int) -> int:
    """Let the counts of a segment, 0 for all users, be those at a time; return its slot, which exists."""
    slot, size = log.slots[segment], log.numbers[LOG_SIZE]
    moment = max(time_ms, log.numbers[LOG_NEWEST])
    for window in range(len(log.windows_ms)):
        if _first_since(log, moment - log.windows_ms[window]) < log.starts[slot, window]:
            _forget_tally(log, slot)  # a time before that of the last read
            break
    for window in range(len(log.windows_ms)):
        start = _first_since(log, moment - log.windows_ms[window])
        _count_entries(log, slot, window, segment, log.ends[slot], size, 1)
        _count_entries(log, slot, window, segment, log.starts[slot, window], start, -1)
        log.starts[slot, window] = start
    log.ends[slot] = size
    return slot


@in_place
def trending_scores(log: Log, number: int, time_ms: int, segment: int, items: np.ndarray, scores: np.ndarray) -> int:
    """Write the items and scores of list ``number``, see ``trending.Trending.scores``; return how many there are."""
    everybody = advance_tally(log, 0, time_ms)
    segment = segment if log.segmented[number] else 0
    own = advance_tally(log, segment, time_ms) if segment else 0
    longest, smoothing, n = log.longest[number], log.smoothing[0], 0
    for item in range(log.counts.shape[2]):
        if log.counts[everybody, longest, item] == 0:
            continue
        score = 0.0
        for window in range(longest + 1):
            if log.weights[number, window] == 0:
                continue
            share = log.counts[everybody, window, item] / max(log.totals[everybody, window], 1)
            if segment:
                share = (log.counts[own, window, item] + smoothing * share) / (log.totals[own, window] + smoothing)
            score += log.weights[number, window] * share
        items[n], scores[n] = item, score
        n += 1
    return n


@in_place
def log_has_room(log: Log) -> bool:
    """Return whether a touch can be counted without more memory than there is."""
    return len(log.windows_ms) == 0 or log.numbers[LOG_SIZE] < len(log.items)
