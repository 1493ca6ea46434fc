"""Rows of users in compiled code, see ``user_rows``.

No function here makes room: callers do, where ``row_has_room`` says so.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import in_place
from stages.features.state_arrays import (
    FREE,
    INDEX_USED,
    ITEMS,
    LATEST,
    LINEAR,
    POSITIVES,
    SIGNALS,
    TIMES,
    USED,
    VALUES,
    Rows,
    hashed,
    power_of_two,
    size_class,
)


@in_place
def row_find(rows: Rows, row: int, item: int) -> int:
    """Return the place of an item in a row, -1 if the row does not hold it."""
    start, count = rows.start[row], rows.sizes[row]
    if rows.index_start[row] >= 0:
        mask = 2 * rows.capacity[row] - 1
        place = hashed(item, mask)
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
    place = hashed(item, mask)
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
    head = FREE + size_class(size)
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
    head = FREE + size_class(size)
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
