"""Training examples of the two-tower model: what a user touched next, given what came before.

Shapes: E examples, B batch, C candidates of a batch, L history length, V versions, X context columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import sparse

from stages.contracts.errors import EmptyDatasetError
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.snapshot import Snapshot, SnapshotMeta
from stages.contracts.tables import PART_CANDIDATE, EventTable
from stages.contracts.touches import by_pair, touching
from stages.features.config import FeatureConfig
from stages.features.history import TowerInputs, age_seconds, event_relevance

__all__ = ["Examples", "first_touches", "latest_inputs", "training_examples"]


_SECOND_MS = 1000
_POSITIONS = ("start", "end", "version_offsets")


@dataclass(frozen=True)
class Examples:
    """First touches of the candidate period, in order of (user, time): both targets and histories.

    Touch e is an example whose target is ``items[e]``; its history is
    ``items[start[e]:end[e]]``, oldest first. Touches at the same time are not in each other's
    history, so ``end`` is the user's first touch with the same time.

    A touch has versions, because a later event may raise its signal. Those of touch e are
    ``version_offsets[e]`` to ``version_offsets[e + 1]``, in time order.

    Attributes:
        items: int32 ``[E]``.
        users: int32 ``[E]``.
        times_ms: int64 ``[E]``.
        contexts: int32 ``[E]``, row of ``moments`` with the context of the touch.
        start: int64 or int32 ``[E]``, position of the user's first touch.
        end: int64 or int32 ``[E]``, one past the newest touch strictly before the example.
        version_offsets: int64 or int32 ``[E + 1]``.
        version_times_ms: int64 ``[V]``, when the version began.
        version_signals: int16 ``[V]``, code of the best event so far, from then on.
        moments: int32 ``[M, X]``, context codes.
    """

    items: np.ndarray
    users: np.ndarray
    times_ms: np.ndarray
    contexts: np.ndarray
    start: np.ndarray
    end: np.ndarray
    version_offsets: np.ndarray
    version_times_ms: np.ndarray
    version_signals: np.ndarray
    moments: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def histories(self, rows: np.ndarray, length: int, padding: int) -> np.ndarray:
        """Return int64 ``[B, L]`` histories of examples, newest first, padded on the right."""
        end_B = self.end[rows]
        return _filled(_newest(self.items, end_B, length), _kept(self.start[rows], end_B, length), padding)

    def inputs(self, rows: np.ndarray, length: int, padding: int) -> TowerInputs:
        """Return the user tower's inputs at each example's time: ``tower_inputs``, vectorised."""
        return self.window(self.start[rows], self.end[rows], self.times_ms[rows], rows, length, padding)

    def window(
        self,
        start_B: np.ndarray,
        end_B: np.ndarray,
        time_ms_B: np.ndarray,
        rows_B: np.ndarray,
        length: int,
        padding: int,
    ) -> TowerInputs:
        """Return the inputs of histories ``[start, end)``, cut to the newest L, as of the given times.

        Args:
            start_B: first touches.
            end_B: one past the last touches.
            time_ms_B: int64, of the requests.
            rows_B: int64, examples whose user and context are used.
            length: L.
            padding: N.
        """
        kept_BL = _kept(start_B, end_B, length)
        if len(self.version_signals) == len(self):  # one version each, whatever the time
            signals_BL = _newest(self.version_signals, end_B, length)
        else:
            touch_BL = np.where(kept_BL, end_B[:, None] - 1 - np.arange(length), 0)
            signals_BL = self.signals_before(touch_BL, time_ms_B[:, None])
        return TowerInputs(
            items=_filled(_newest(self.items, end_B, length), kept_BL, padding),
            signals=_filled(signals_BL, kept_BL, 0),
            ages=_filled(age_seconds(_newest(self.times_ms, end_B, length), time_ms_B[:, None]), kept_BL, 0),
            users=self.users[rows_B].astype(np.int64),
            context=self.moments[self.contexts[rows_B]].astype(np.int64),
        )

    def others(
        self, places_B: np.ndarray, order_E: np.ndarray, sizes_U: np.ndarray, length: int, padding: int
    ) -> TowerInputs:
        """Return the inputs of histories that hold the user's other touches, whenever these were.

        The history of place p is what stands behind it in the user's row of ``order_E``, around the end, cut to L; the
        example is touch ``order_E[p]``. The request is a second after the user's last touch.

        Args:
            places_B: int64, the examples' places in ``order_E``.
            order_E: from ``shuffled``.
            sizes_U: int64, touches of each user.
            length: L.
            padding: N.
        """
        start_B, users_B = self.start[places_B].astype(np.int64), self.users[places_B].astype(np.int64)
        size_B = sizes_U[users_B]
        behind_BL = (places_B - start_B)[:, None] + np.arange(1, length + 1)
        touch_BL = order_E[start_B[:, None] + behind_BL % size_B[:, None]]
        kept_BL = np.arange(length) < (size_B - 1)[:, None]
        asked_ms_B1 = self.times_ms[start_B + size_B - 1][:, None] + _SECOND_MS
        signals_BL = self.version_signals[self.version_offsets[touch_BL + 1] - 1]
        return TowerInputs(
            items=_filled(self.items[touch_BL], kept_BL, padding),
            signals=_filled(signals_BL, kept_BL, 0),
            ages=_filled(age_seconds(self.times_ms[touch_BL], asked_ms_B1), kept_BL, 0),
            users=users_B,
            context=self.moments[self.contexts[order_E[places_B]]].astype(np.int64),
        )

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """Return int64 ``[E]``, the touches with those of each user in a new random order."""
        order_E: np.ndarray = np.argsort(self.users + rng.random(len(self)))
        return order_E

    def signals_before(self, touches: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
        """Return int64 signals of touches as known strictly before ``time_ms`` (broadcast), or else their first."""
        place, last = self.version_offsets[touches], self.version_offsets[touches + 1] - 1
        signals: np.ndarray = self.version_signals[place].astype(np.int64)
        unknown = place < last
        while unknown.any():
            place = np.minimum(place + 1, last)
            later = self.version_times_ms[place] < time_ms
            signals = np.where(later, self.version_signals[place], signals)
            unknown = later & (place < last)
        return signals

    def usable(self, empty_histories: bool, of_others: bool = False) -> np.ndarray:
        """Return int64 rows of the examples to train on: all, or those with a history.

        Args:
            empty_histories: whether to train without a history, too.
            of_others: whether all other touches of the user are the history, or those before the example only.
        """
        has_history = self.sizes()[self.users] > 1 if of_others else self.end > self.start
        return np.flatnonzero(has_history | empty_histories)

    def sizes(self) -> np.ndarray:
        """Return int64 ``[U]``, touches of each user up to the last one who has any."""
        return np.bincount(self.users)

    def read_by_others(self, length: int, of_others: bool = False) -> np.ndarray:
        """Return int64 touches that are in the history, of ``length`` items, of at least one example.

        With ``of_others`` (see ``usable``) these are all touches of users with several. Otherwise it is enough to look
        at the user's next time of a touch, since later times are further away.
        """
        if of_others:
            return self.usable(False, of_others)
        touches = np.arange(len(self))
        moments = np.unique(self.end)
        following = np.searchsorted(moments, touches, side="right")
        touches = touches[following < len(moments)]
        following = moments[following[: len(touches)]]
        near = (self.start[following] == self.start[touches]) & (touches >= following - length)
        read: np.ndarray = touches[near]
        return read

    def save(self, directory: Path) -> None:
        """Write one ``examples_<column>.npy`` a column, positions in 32 bits where these are enough."""
        for field in fields(self):
            column = getattr(self, field.name)
            if field.name in _POSITIONS and column.max(initial=0) < 1 << 31:
                column = column.astype(np.int32)
            np.save(directory / f"examples_{field.name}.npy", column)

    @classmethod
    def load(cls, directory: Path) -> Examples:
        """Map the columns into memory as plain arrays, because every use of a ``memmap`` makes another ``memmap``."""
        columns = {
            field.name: np.load(directory / f"examples_{field.name}.npy", mmap_mode="r", allow_pickle=False)
            for field in fields(cls)
        }
        return cls(**{name: column.view(np.ndarray) for name, column in columns.items()})


def _kept(start_B: np.ndarray, end_B: np.ndarray, length: int) -> np.ndarray:
    """Return bool ``[B, L]``: which of the newest L = ``length`` touches exist, newest first."""
    kept_BL: np.ndarray = np.arange(length) < (end_B - start_B)[:, None]
    return kept_BL


def _filled(values_BL: np.ndarray, kept_BL: np.ndarray, padding: int) -> np.ndarray:
    """Return int64 ``[B, L]`` values, ``padding`` where nothing is kept."""
    filled_BL = values_BL.astype(np.int64, copy=False)
    return filled_BL if kept_BL.all() else np.where(kept_BL, filled_BL, padding)


def _newest(column: np.ndarray, end_B: np.ndarray, length: int) -> np.ndarray:
    """Return ``[B, L]``, a column's values of the newest L touches before ``end_B``; arbitrary where there is none."""
    if len(column) < length or (end_B < length).any():
        return column[np.maximum(end_B[:, None] - 1 - np.arange(length), 0)]
    # Copying a run as a whole takes a fraction of the time of looking up each touch.
    return sliding_window_view(column, length)[end_B - length, ::-1]


