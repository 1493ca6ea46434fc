"""What the state says of many requests, each read at its own time while the log is replayed.

Shapes: B requests of a block, L history length, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.contracts.compiled import frozen
from stages.contracts.errors import DataError
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.tables import EventTable, RequestTable
from stages.features.history import TowerInputs
from stages.features.reading_kernels import ALL_TIME, NEEDS_ROOM, SEEN_IS_FULL, Asked, Lists, Room, read_requests
from stages.features.state import FunnelState

COVISITATION = "covisitation"
_SEEN = 1 << 22
"""Seen items of a block, at most, where one request's alone are not more."""


@dataclass(frozen=True)
class CovisitationReading:
    """How a user's links are summed into scores, see ``stages.candidate.generators.covisitation``.

    Attributes:
        weights: float64 ``[H]``, weight of each of the newest H items, newest first.
        smoothing: touches that are added to a candidate's popularity.
    """

    weights: np.ndarray
    smoothing: float


@dataclass(frozen=True)
class Wanted:
    """What is read at a request.

    Attributes:
        available_ms: by part, int64 ``[N]``, when each item may be recommended.
        lists_k: longest list of a generator.
        covisitation: reads the list ``covisitation``; None leaves it out.
        trending: the lists of recent touches that are read, by name, see ``TrendsConfig``.
        popular_k: length of the popular list of a request without history; 0 leaves it out.
        popular_half_life: position in ``half_lives_days`` (-1 is the longest) of the popular list's counts; None counts
            the touches of all time alike.
        visit: called at each request with its row and the state, before anything later is applied: for generators that
            have no compiled reader. It slows the replay down. None without any.
    """

    available_ms: dict[int, np.ndarray]
    lists_k: int = 0
    covisitation: CovisitationReading | None = None
    trending: tuple[str, ...] = ()
    popular_k: int = 0
    popular_half_life: int | None = -1
    visit: Callable[[int, FunnelState], None] | None = None


@dataclass(frozen=True)
class Reading:
    """What the state said of B requests, each just before its time.

    Attributes:
        rows: int64 ``[B]``, rows of the request table, in the order of time.
        inputs: of the user tower, for all B requests; a request without history is all padding.
        lengths: int64 ``[B]``, items of each history, at most L; 0 for a request without one.
        seen_offsets: int64 ``[B + 1]``.
        seen: int64, all items that a request's user has touched, in the order of first touches; those of request b are
            ``seen[seen_offsets[b]:seen_offsets[b + 1]]``.
        lists: the best ``lists_k`` items by generator that was wanted: with a score above 0, available at the time,
            not seen; of equal scores the lower item index first.
        popular: the popular items where there is no history; an empty list for the other requests.
    """

    rows: np.ndarray
    inputs: TowerInputs
    lengths: np.ndarray
    seen_offsets: np.ndarray
    seen: np.ndarray
    lists: dict[str, ItemLists]
    popular: ItemLists

    def __len__(self) -> int:
        return len(self.rows)

    def seen_by(self, number: int) -> np.ndarray:
        """Return the int64 items that the user of request ``number`` of the block has touched, oldest first."""
        return self.seen[self.seen_offsets[number] : self.seen_offsets[number + 1]]


def read_blocks(
    events: EventTable,
    requests: RequestTable,
    state: FunnelState,
    wanted: Wanted,
    size: int,
    contexts: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
) -> Iterator[Reading]:
    """Replay the events, and yield what the state says at the requests, in blocks in the order of time.

    Args:
        events: in time order.
        requests: in the order of time.
        state: advanced in place; after the last block all events are applied.
        wanted: what is read.
        size: requests of a block, at most; a block ends early where it would hold very many seen items.
        contexts: int32 ``[X, C]``, as ``Snapshot.contexts``; None if neither the state nor a list reads a context.
        chosen: bool ``[Q]``, the requests to read; None for all.

    Raises:
        DataError: if the requests or the events are not in time order, or an event is out of range.
    """
    columns = state.columns(events, contexts if state.context else None)
    asked = _asked(events, requests, state, wanted, contexts)
    if wanted.trending and state.trending is not None:
        for segment in np.unique(np.append(asked.segment, 0)).tolist():
            state.trending.make_tally(segment)
    rows = np.arange(len(requests)) if chosen is None else np.flatnonzero(chosen)
    done, first, seen = 0, 0, np.empty(_SEEN, dtype=np.int64)
    while first < len(rows):
        block = rows[first : first + size]
        room = _room(state, wanted, len(block), seen)
        read, step = 0, 1 if wanted.visit is not None else len(block)
        while read < len(block):
            last = min(read + step, len(block))
            done, after, why = read_requests(state.arrays, columns, done, asked, frozen(block), read, last, room)
            if wanted.visit is not None and after > read:
                wanted.visit(int(block[read]), state)
            read = after
            if why == NEEDS_ROOM:
                state.make_room(int(events.user_index[done]))
            elif why == SEEN_IS_FULL and read:
                break
            elif why == SEEN_IS_FULL:
                seen = np.empty(2 * len(seen), dtype=np.int64)
                room = room._replace(seen=seen)
        yield _reading(block[:read], requests, room, wanted, contexts)
        first += read
    state.apply_all(columns, done, len(events))


