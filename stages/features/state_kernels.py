"""The serving state's arrays, and the compiled functions that events change them by.

No function here makes room: ``apply_events`` returns to its caller where a row could not grow, and the caller makes
room and goes on.

Shapes: N items, U users, C categories, T tasks, S signals, K half-lives, V context values, W windows, G segments that
are read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.contracts.compiled import compiled, in_place, in_place_once, in_place_part
from stages.contracts.top_k_kernels import kth_smallest

NEVER_MS = -(1 << 61)
"""``last_ms`` of a row without events; times of events are within ±2^61 ms, so no difference overflows."""

LINEAR = 32
"""Rows of up to so many entries are searched from end to end; longer ones have an index."""

USED, INDEX_USED = 0, 1
"""Places in ``Rows.numbers``; the heads of the lists of free chunks follow."""
FREE = 2
LINKS_USED, LINKS_KEPT, LINKS_WINDOW, LINKS_LARGEST, LINKS_FREE = 0, 1, 2, 3, 4
"""Places in ``Links.numbers``: entries in use, links that a cut keeps, items that a new one is linked with, places of
the largest table, and the heads of the lists of free tables."""
LOG_SIZE, LOG_NEWEST, LOG_FIRST_VALUE, LOG_LAST_VALUE = 0, 1, 2, 3
"""Places in ``Log.numbers``: entries, newest time, and the segment's values among all context values."""
N_USERS, BROKEN_ROW = 0, 1
"""Places in ``State.numbers``: known users, and one more than the user whose stored row names an item twice."""

ITEMS, TIMES, SIGNALS, VALUES, POSITIVES, LATEST = range(6)
"""Columns of ``Rows.base`` and ``Rows.pool``."""


LINK = np.dtype([("weight", np.float64), ("item", np.int32)], align=True)
"""A link in a hash table: both lie together, since most links that an event changes are far from the processor."""


class Items(NamedTuple):
    """What is read of the catalogue: int64 ``[N + 1]``, int32, int64 ``[N]``, float32 ``[N]``."""

    category_offsets: np.ndarray
    category_codes: np.ndarray
    created_at_ms: np.ndarray
    duration_s: np.ndarray


class Rules(NamedTuple):
    """bool ``[S]``; float64 ``[S, T]``, the smallest value of a positive, inf for never; float64 ``[T]`` relevance."""

    touching: np.ndarray
    smallest: np.ndarray
    gains: np.ndarray


class Decayed(NamedTuple):
    """See ``counters.DecayedCounts``: float64 ``[K, n]``, int64 ``[n]``, float64 ``[K]``."""

    values: np.ndarray
    last_ms: np.ndarray
    half_lives_ms: np.ndarray


class Counts(NamedTuple):
    """Plain counters, see ``state.FunnelState``."""

    touches: np.ndarray
    exposures: np.ndarray
    item_events: np.ndarray
    item_value_sum: np.ndarray
    positives: np.ndarray
    totals: np.ndarray
    category_touches: np.ndarray
    category_positives: np.ndarray
    context_counts: np.ndarray
    context_categories: np.ndarray
    context_totals: np.ndarray


class Rows(NamedTuple):
    """Rows of keyed entries, see ``user_rows.UserRows``.

    Attributes:
        start, sizes: int64 ``[U]``; a row lies in the base where its capacity is 0, else in the pool.
        capacity: int64 ``[U]``, a power of two, or 0.
        base, pool: the columns ``ITEMS`` to ``LATEST``.
        index_start: int64 ``[U]``, -1 where a row has no index; an index has twice the row's capacity.
        lookup: int32, 0 or one more than an entry's place in its row.
        numbers: see ``USED``.
    """

    start: np.ndarray
    sizes: np.ndarray
    capacity: np.ndarray
    base: tuple[np.ndarray, ...]
    pool: tuple[np.ndarray, ...]
    index_start: np.ndarray
    lookup: np.ndarray
    numbers: np.ndarray