def training_examples(
    events: EventTable, meta: SnapshotMeta, features: FeatureConfig, moments: np.ndarray | None = None
) -> Examples:
    """Return one example for each first touch of an item by a user in the candidate period.

    Only rows of active users are read. Exposures (an item was merely shown) are left out.

    Args:
        events: of the snapshot.
        meta: of the snapshot.
        features: which signals are exposures.
        moments: int32 ``[M, X]``, as ``Snapshot.contexts``; None where contexts are not needed.

    Raises:
        EmptyDatasetError: if no row is left.
    """
    touches = touching(meta.signals, features.exposure_signals)[events.signal]
    rows = (events.part == PART_CANDIDATE) & events.active & touches
    if not rows.any():
        part = int((events.part == PART_CANDIDATE).sum())
        raise EmptyDatasetError(
            f"events.parquet: none of {len(events)} events can train the candidate model: {part} lie in its part, "
            f"{int(events.active.sum())} are of active users; events with a signal among "
            f"{list(features.exposure_signals)} do not count"
        )
    touched = events.take(rows)
    relevance = event_relevance(touched.signal, touched.value, meta.signals, meta.tasks)
    return first_touches(touched, relevance, moments)


def first_touches(
    events: EventTable, relevance: np.ndarray | None = None, moments: np.ndarray | None = None
) -> Examples:
    """Return the examples of events that are in time order.

    Args:
        events: touches only.
        relevance: float64, from ``event_relevance``; None counts every event alike.
        moments: int32 ``[M, X]`` context codes; None where no context is known.
    """
    order, first = by_pair(events.user_index, events.item_index)
    user = events.user_index[order]
    better = _improvements(order, first, np.zeros(len(events)) if relevance is None else relevance, events.value)
    starts = np.flatnonzero(first)
    by_time = np.lexsort((order[starts], user[starts]))
    kept = order[starts[by_time]]
    user, time = events.user_index[kept], events.event_time_ms[kept]
    new_user = np.ones(len(kept), dtype=bool)
    new_user[1:] = user[1:] != user[:-1]
    new_moment = new_user.copy()
    new_moment[1:] |= time[1:] != time[:-1]
    n_versions = np.add.reduceat(better.astype(np.int64), starts)[by_time]
    offsets = row_offsets(n_versions)
    versions = order[better][ranges(np.cumsum(better)[starts[by_time]] - 1, n_versions)]
    return Examples(
        items=events.item_index[kept].astype(np.int32),
        users=user.astype(np.int32),
        times_ms=time.astype(np.int64),
        contexts=np.zeros(len(kept), np.int32) if moments is None else events.context[kept].astype(np.int32),
        start=_last_true(new_user),
        end=_last_true(new_moment),
        version_offsets=offsets,
        version_times_ms=events.event_time_ms[versions].astype(np.int64),
        version_signals=events.signal[versions].astype(np.int16),
        moments=np.zeros((1, 0), np.int32) if moments is None else moments,
    )


