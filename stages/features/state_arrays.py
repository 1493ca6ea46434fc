"""The arrays of the serving state, in the form in which compiled functions take them, and places in their pools.

Shapes: N items, U users, C categories, T tasks, S signals, K half-lives, V context values, W windows, G segments that
are read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.contracts.compiled import in_place

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
        windows_ms: int64 ``[W]``, shortest first; none where trends are not counted.
        weights: float64 ``[V, W]``, of each list's windows, 0 for one that it does not read.
        longest: int64 ``[V]``, position of each list's longest window.
        segmented: int64 ``[V]``, 1 for a list by segment.
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
    longest: np.ndarray
    segmented: np.ndarray
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
def size_class(size: int) -> int:
    """Return the exponent of a power of two."""
    found = 0
    while size > 1:
        size //= 2
        found += 1
    return found


@in_place
def hashed(key: int, mask: int) -> int:
    """Return the place where the search for a key begins; mask is one less than the places, a power of two."""
    return (key ^ (key >> 15)) * 40503 & mask