class Links(NamedTuple):
    """Links between items, see ``covisitation.Covisitation``.

    Attributes:
        start, sizes, capacity: int64 ``[N]``; a row lies in the base where its capacity is 0, else it is a hash table
            of so many places in the pool.
        base_items, base_weights: int32 and float64.
        table: the pool, ``LINK`` records; an item of -1 is a free place.
        position: int32 ``[N]``, -1 between two calls.
        scratch_items, scratch_weights, scratch_order: room for one row.
        numbers: see ``LINKS_USED``.
    """

    start: np.ndarray
    sizes: np.ndarray
    capacity: np.ndarray
    base_items: np.ndarray
    base_weights: np.ndarray
    table: np.ndarray
    position: np.ndarray
    scratch_items: np.ndarray
    scratch_weights: np.ndarray
    scratch_order: np.ndarray
    numbers: np.ndarray


class Log(NamedTuple):
    """Recent first touches, see ``trending.Trending``.

    Attributes:
        times_ms, items, segments: the log's columns.
        windows_ms: int64 ``[W]``; none where trends are not counted.
        weights: float64 ``[W]``.
        smoothing: float64 ``[1]``.
        slots: int64, tally of each segment, -1 where a segment was not read yet; 0 is all users.
        counts: int32 ``[G, W, N]``.
        totals, starts: int64 ``[G, W]``; ends: int64 ``[G]``: window w counts the entries from start to end.
        numbers: see ``LOG_SIZE``.
    """

    times_ms: np.ndarray
    items: np.ndarray
    segments: np.ndarray
    windows_ms: np.ndarray
    weights: np.ndarray
    smoothing: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray


class State(NamedTuple):
    """All arrays of a ``FunnelState``; numbers: see ``N_USERS``."""

    items: Items
    rules: Rules
    counts: Counts
    item_counts: Decayed
    category_counts: Decayed
    task_counts: Decayed
    category_task_counts: Decayed
    exposure_counts: Decayed
    users: Rows
    links: Links
    log: Log
    numbers: np.ndarray


class EventColumns(NamedTuple):
    """Events in time order: int64, int64, int16, float32, int64, and int32 rows of ``positions``.

    ``positions`` is int32 ``[X, columns]``: the place of each context value among all V, -1 where it is unknown.
    """

    user: np.ndarray
    item: np.ndarray
    signal: np.ndarray
    value: np.ndarray
    time_ms: np.ndarray
    context: np.ndarray
    positions: np.ndarray


EVENT_TYPES = (np.int64, np.int64, np.int16, np.float32, np.int64, np.int32)
"""Types of the columns of ``EventColumns`` but the last."""


@in_place
def power_of_two(least: int) -> int:
    """Return the smallest power of two that is ``least`` or more."""
    found = 1
    while found < least:
        found *= 2
    return found


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


@in_place
def _size_class(size: int) -> int:
    found = 0
    while size > 1:
        size //= 2
        found += 1
    return found


# --- rows of users


@in_place
def _hashed(key: int, mask: int) -> int:
    return (key ^ (key >> 15)) * 40503 & mask


@in_place
def row_find(rows: Rows, row: int, item: int) -> int:
    """Return the place of an item in a row, -1 if the row does not hold it."""
    start, count = rows.start[row], rows.sizes[row]
    if rows.index_start[row] >= 0:
        mask = 2 * rows.capacity[row] - 1
        place = _hashed(item, mask)
        while True:
            found = rows.lookup[rows.index_start[row] + place]
            if found == 0:
                return -1
            if rows.pool[ITEMS][start + found - 1] == item:
                return found - 1
            place = (place + 1) & mask
    items = rows.pool[ITEMS] if rows.capacity[row] else rows.base[ITEMS]
    for place in range(count):
        if items[start + place] == item:
            return place
    return -1


@in_place
def _index_entry(rows: Rows, row: int, entry: int) -> bool:
    """Enter an entry into the row's index; False where its item is there already."""
    mask = 2 * rows.capacity[row] - 1
    item = rows.pool[ITEMS][rows.start[row] + entry]
    place = _hashed(item, mask)
    while True:
        found = rows.lookup[rows.index_start[row] + place]
        if found == 0:
            rows.lookup[rows.index_start[row] + place] = entry + 1
            return True
        if rows.pool[ITEMS][rows.start[row] + found - 1] == item:
            return False
        place = (place + 1) & mask


