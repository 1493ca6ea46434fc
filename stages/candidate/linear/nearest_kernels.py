"""The compiled parts of regressing each item on its nearest ones: right sides, and the systems of equations.

Legend: U users, N items, E cells, H head items, b items of a block, m entries of all right sides, k items of a support.
"""

from __future__ import annotations

import numpy as np

from stages.candidate.linear.moments import Cells
from stages.contracts.compiled import compiled, in_place


@compiled
def norms(cells: Cells, directed: bool, norm_N: np.ndarray) -> None:
    """Write the square root of each item's sum with itself; an item that a user has twice counts as two."""
    last = len(cells.weights)
    for item in range(len(norm_N)):
        total = 0.0
        for cell in range(cells.item_offsets[item], cells.item_offsets[item + 1]):
            if directed:
                user = cells.users[cell]
                length = cells.user_offsets[user + 1] - cells.user_offsets[user]
                total += cells.pairs[0, min(length - 1 - cells.item_places[cell], last)]
            else:
                total += cells.item_values[cell] ** 2
        norm_N[item] = np.sqrt(total)


@compiled
def right_sides(
    cells: Cells,
    directed: bool,
    everything: bool,
    first: int,
    offsets: np.ndarray,
    ids: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Write the right sides of the items ``first`` and on: the items that occur with each, and their sums.

    Args:
        cells: of all users.
        directed: see ``Moments``.
        everything: also write the items that do not occur with it, with a sum of 0.
        first: of the b items.
        offsets: int64 ``[b + 1]``, where each right side begins and ends.
        ids: int64 ``[m]``.
        sums: float64 ``[m]``.
    """
    items = len(cells.item_offsets) - 1
    met_in, place = np.full(items, -1, dtype=np.int64), np.empty(items, dtype=np.int64)
    size = 0
    for row in range(len(offsets) - 1):
        item = first + row
        for other in range(items if everything else 0):
            if directed or other != item:
                met_in[other], place[other], ids[size], sums[size] = row, size, other, 0.0
                size += 1
        for cell in range(cells.item_offsets[item], cells.item_offsets[item + 1]):
            start, stop, value = _with(cells, directed, cell)
            for entry in range(start, stop):
                other = cells.items[entry]
                if directed:
                    value = cells.weights[stop - entry - 1]
                elif other == item:
                    continue
                if met_in[other] != row:
                    met_in[other], place[other], ids[size], sums[size] = row, size, other, 0.0
                    size += 1
                sums[place[other]] += value if directed else value * cells.values[entry]
        offsets[row + 1] = size


@in_place
def _with(cells: Cells, directed: bool, cell: int) -> tuple[int, int, float]:
    """Return the first and the last of the cells that count with a cell of an item, and its value where it has one."""
    user = cells.users[cell]
    start = cells.user_offsets[user]
    if not directed:
        return start, cells.user_offsets[user + 1], cells.item_values[cell]
    stop = start + cells.item_places[cell]
    return max(start, stop - len(cells.weights)), stop, 0.0


@compiled
def chosen_sums(
    offsets: np.ndarray,
    ids: np.ndarray,
    sums: np.ndarray,
    support_offsets: np.ndarray,
    support: np.ndarray,
    sum_N: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """Write the sum of each item of the supports, which are taken from the same right sides.

    Args:
        offsets: of ``right_sides``.
        ids: of ``right_sides``.
        sums: of ``right_sides``.
        support_offsets: int64 ``[b + 1]``, where each support begins and ends.
        support: int64 items.
        sum_N: float64 ``[N]``, written over.
        chosen: float64, parallel to ``support``.
    """
    for row in range(len(offsets) - 1):
        for entry in range(offsets[row], offsets[row + 1]):
            sum_N[ids[entry]] = sums[entry]
        for entry in range(support_offsets[row], support_offsets[row + 1]):
            chosen[entry] = sum_N[support[entry]]


@in_place
def _pair(cells: Cells, directed: bool, user: int, one: float, other: float) -> float:
    """Return what two cells of a user add to the sum of their items: of their values, or of their places."""
    if not directed:
        return one * other
    last = len(cells.weights)
    apart = int(abs(one - other))
    if apart >= last:
        return 0.0
    after = cells.user_offsets[user + 1] - cells.user_offsets[user] - 1 - int(max(one, other))
    return float(cells.pairs[apart, min(after, last)])


@compiled
def head_sums(cells: Cells, directed: bool, head_HH: np.ndarray) -> None:
    """Write the sums of the first H items with one another, which all supports share."""
    head = len(head_HH)
    longest = 0
    for user in range(len(cells.user_offsets) - 1):
        longest = max(longest, cells.user_offsets[user + 1] - cells.user_offsets[user])
    held, marks = np.empty(longest, dtype=np.int64), np.empty(longest)
    for user in range(len(cells.user_offsets) - 1):
        size, start = 0, cells.user_offsets[user]
        for entry in range(start, cells.user_offsets[user + 1]):
            if cells.items[entry] < head:
                held[size] = cells.items[entry]
                marks[size] = entry - start if directed else cells.values[entry]
                size += 1
        for one in range(size):
            head_HH[held[one], held[one]] += _pair(cells, directed, user, marks[one], marks[one])
            for other in range(one):
                sums = _pair(cells, directed, user, marks[one], marks[other])
                head_HH[held[one], held[other]] += sums
                head_HH[held[other], held[one]] += sums


@compiled
def systems(
    cells: Cells,
    directed: bool,
    regularisation: float,
    head_HH: np.ndarray,
    support_offsets: np.ndarray,
    support: np.ndarray,
    flat: np.ndarray,
) -> None:
    """Write the matrix of each support, k x k below its diagonal, one after the other.

    Pairs of head items are looked up. The others are found through the users of the items that are no head items: each
    such user has a list of these items, and every item of the support runs through the lists of its users.

    Args:
        cells: of all users.
        directed: see ``Moments``.
        regularisation: added on the diagonals.
        head_HH: of ``head_sums``.
        support_offsets: int64 ``[b + 1]``, where each support begins and ends.
        support: int64 items.
        flat: float64 zeros, the sum of k^2 of them.
    """
    most = 0
    for row in range(len(support_offsets) - 1):
        tail = 0
        for place in range(support_offsets[row], support_offsets[row + 1]):
            if support[place] >= len(head_HH):
                tail += cells.item_offsets[support[place] + 1] - cells.item_offsets[support[place]]
        most = max(most, tail)
    users = len(cells.user_offsets) - 1
    lists = np.full(users, -1, dtype=np.int32), np.zeros(users, dtype=np.int32)
    entries = np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32), np.empty(most)
    start = 0
    for row in range(len(support_offsets) - 1):
        own = support[support_offsets[row] : support_offsets[row + 1]]
        size = len(own)
        matrix = flat[start : start + size * size].reshape((size, size))
        for place in range(size):
            matrix[place, place] = regularisation
        _add_head(head_HH, own, matrix)
        _add_tail(cells, directed, len(head_HH), row, own, lists, entries, matrix)
        start += size * size


@compiled
def _add_head(head_HH: np.ndarray, own: np.ndarray, matrix: np.ndarray) -> None:
    """Add the sums of pairs of head items."""
    for place in range(len(own)):
        if own[place] < len(head_HH):
            for other in range(place + 1):
                if own[other] < len(head_HH):
                    matrix[place, other] += head_HH[own[place], own[other]]


@compiled
def _add_tail(
    cells: Cells,
    directed: bool,
    head: int,
    row: int,
    own: np.ndarray,
    lists: tuple[np.ndarray, np.ndarray],
    entries: tuple[np.ndarray, np.ndarray, np.ndarray],
    matrix: np.ndarray,
) -> None:
    """Add the sums of pairs of which one is no head item.

    Args:
        cells: of all users.
        directed: see ``Moments``.
        head: H.
        row: of the block; it marks the users that have a list.
        own: the support.
        lists: of each user the row that its list belongs to, and its newest entry.
        entries: of all lists: the entry before, the place in the support, and the cell's value or place.
        matrix: of the support.
    """
    (list_of, newest), (before, place_of, marks) = lists, entries
    size = 0
    for tail in (True, False):
        for place in range(len(own)):
            if (own[place] >= head) != tail or (size == 0 and not tail):
                continue
            for cell in range(cells.item_offsets[own[place]], cells.item_offsets[own[place] + 1]):
                user = cells.users[cell]
                if list_of[user] != row:
                    if not tail:
                        continue
                    list_of[user], newest[user] = row, -1
                mark = float(cells.item_places[cell]) if directed else cells.item_values[cell]
                entry = newest[user]
                while entry >= 0:
                    other, sums = place_of[entry], _pair(cells, directed, user, mark, marks[entry])
                    matrix[max(place, other), min(place, other)] += sums if other != place else 2 * sums
                    entry = before[entry]
                if tail:
                    matrix[place, place] += _pair(cells, directed, user, mark, mark)
                    before[size], place_of[size], marks[size] = newest[user], place, mark
                    newest[user] = size
                    size += 1