def touch_matrix(examples: Examples, n_items: int) -> sparse.csr_matrix:
    """Return ones where a user touched an item, float64 ``[U, N]``; users without touches have no row."""
    _, user = np.unique(examples.users, return_inverse=True)
    cells = (user, examples.items.astype(np.int64))
    return sparse.csr_matrix((np.ones(len(user)), cells), shape=(int(user.max()) + 1, n_items))


def latest_inputs(
    snapshot: Snapshot, features: FeatureConfig, n_items: int, n: int, rng: np.random.Generator
) -> TowerInputs:
    """Return the inputs of at most ``n`` users' complete histories, 1 ms after their last touch.

    Raises:
        EmptyDatasetError: if the candidate period holds no touch.
    """
    moments = snapshot.contexts()
    examples = training_examples(snapshot.events(), snapshot.meta, features, moments)
    last = np.flatnonzero(np.append(np.diff(examples.start) > 0, True))
    last = np.sort(rng.choice(last, min(n, len(last)), replace=False))
    asked_ms = examples.times_ms[last] + 1
    length = features.history_length
    return examples.window(examples.start[last], last + 1, asked_ms, last, length, n_items)


def _improvements(order: np.ndarray, first: np.ndarray, relevance: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return bool by ordered event: whether it beats all earlier events of its group by (relevance, value).

    Args:
        order: events sorted by group, then time.
        first: bool, the first event of each group.
        relevance: float64, by event.
        value: float32, by event.
    """
    by_worth = np.lexsort((value, relevance))
    climbs = np.zeros(len(by_worth), dtype=np.int64)
    climbs[1:] = (np.diff(relevance[by_worth]) != 0) | (np.diff(value[by_worth]) != 0)
    worth = np.empty(len(by_worth), dtype=np.int64)
    worth[by_worth] = np.cumsum(climbs)
    grouped = worth[order] + (np.cumsum(first) - 1) * (len(order) + 1)
    best = np.maximum.accumulate(grouped)
    better = first.copy()
    better[1:] |= grouped[1:] > best[:-1]
    return better


def _last_true(flags: np.ndarray) -> np.ndarray:
    """Return for each position the latest position so far whose flag is set."""
    return np.maximum.accumulate(np.where(flags, np.arange(len(flags)), 0))