@in_place
def row_has_room(rows: Rows, row: int) -> bool:
    """Return whether a row can take one more entry without more memory than there is."""
    count, capacity = rows.sizes[row], rows.capacity[row]
    if capacity > count:
        return True
    size = power_of_two(max(4, count + 1))
    index = 2 * size if size > LINEAR else 0
    return rows.numbers[USED] + size <= len(rows.pool[ITEMS]) and rows.numbers[INDEX_USED] + index <= len(rows.lookup)


@in_place
def _chunk(rows: Rows, size: int) -> int:
    """Return the start of a free chunk of the pool."""
    head = FREE + _size_class(size)
    start = rows.numbers[head]
    if start >= 0:
        rows.numbers[head] = rows.pool[TIMES][start]
        return start
    start = rows.numbers[USED]
    rows.numbers[USED] += size
    return start


@in_place
def _free_chunk(rows: Rows, start: int, size: int) -> None:
    """Let a chunk be used for another row."""
    head = FREE + _size_class(size)
    rows.pool[TIMES][start] = rows.numbers[head]
    rows.numbers[head] = start


@in_place
def _move_row(rows: Rows, row: int, size: int) -> bool:
    """Move a row to a chunk of ``size``; False where the stored row names an item twice, and nothing is changed."""
    old, count, capacity = rows.start[row], rows.sizes[row], rows.capacity[row]
    start = _chunk(rows, size)
    source = rows.pool if capacity else rows.base
    for entry in range(count):
        rows.pool[ITEMS][start + entry] = source[ITEMS][old + entry]
        rows.pool[TIMES][start + entry] = source[TIMES][old + entry]
        rows.pool[SIGNALS][start + entry] = source[SIGNALS][old + entry]
        rows.pool[VALUES][start + entry] = source[VALUES][old + entry]
        rows.pool[POSITIVES][start + entry] = source[POSITIVES][old + entry]
        rows.pool[LATEST][start + entry] = source[LATEST][old + entry]
    rows.start[row], rows.capacity[row] = start, size
    if _has_no_repeat(rows, row):
        if capacity:
            _free_chunk(rows, old, capacity)
        return True
    _free_chunk(rows, start, size)
    if rows.index_start[row] >= 0:
        rows.numbers[INDEX_USED] = rows.index_start[row]
    rows.start[row], rows.capacity[row], rows.index_start[row] = old, capacity, -1
    return False


@in_place
def _has_no_repeat(rows: Rows, row: int) -> bool:
    """Make the index of a row that was moved; return whether its items are distinct."""
    start, count, size = rows.start[row], rows.sizes[row], rows.capacity[row]
    if size > LINEAR:
        rows.index_start[row] = rows.numbers[INDEX_USED]
        rows.numbers[INDEX_USED] += 2 * size
        for place in range(rows.index_start[row], rows.index_start[row] + 2 * size):
            rows.lookup[place] = 0
        is_distinct = True
        for entry in range(count):
            is_distinct &= _index_entry(rows, row, entry)
        return is_distinct
    for entry in range(count):
        for other in range(entry):
            if rows.pool[ITEMS][start + entry] == rows.pool[ITEMS][start + other]:
                return False
    return True


@in_place
def row_open(rows: Rows, row: int) -> bool:
    """Let a row lie in the pool with room for one more entry; False where its stored row names an item twice."""
    if rows.capacity[row] > rows.sizes[row]:
        return True
    return _move_row(rows, row, power_of_two(max(4, rows.sizes[row] + 1)))


@in_place
def row_append(rows: Rows, row: int, item: int, time_ms: int, signal: int, value: float, positives: int) -> None:
    """Append an entry to an open row; its item is not in the row yet."""
    place = rows.start[row] + rows.sizes[row]
    rows.pool[ITEMS][place], rows.pool[TIMES][place], rows.pool[SIGNALS][place] = item, time_ms, signal
    rows.pool[VALUES][place], rows.pool[POSITIVES][place], rows.pool[LATEST][place] = value, positives, time_ms
    rows.sizes[row] += 1
    if rows.index_start[row] >= 0:
        _index_entry(rows, row, rows.sizes[row] - 1)


