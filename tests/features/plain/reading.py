"""What the state says of many requests, each read at its own time while the log is replayed.

Shapes: B requests of a block, L history length, N items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.tables import EventTable, RequestTable, ScoredItems
from stages.contracts.top_k import top_k
from stages.features.history import Moment, tower_inputs
from stages.features.reading import CovisitationReading, Reading, Wanted
from stages.features.state import FunnelState
from tests.features.plain.replay import replay

COVISITATION = "covisitation"


@dataclass
class _Growing:
    rows: list[int] = field(default_factory=list)
    histories: list = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    seen: list[np.ndarray] = field(default_factory=list)
    lists: dict[str, list[ScoredItems]] = field(default_factory=lambda: defaultdict(list))
    popular: list[ScoredItems] = field(default_factory=list)


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
        DataError: if the events are not in time order.
    """
    growing = _Growing()
    for row in replay(events, requests, state, contexts if state.context else None):
        if chosen is None or chosen[row]:
            _read(growing, row, requests, state, wanted, contexts)
            if len(growing.rows) == size:
                yield _finished(growing, state, wanted)
                growing = _Growing()
    if growing.rows:
        yield _finished(growing, state, wanted)


def _read(
    growing: _Growing,
    row: int,
    requests: RequestTable,
    state: FunnelState,
    wanted: Wanted,
    contexts: np.ndarray | None,
) -> None:
    user, time_ms = int(requests.user_index[row]), int(requests.request_time_ms[row])
    available_ms = wanted.available_ms[int(requests.part[row])]
    context = () if contexts is None else tuple(contexts[requests.context[row]].tolist())
    history, seen = state.history(user), state.touched(user)
    growing.rows.append(row)
    growing.histories.append(history)
    growing.moments.append(Moment(time_ms, user, context))
    growing.seen.append(seen)
    if wanted.visit is not None:
        wanted.visit(row, state)
    nothing = ScoredItems(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    if wanted.covisitation is not None:
        pool = _linked(wanted.covisitation, state, history.items)
        growing.lists[COVISITATION].append(_best(pool, seen, available_ms, time_ms, wanted.lists_k))
    for name in wanted.trending:
        pool = state.trending.scores(time_ms, state.trending.segment(context), name)
        growing.lists[name].append(_best(pool, seen, available_ms, time_ms, wanted.lists_k))
    empty = wanted.popular_k and not len(history.items)
    popular = state.popular(time_ms, wanted.popular_k, seen, available_ms, wanted.popular_half_life)
    growing.popular.append(popular if empty else nothing)


def _linked(reading: CovisitationReading, state: FunnelState, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    newest = history[: len(reading.weights)]
    if not len(newest):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    weights = reading.weights[: len(newest)] / np.sqrt(np.maximum(state.touches[newest], 1))
    rows = [state.covisitation.neighbours(item) for item in newest.tolist()]
    factors = np.repeat(weights, [len(items) for items, _ in rows])
    ids, place = np.unique(np.concatenate([items for items, _ in rows]), return_inverse=True)
    scores = np.bincount(place, np.concatenate([links for _, links in rows]) * factors, minlength=len(ids))
    ids = ids.astype(np.int64)
    return ids, scores / np.sqrt(np.maximum(state.touches[ids] + reading.smoothing, 1))


def _best(
    pool: tuple[np.ndarray, np.ndarray], seen: np.ndarray, available_ms: np.ndarray, time_ms: int, k: int
) -> ScoredItems:
    ids, scores = pool[0], pool[1].astype(np.float32)
    kept = (scores > 0) & (available_ms[ids] <= time_ms) & ~np.isin(ids, seen)
    ids, scores = ids[kept], scores[kept]
    best = top_k(scores, k, ids)
    return ScoredItems(ids[best].astype(np.int64), scores[best])


def _finished(growing: _Growing, state: FunnelState, wanted: Wanted) -> Reading:
    inputs = tower_inputs(growing.histories, growing.moments, state.config, len(state.items))
    names = [*[COVISITATION] * (wanted.covisitation is not None), *wanted.trending]
    return Reading(
        rows=np.array(growing.rows, dtype=np.int64),
        inputs=inputs,
        lengths=np.array([len(history.items) for history in growing.histories], dtype=np.int64),
        seen_offsets=row_offsets([len(items) for items in growing.seen]),
        seen=np.concatenate([np.zeros(0, dtype=np.int64), *growing.seen]),
        lists={name: ItemLists.join(growing.lists[name]) for name in names},
        popular=ItemLists.join(growing.popular),
    )
