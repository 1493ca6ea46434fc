"""Links between items in compiled code, see ``covisitation``.

No function here makes room: callers do, where ``links_have_room`` says so.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import compiled, in_place
from stages.contracts.top_k_kernels import kth_by_counts
from stages.features.state_arrays import (
    LINKS_FREE,
    LINKS_KEPT,
    LINKS_LARGEST,
    LINKS_USED,
    Links,
    hashed,
    power_of_two,
    size_class,
)


@in_place
def links_have_room(links: Links, rows: int) -> bool:
    """Return whether so many rows can grow without more memory than there is."""
    return links.numbers[LINKS_USED] + rows * links.numbers[LINKS_LARGEST] <= len(links.table)


@in_place
def _table_place(links: Links, row: int, item: int) -> int:
    """Return the place of an item in a row's table, or the free place where it would lie."""
    start, mask = links.start[row], links.capacity[row] - 1
    place = hashed(item, mask)
    while links.table[start + place].item >= 0 and links.table[start + place].item != item:
        place = (place + 1) & mask
    return start + place


@in_place
def _resize_table(links: Links, row: int, size: int) -> None:
    """Move a row to a table of ``size`` places."""
    old, count, capacity = links.start[row], links.sizes[row], links.capacity[row]
    head = LINKS_FREE + size_class(size)
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
        head = LINKS_FREE + size_class(capacity)
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
        links.scratch_items[n], links.scratch_weights[n] = links.table[place].item, links.table[place].weight
        n += links.table[place].item >= 0
        links.table[place].item = -1
    weakest, stronger, tied = kth_by_counts(links.scratch_weights, n, n - kept), 0, 0
    for entry in range(n):
        links.scratch_order[tied] = links.scratch_items[entry]
        stronger += links.scratch_weights[entry] > weakest
        tied += links.scratch_weights[entry] == weakest
    last_tied = kth_by_counts(links.scratch_order, tied, kept - stronger - 1)
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