@in_place
def rows_gather(rows: Rows, n_rows: int, columns: tuple[np.ndarray, ...]) -> None:
    """Write the entries of the first ``n_rows`` rows, one row after the other, into ``columns``."""
    place = 0
    for row in range(n_rows):
        start, count = rows.start[row], rows.sizes[row]
        source = rows.pool if rows.capacity[row] else rows.base
        for entry in range(start, start + count):
            columns[ITEMS][place], columns[TIMES][place] = source[ITEMS][entry], source[TIMES][entry]
            columns[SIGNALS][place], columns[VALUES][place] = source[SIGNALS][entry], source[VALUES][entry]
            columns[POSITIVES][place], columns[LATEST][place] = source[POSITIVES][entry], source[LATEST][entry]
            place += 1


# --- links between items


@in_place
def links_have_room(links: Links, rows: int) -> bool:
    """Return whether so many rows can grow without more memory than there is."""
    return links.numbers[LINKS_USED] + rows * links.numbers[LINKS_LARGEST] <= len(links.table)


@in_place
def _table_place(links: Links, row: int, item: int) -> int:
    """Return the place of an item in a row's table, or the free place where it would lie."""
    start, mask = links.start[row], links.capacity[row] - 1
    place = _hashed(item, mask)
    while links.table[start + place].item >= 0 and links.table[start + place].item != item:
        place = (place + 1) & mask
    return start + place


@in_place
def _resize_table(links: Links, row: int, size: int) -> None:
    """Move a row to a table of ``size`` places."""
    old, count, capacity = links.start[row], links.sizes[row], links.capacity[row]
    head = LINKS_FREE + _size_class(size)
    start = links.numbers[head]
    if start >= 0:
        links.numbers[head] = np.int64(links.table[start].weight)
    else:
        start = links.numbers[LINKS_USED]
        links.numbers[LINKS_USED] += size
    links.start[row], links.capacity[row] = start, size
    for place in range(start, start + size):
        links.table[place].item = -1
    for place in range(old, old + (capacity if capacity else count)):
        item = links.table[place].item if capacity else links.base_items[place]
        if item >= 0:
            found = _table_place(links, row, item)
            links.table[found].item = item
            links.table[found].weight = links.table[place].weight if capacity else links.base_weights[place]
    if capacity:
        head = LINKS_FREE + _size_class(capacity)
        links.table[old].weight = links.numbers[head]
        links.numbers[head] = old