def _asked(
    events: EventTable, requests: RequestTable, state: FunnelState, wanted: Wanted, contexts: np.ndarray | None
) -> Asked:
    """Return the requests for compiled functions.

    Raises:
        DataError: if the requests are not sorted by time, or one is of a part without times of availability.
    """
    if (np.diff(requests.request_time_ms) < 0).any():
        raise DataError("requests must be sorted by request_time_ms")
    parts = sorted(wanted.available_ms)
    unknown = np.setdiff1d(requests.part, parts)
    if len(unknown):
        raise DataError(f"requests: part = {unknown[0]}, allowed are {parts}")
    segments = np.zeros(len(requests), dtype=np.int64)
    if state.trending is not None and contexts is not None:
        segments = state.trending.segments(contexts)[requests.context]
    reading = wanted.covisitation
    return Asked(
        user=frozen(requests.user_index),
        time_ms=frozen(requests.request_time_ms),
        borders=frozen(np.searchsorted(events.event_time_ms, requests.request_time_ms, side="left")),
        part=frozen(np.searchsorted(parts, requests.part).astype(np.int64)),
        segment=frozen(segments),
        available_ms=frozen(np.stack([wanted.available_ms[part] for part in parts])),
        weights=frozen(np.zeros(0) if reading is None else reading.weights),
        smoothing=0.0 if reading is None else float(reading.smoothing),
        trending=frozen(np.array(_trends(state, wanted), dtype=np.int64)),
        lists_k=wanted.lists_k,
        popular_k=wanted.popular_k,
        popular_half_life=_half_life(wanted.popular_half_life, state),
    )


def _trends(state: FunnelState, wanted: Wanted) -> list[int]:
    """Return the positions of the lists of recent touches that are read.

    Raises:
        ReleaseError: if the state has no such list.
    """
    return [] if state.trending is None else [state.trending.number(name) for name in wanted.trending]


def _half_life(position: int | None, state: FunnelState) -> int:
    """Return a position among the state's half-lives, ``ALL_TIME`` for None."""
    return ALL_TIME if position is None else range(len(state.config.half_lives_days))[position]


def _room(state: FunnelState, wanted: Wanted, size: int, seen: np.ndarray) -> Room:
    n, length = len(state.items), state.config.history_length

    def lists(k: int, several: int = 1) -> Lists:
        rows = several * size
        return Lists(np.empty((rows, k), np.int64), np.empty((rows, k), np.float32), np.zeros(rows, np.int64))

    return Room(
        items=np.full((size, length), n, dtype=np.int64),
        signals=np.zeros((size, length), dtype=np.int64),
        ages=np.zeros((size, length), dtype=np.int64),
        lengths=np.zeros(size, dtype=np.int64),
        seen_offsets=np.zeros(size + 1, dtype=np.int64),
        seen=seen,
        linked=lists(0 if wanted.covisitation is None else min(wanted.lists_k, n)),
        trending=lists(min(wanted.lists_k, n), len(wanted.trending)),
        popular=lists(min(wanted.popular_k, n)),
        marks=np.zeros((2, n), dtype=np.int64),
        stamp=np.zeros(1, dtype=np.int64),
        sums=np.zeros(n),
        ids=np.zeros(n, dtype=np.int64),
        scores=np.zeros(n, dtype=np.float32),
        order=np.zeros(n),
    )


def _reading(
    rows: np.ndarray, requests: RequestTable, room: Room, wanted: Wanted, contexts: np.ndarray | None
) -> Reading:
    """Return copies of what was read of the first requests of a block."""
    n = len(rows)
    codes = np.zeros((n, 0), dtype=np.int64) if contexts is None else contexts[requests.context[rows]].astype(np.int64)
    users = requests.user_index[rows].astype(np.int64)
    read = {COVISITATION: room.linked} if wanted.covisitation is not None else {}
    size = len(room.lengths)
    for number, name in enumerate(wanted.trending):
        mine = slice(number * size, (number + 1) * size)
        read[name] = Lists(*(column[mine] for column in room.trending))
    offsets = room.seen_offsets[: n + 1]
    return Reading(
        rows=rows.astype(np.int64),
        inputs=TowerInputs(room.items[:n], room.signals[:n], room.ages[:n], users, codes),
        lengths=room.lengths[:n],
        seen_offsets=offsets,
        seen=room.seen[: offsets[-1]].copy(),
        lists={name: _joined(lists, n) for name, lists in read.items()},
        popular=_joined(room.popular, n),
    )


def _joined(lists: Lists, n: int) -> ItemLists:
    lengths = lists.lengths[:n]
    filled = np.arange(lists.ids.shape[1]) < lengths[:, None]
    return ItemLists(row_offsets(lengths), lists.ids[:n][filled], lists.scores[:n][filled])
