"""What an event changes, in compiled code.

No function here makes room: ``apply_events`` returns to its caller where a row could not grow, and the caller makes
room and goes on.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import in_place, in_place_once, in_place_part
from stages.features.link_kernels import link_items, links_have_room
from stages.features.row_kernels import row_append, row_find, row_has_room, row_open
from stages.features.state_arrays import (
    BROKEN_ROW,
    ITEMS,
    LATEST,
    LINKS_WINDOW,
    N_USERS,
    POSITIVES,
    SIGNALS,
    VALUES,
    Decayed,
    EventColumns,
    Rules,
    State,
)
from stages.features.trending_kernels import log_add, log_has_room


@in_place
def decayed_add(counts: Decayed, row: int, time_ms: int) -> None:
    """Count one event of a row; see ``counters``."""
    elapsed = time_ms - counts.last_ms[row]
    if elapsed > 0:
        counts.last_ms[row] = time_ms
    else:
        elapsed = 0
    for k in range(len(counts.half_lives_ms)):
        counts.values[k, row] = counts.values[k, row] * 2.0 ** (-elapsed / counts.half_lives_ms[k]) + 1.0


@in_place_part
def _count_positives(state: State, mask: int, item: int, time_ms: int) -> None:
    counts, items = state.counts, state.items
    for task in range(len(state.rules.gains)):
        if mask >> task & 1:
            counts.positives[task, item] += 1
            counts.totals[4 + task] += 1.0
            decayed_add(state.task_counts, task * len(counts.touches) + item, time_ms)
            for place in range(items.category_offsets[item], items.category_offsets[item + 1]):
                category = items.category_codes[place]
                counts.category_positives[task, category] += 1
                decayed_add(state.category_task_counts, task * len(counts.category_touches) + category, time_ms)


@in_place_part
def _first_touch(state: State, user: int, item: int, time_ms: int, positions: np.ndarray) -> None:
    counts, items, users = state.counts, state.items, state.users
    counts.touches[item] += 1
    counts.totals[0] += 1.0
    decayed_add(state.item_counts, item, time_ms)
    first, last = items.category_offsets[item], items.category_offsets[item + 1]
    for place in range(first, last):
        decayed_add(state.category_counts, items.category_codes[place], time_ms)
        counts.category_touches[items.category_codes[place]] += 1
    for value in positions:
        if value >= 0:
            counts.context_counts[value, item] += 1
            counts.context_totals[value] += 1
            for place in range(first, last):
                category, again = items.category_codes[place], False
                for before in range(first, place):
                    again |= items.category_codes[before] == category
                if not again:  # as an assignment by a list of categories: one that is listed twice counts once
                    counts.context_categories[value, category] += 1
    start, count = users.start[user], users.sizes[user]
    link_items(
        state.links, item, users.pool[ITEMS], start + max(0, count - state.links.numbers[LINKS_WINDOW]), start + count
    )
    if len(state.log.windows_ms):
        log_add(state.log, item, time_ms, positions)


@in_place
def _judge(rules: Rules, signal: int, value: float) -> tuple[int, float]:
    """Return the tasks that an event is positive for, as a bit mask, and the sum of their relevance."""
    mask, relevance = 0, 0.0
    for task in range(len(rules.gains)):
        if value >= rules.smallest[signal, task]:
            mask |= 1 << task
            relevance += rules.gains[task]
    return mask, relevance


@in_place_part
def _repeat(state: State, user: int, place: int, item: int, signal: int, value: float, time_ms: int) -> None:
    pool, entry = state.users.pool, state.users.start[user] + place
    mask, relevance = _judge(state.rules, signal, value)
    kept_value = np.float64(pool[VALUES][entry])
    _, kept_relevance = _judge(state.rules, pool[SIGNALS][entry], kept_value)
    if relevance > kept_relevance or (relevance == kept_relevance and value > kept_value):
        pool[SIGNALS][entry], pool[VALUES][entry] = signal, value
    _count_positives(state, mask & ~pool[POSITIVES][entry], item, time_ms)
    pool[POSITIVES][entry] |= mask
    pool[LATEST][entry] = max(pool[LATEST][entry], time_ms)


@in_place_part
def apply_event(
    state: State, user: int, item: int, signal: int, value: float, time_ms: int, positions: np.ndarray
) -> bool:
    """Apply one event that there is room for; False where the stored row of its user names an item twice."""
    counts = state.counts
    state.numbers[N_USERS] = max(state.numbers[N_USERS], user + 1)
    if not state.rules.touching[signal]:
        counts.exposures[item] += 1
        counts.totals[1] += 1.0
        decayed_add(state.exposure_counts, item, time_ms)
        return True
    if not row_open(state.users, user):
        state.numbers[BROKEN_ROW] = user + 1
        return False
    mask, _ = _judge(state.rules, signal, value)
    place = row_find(state.users, user, item)
    if place < 0:
        _first_touch(state, user, item, time_ms, positions)
        row_append(state.users, user, item, time_ms, signal, value, mask)
        _count_positives(state, mask, item, time_ms)
    else:
        _repeat(state, user, place, item, signal, value, time_ms)
    counts.item_events[item] += 1
    counts.totals[2] += 1.0
    counts.item_value_sum[item] += value
    counts.totals[3] += value
    return True


@in_place_once
def apply_events(state: State, events: EventColumns, start: int, stop: int) -> int:
    """Apply events ``start`` to ``stop``; return the first that was not applied, for want of room, or ``stop``."""
    for row in range(start, stop):
        user = events.user[row]
        linked = state.links.numbers[LINKS_WINDOW] + 1
        if not (row_has_room(state.users, user) and links_have_room(state.links, linked) and log_has_room(state.log)):
            return row
        positions = events.positions[events.context[row]]
        value = np.float64(events.value[row])
        if not apply_event(state, user, events.item[row], events.signal[row], value, events.time_ms[row], positions):
            return row
    return stop