@in_place
def table_places(count: int) -> int:
    """Return the places of a table of ``count`` links, of which four fifths may be in use."""
    return power_of_two(max(8, (5 * count + 3) // 4))


@in_place
def _add_link(links: Links, row: int, item: int, weight: float) -> None:
    if 5 * (links.sizes[row] + 1) > 4 * links.capacity[row]:
        _resize_table(links, row, table_places(links.sizes[row] + 1))
    place = _table_place(links, row, item)
    if links.table[place].item < 0:
        links.table[place].item, links.table[place].weight = item, 0.0
        links.sizes[row] += 1
    links.table[place].weight += weight


@in_place
def _cut(links: Links, row: int) -> None:
    """Keep the strongest links of a row, of equal ones those with the lower items."""
    kept, start, capacity, n = links.numbers[LINKS_KEPT], links.start[row], links.capacity[row], 0
    for place in range(start, start + capacity):
        if links.table[place].item >= 0:
            links.scratch_items[n], links.scratch_weights[n] = links.table[place].item, links.table[place].weight
            n += 1
    for entry in range(n):
        links.scratch_order[entry] = links.scratch_weights[entry]
    weakest, stronger, tied = kth_smallest(links.scratch_order, n, n - kept), 0, 0
    for entry in range(n):
        if links.scratch_weights[entry] > weakest:
            stronger += 1
        elif links.scratch_weights[entry] == weakest:
            links.scratch_order[tied] = links.scratch_items[entry]
            tied += 1
    last_tied = kth_smallest(links.scratch_order, tied, kept - stronger - 1)
    for place in range(start, start + capacity):
        links.table[place].item = -1
    links.sizes[row] = kept
    for entry in range(n):
        item, weight = links.scratch_items[entry], links.scratch_weights[entry]
        if weight > weakest or (weight == weakest and item <= last_tied):
            place = _table_place(links, row, item)
            links.table[place].item, links.table[place].weight = item, weight


@in_place
def link_items(links: Links, item: int, previous: np.ndarray, first: int, last: int) -> None:
    """Link a newly touched item with ``previous[last - 1]`` down to ``previous[first]``, the newest first."""
    limit = 2 * links.numbers[LINKS_KEPT]
    for place in range(last - 1, first - 1, -1):
        other, weight = previous[place], 1.0 / (last - place)
        _add_link(links, item, other, weight)
        _add_link(links, other, item, weight)
        if links.sizes[other] > limit:
            _cut(links, other)
    if links.sizes[item] > limit:
        _cut(links, item)


@compiled
def links_gather(links: Links, row: int, items: np.ndarray, weights: np.ndarray, place: int) -> int:
    """Write a row's links into two arrays from ``place`` on, in the order of the items; return the place after them."""
    first, capacity, start = place, links.capacity[row], links.start[row]
    for entry in range(start, start + (capacity if capacity else links.sizes[row])):
        item = links.table[entry].item if capacity else links.base_items[entry]
        if item >= 0:
            items[place] = item
            weights[place] = links.table[entry].weight if capacity else links.base_weights[entry]
            place += 1
    order = np.argsort(items[first:place], kind="mergesort")
    items[first:place] = items[first:place][order]
    weights[first:place] = weights[first:place][order]
    return place


@compiled
def links_gather_all(links: Links, items: np.ndarray, weights: np.ndarray) -> None:
    """Write the links of all rows, one row after the other."""
    place = 0
    for row in range(len(links.start)):
        place = links_gather(links, row, items, weights, place)


@in_place
def link_weight(links: Links, row: int, item: int) -> float:
    """Return the weight of a link of a row that lies in the pool, 0 without a link."""
    place = _table_place(links, row, item)
    return links.table[place].weight if links.table[place].item >= 0 else 0.0


@in_place
def links_sum_and_max(
    links: Links,
    newest: np.ndarray,
    candidates: np.ndarray,
    touches: np.ndarray,
    total: np.ndarray,
    best: np.ndarray,
) -> None:
    """Write sum and maximum of the normalised links between candidates and a user's newest items.

    Args:
        links: of all items.
        newest: int64 ``[H]`` items.
        candidates: int64 ``[n]`` distinct items.
        touches: int64 ``[N]``.
        total: float64 ``[n]``, overwritten.
        best: float64 ``[n]``, overwritten.
    """
    n = len(candidates)
    for place in range(n):
        total[place], best[place] = 0.0, 0.0
        links.position[candidates[place]] = place
    for item in newest:
        popular, capacity, start = np.sqrt(max(touches[item], 1)), links.capacity[item], links.start[item]
        if capacity > 4 * n:  # few candidates are looked up, many links are gone through: each sum has the same order
            for place in range(n):
                weight = link_weight(links, item, candidates[place]) / popular
                total[place] += weight
                best[place] = max(best[place], weight)
            continue
        for entry in range(start, start + (capacity if capacity else links.sizes[item])):
            other = links.table[entry].item if capacity else links.base_items[entry]
            if other >= 0 and links.position[other] >= 0:
                place = links.position[other]
                weight = (links.table[entry].weight if capacity else links.base_weights[entry]) / popular
                total[place] += weight
                best[place] = max(best[place], weight)
    for place in range(n):
        links.position[candidates[place]] = -1
        norm = np.sqrt(max(touches[candidates[place]], 1))
        total[place] /= norm
        best[place] /= norm


# --- recent touches


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
def trending_scores(log: Log, time_ms: int, segment: int, items: np.ndarray, scores: np.ndarray) -> int:
    """Write the items of the longest window and their scores, see ``trending.Trending.scores``; return how many."""
    everybody = advance_tally(log, 0, time_ms)
    own = advance_tally(log, segment, time_ms) if segment else 0
    windows, smoothing, n = len(log.windows_ms), log.smoothing[0], 0
    for item in range(log.counts.shape[2]):
        if log.counts[everybody, windows - 1, item] == 0:
            continue
        score = 0.0
        for window in range(windows):
            share = log.counts[everybody, window, item] / max(log.totals[everybody, window], 1)
            if segment:
                share = (log.counts[own, window, item] + smoothing * share) / (log.totals[own, window] + smoothing)
            score += log.weights[window] * share
        items[n], scores[n] = item, score
        n += 1
    return n


# --- events


@in_place
def log_has_room(log: Log) -> bool:
    """Return whether a touch can be counted without more memory than there is."""
    return len(log.windows_ms) == 0 or log.numbers[LOG_SIZE] < len(log.items)


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
