"""Reads what the state says of requests while the log is replayed, in compiled code.

Shapes: B requests of a block, L history length, N items, P parts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stages.contracts.compiled import in_place, in_place_once
from stages.contracts.top_k_kernels import keep_best
from stages.features.state_arrays import ITEMS, SIGNALS, TIMES, Counts, Decayed, EventColumns, Links, Log, Rows, State
from stages.features.state_kernels import apply_events
from stages.features.trending_kernels import trending_scores

FINISHED, NEEDS_ROOM, SEEN_IS_FULL = 0, 1, 2
"""Why ``read_requests`` returns: all are read, the state needs room for the next event, ``Room.seen`` needs more."""
ALL_TIME = -1
"""``Asked.popular_half_life`` of touches that do not decay."""


class Asked(NamedTuple):
    """All requests, and what is read.

    Attributes:
        user, time_ms, borders: int64 ``[Q]``; the first event that is not before each request.
        part: int64 ``[Q]``, row of ``available_ms``.
        segment: int64 ``[Q]``.
        available_ms: int64 ``[P, N]``.
        weights: float64 ``[H]``, of the newest items by position; none where no links are read.
        smoothing: touches that are added to a candidate's popularity.
        trending: int64, the lists of recent touches that are read, as positions among those of the state.
        lists_k, popular_k: how many items; 0 for none.
        popular_half_life: position of the popular list's half-life, or ``ALL_TIME``.
    """

    user: np.ndarray
    time_ms: np.ndarray
    borders: np.ndarray
    part: np.ndarray
    segment: np.ndarray
    available_ms: np.ndarray
    weights: np.ndarray
    smoothing: float
    trending: np.ndarray
    lists_k: int
    popular_k: int
    popular_half_life: int


class Lists(NamedTuple):
    """Lists of a block: int64 and float32 ``[B, k]``, and int64 ``[B]``, how many items each holds.

    Several lists are one after the other, ``[V B, k]`` and ``[V B]``.
    """

    ids: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray


class Room(NamedTuple):
    """Where a block is written.

    Attributes:
        items, signals, ages: int64 ``[B, L]``; lengths: int64 ``[B]``.
        seen_offsets: int64 ``[B + 1]``; seen: int64.
        linked, trending, popular: the lists.
        marks: int64 ``[2, N]``, stamps of seen and of found items; stamp: int64 ``[1]``.
        sums: float64 ``[N]``; ids: int64 ``[N]``; scores: float32 ``[N]``; order: float64 ``[N]``.
    """

    items: np.ndarray
    signals: np.ndarray
    ages: np.ndarray
    lengths: np.ndarray
    seen_offsets: np.ndarray
    seen: np.ndarray
    linked: Lists
    trending: Lists
    popular: Lists
    marks: np.ndarray
    stamp: np.ndarray
    sums: np.ndarray
    ids: np.ndarray
    scores: np.ndarray
    order: np.ndarray


@in_place
def _read_history(users: Rows, room: Room, place: int, user: int, time_ms: int) -> None:
    """Write the newest items, and all that were seen."""
    known = 0 <= user < len(users.start)
    start, count = (users.start[user], users.sizes[user]) if known else (0, 0)
    columns = users.pool if known and users.capacity[user] else users.base
    n = min(count, room.items.shape[1])
    room.lengths[place] = n
    for position in range(n):
        entry = start + count - 1 - position
        room.items[place, position] = columns[ITEMS][entry]
        room.signals[place, position] = columns[SIGNALS][entry]
        room.ages[place, position] = max(time_ms - columns[TIMES][entry], 0) // 1000
    first = room.seen_offsets[place]
    room.stamp[0] += 1
    for entry in range(count):
        item = columns[ITEMS][start + entry]
        room.seen[first + entry] = item
        room.marks[0, item] = room.stamp[0]
    room.seen_offsets[place + 1] = first + count


@in_place
def _keep(room: Room, lists: Lists, place: int, available_ms: np.ndarray, time_ms: int, n: int, k: int) -> None:
    """Keep the best of the first ``n`` ids and scores that are above 0, available and not seen."""
    kept = 0
    for entry in range(n):
        item = room.ids[entry]
        if room.scores[entry] > 0 and available_ms[item] <= time_ms and room.marks[0, item] != room.stamp[0]:
            room.ids[kept], room.scores[kept] = item, room.scores[entry]
            kept += 1
    kept = keep_best(room.ids, room.scores, kept, k, room.order)
    for entry in range(kept):
        lists.ids[place, entry], lists.scores[place, entry] = room.ids[entry], room.scores[entry]
    lists.lengths[place] = kept


@in_place
def _read_links(links: Links, touches: np.ndarray, asked: Asked, room: Room, place: int) -> int:
    """Write every item that is linked with the newest ones; return how many there are."""
    found = 0
    for position in range(min(room.lengths[place], len(asked.weights))):
        item = room.items[place, position]
        factor = asked.weights[position] / math.sqrt(max(touches[item], 1))
        capacity, start = links.capacity[item], links.start[item]
        for entry in range(start, start + (capacity if capacity else links.sizes[item])):
            other = links.table[entry].item if capacity else links.base_items[entry]
            if other < 0:
                continue
            weight = links.table[entry].weight if capacity else links.base_weights[entry]
            if room.marks[1, other] != room.stamp[0]:
                room.marks[1, other], room.sums[other] = room.stamp[0], 0.0
                room.ids[found] = other
                found += 1
            room.sums[other] += weight * factor
    for entry in range(found):
        item = room.ids[entry]
        room.scores[entry] = room.sums[item] / math.sqrt(max(touches[item] + asked.smoothing, 1))
    return found


@in_place
def _read_popular(
    touches: np.ndarray, counts: Decayed, asked: Asked, room: Room, place: int, available_ms: np.ndarray, time_ms: int
) -> None:
    """Write the most popular items at the half-life that is asked for."""
    half_life, n = asked.popular_half_life, 0
    for item in range(len(counts.last_ms)):
        if available_ms[item] <= time_ms and room.marks[0, item] != room.stamp[0]:
            score = float(touches[item])
            if half_life != ALL_TIME:
                elapsed = max(time_ms - counts.last_ms[item], 0)
                score = counts.values[half_life, item] * 2.0 ** (elapsed / -counts.half_lives_ms[half_life])
            room.ids[n], room.scores[n] = item, score
            n += 1
    kept = keep_best(room.ids, room.scores, n, asked.popular_k, room.order)
    for entry in range(kept):
        room.popular.ids[place, entry], room.popular.scores[place, entry] = room.ids[entry], room.scores[entry]
    room.popular.lengths[place] = kept


@in_place
def _read_lists(
    counts: Counts, popularity: Decayed, links: Links, log: Log, asked: Asked, room: Room, place: int, row: int
) -> None:
    available_ms, time_ms = asked.available_ms[asked.part[row]], asked.time_ms[row]
    if len(asked.weights):
        n = _read_links(links, counts.touches, asked, room, place)
        _keep(room, room.linked, place, available_ms, time_ms, n, asked.lists_k)
    for number in range(len(asked.trending)):
        n = trending_scores(log, asked.trending[number], time_ms, asked.segment[row], room.ids, room.sums)
        for entry in range(n):
            room.scores[entry] = room.sums[entry]
        _keep(room, room.trending, number * len(room.lengths) + place, available_ms, time_ms, n, asked.lists_k)
    room.popular.lengths[place] = 0
    if asked.popular_k and room.lengths[place] == 0:
        _read_popular(counts.touches, popularity, asked, room, place, available_ms, time_ms)


@in_place_once
def read_requests(
    state: State, events: EventColumns, done: int, asked: Asked, rows: np.ndarray, first: int, last: int, room: Room
) -> tuple[int, int, int]:
    """Advance the state to each request of a block, and read it.

    Args:
        state: has had the events before ``done``.
        events: in time order.
        done: the first event that was not applied yet.
        asked: all requests.
        rows: int64 ``[B]``, the block's requests, in the order of time.
        first: the first of the block's requests to read.
        last: one behind the last.
        room: where they are written.

    Returns:
        The next event, the next request of the block, and why it is not the last one.
    """
    for place in range(first, last):
        row = rows[place]
        done = apply_events(state, events, done, asked.borders[row])
        if done < asked.borders[row]:
            return done, place, NEEDS_ROOM
        user, users = asked.user[row], state.users
        count = users.sizes[user] if 0 <= user < len(users.start) else 0
        if room.seen_offsets[place] + count > len(room.seen):
            return done, place, SEEN_IS_FULL
        _read_history(users, room, place, user, asked.time_ms[row])
        _read_lists(state.counts, state.item_counts, state.links, state.log, asked, room, place, row)
    return done, last, FINISHED
