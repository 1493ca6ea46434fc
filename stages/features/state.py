"""FunnelState: everything that events update, offline by replay and online by posted events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.contracts.compiled import frozen
from stages.contracts.files import write_json
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import EventTable, ScoredItems
from stages.features.config import FeatureConfig, TrendsConfig
from stages.features.counters import NEVER_MS, DecayedCounts
from stages.features.covisitation import Covisitation
from stages.features.event_rules import check_event, check_events, event_columns, rules_of
from stages.features.state_arrays import (
    BROKEN_ROW,
    EVENT_TYPES,
    ITEMS,
    LATEST,
    N_USERS,
    POSITIVES,
    SIGNALS,
    TIMES,
    VALUES,
    Counts,
    EventColumns,
    Items,
    State,
)
from stages.features.state_files import (
    DECAYED,
    PLAIN,
    STATE_FILE,
    SUMMED,
    array_shapes,
    check_identity,
    check_values,
    load_arrays,
    state_identity,
)
from stages.features.state_kernels import apply_events
from stages.features.trending import Trending, no_log
from stages.features.user_rows import UserRows

_HISTORY = (ITEMS, TIMES, SIGNALS, VALUES)


@dataclass(frozen=True)
class History:
    """A user's newest distinct items, NEWEST FIRST by first touch.

    Attributes:
        items: int64 ``[H]``, H at most ``history_length``.
        times_ms: int64 ``[H]``, times of the first touches.
        signals: int16 ``[H]``, code of the item's best event: the event with the greatest relevance,
            summed over the tasks, then with the greatest value.
        values: float32 ``[H]``, value of the best event.
    """

    items: np.ndarray
    times_ms: np.ndarray
    signals: np.ndarray
    values: np.ndarray


class FunnelState:
    """Histories, counters and co-visitation of all users and items, after the events applied so far.

    A *touch* is an event that is not an exposure, see ``stages.contracts.touches``. A user's first touch
    of an item enters the history, the popularity counters and the co-visitation links. Later touches of
    the same item do not change the history's order. They count as events, may replace the item's signal
    and value by a better event's, and add positives of tasks that the pair was not positive for yet.

    Events should come in time order. A late event counts at the newest time that its counters have seen
    (see ``counters``) and enters the history as the newest entry.

    Not thread-safe: a shared state needs one lock around ``apply`` and around reads.

    Attributes:
        items, config, signals, tasks: as given to ``empty`` or ``load``.
        context: context columns; all columns together have V values.
        context_starts: position of each column's first value among all V.
        item_counts, category_counts: decayed first touches by item and by category; an item with
            several categories counts once in each.
        task_counts: positives as in ``positives``, decayed at the middle half-life; row t * N + i.
        category_task_counts: positives by category, decayed likewise; row t * C + c.
        exposure_counts: exposures by item, decayed at the middle half-life.
        touches: int64 ``[N]`` first touches of all time.
        exposures: int64 ``[N]`` exposure events of all time.
        positives: int64 ``[T, N]`` number of user-item pairs that were positive for a task.
        item_events: int64 ``[N]`` touches, repeated touches included; item_value_sum: float64 ``[N]``, sum of
            their values.
        totals: float64 ``[4 + T]``, sums over items; read them through ``total`` and ``task_total``.
        category_touches: int64 ``[C]`` first touches; category_positives: int64 ``[T, C]``.
        context_counts: int32 ``[V, N]`` first touches of an item by context value;
            context_categories: int64 ``[V, C]`` the same by category; context_totals: int64 ``[V]``.
        covisitation: links between items.
        trending: recent touches; None if they are not counted.
    """

    def __init__(
        self,
        items: ItemTable,
        config: FeatureConfig,
        signals: tuple[str, ...],
        tasks: tuple[Task, ...],
        context: tuple[ContextColumn, ...],
        arrays: dict[str, np.ndarray],
        trending: TrendsConfig | None = None,
    ) -> None:
        """Create the state from the arrays that ``save`` writes; use ``empty`` or ``load`` instead."""
        self.items, self.config, self.signals, self.tasks, self.context = items, config, signals, tasks, context
        half_lives, middle = config.half_lives_days, (config.half_lives_days[config.middle_half_life],)
        self.item_counts = DecayedCounts(arrays["item_counts"], arrays["item_last_ms"], half_lives)
        self.category_counts = DecayedCounts(arrays["category_counts"], arrays["category_last_ms"], half_lives)
        self.task_counts = DecayedCounts(arrays["task_counts"], arrays["task_last_ms"], middle)
        self.category_task_counts = DecayedCounts(
            arrays["category_task_counts"], arrays["category_task_last_ms"], middle
        )
        self.exposure_counts = DecayedCounts(arrays["exposure_counts"], arrays["exposure_last_ms"], middle)
        self.touches, self.exposures = arrays["touches"], arrays["exposures"]
        self.positives, self.totals = arrays["positives"], arrays["totals"]
        self.item_events, self.item_value_sum = arrays["item_events"], arrays["item_value_sum"]
        self.category_touches, self.category_positives = arrays["category_touches"], arrays["category_positives"]
        self.context_counts, self.context_categories = arrays["context_counts"], arrays["context_categories"]
        self.context_totals = arrays["context_totals"]
        self._users = UserRows(arrays)
        self.covisitation = Covisitation(arrays, len(items), config.covisitation_neighbours, config.covisitation_window)
        self.trending = None if trending is None else Trending(trending, context, arrays, len(items))
        self._codes = [{value: code for code, value in enumerate(column.values, start=1)} for column in context]
        self.context_starts = tuple(accumulate((len(column.values) for column in context), initial=0))[:-1]
        self._items = Items(*(frozen(getattr(items, name)) for name in Items._fields))
        self._no_log = no_log(len(items))
        self._one_event = tuple(np.zeros(1, dtype=dtype) for dtype in EVENT_TYPES)
        self._rules = rules_of(signals, tasks, config.exposure_signals)
        self._counts = Counts(*(np.asarray(arrays[name]) for name in Counts._fields))
        self._numbers = np.array([len(arrays["users_offsets"]) - 1, 0], dtype=np.int64)

    @classmethod
    def empty(
        cls,
        items: ItemTable,
        config: FeatureConfig,
        signals: tuple[str, ...],
        tasks: tuple[Task, ...],
        n_users: int = 0,
        context: tuple[ContextColumn, ...] = (),
        trending: TrendsConfig | None = None,
    ) -> FunnelState:
        """Return the state before any event.

        Args:
            items: the catalogue, N rows.
            config: what to keep.
            signals: event kinds; ``apply`` takes positions in this tuple.
            tasks: T tasks whose positives are counted.
            n_users: number of users known beforehand; other users are added with their first event.
            context: context columns.
            trending: short windows to count, or None.
        """
        shapes = array_shapes(items, config, tasks, context, trending)
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
        for prefix in DECAYED:
            arrays[f"{prefix}_last_ms"].fill(NEVER_MS)
        state = cls(items, config, signals, tasks, context, arrays, trending)
        state.know_users(n_users)
        return state

    @property
    def n_users(self) -> int:
        """Number of users known so far."""
        return int(self._numbers[N_USERS])

    @property
    def arrays(self) -> State:
        """Everything, for compiled functions; another tuple after ``make_room``."""
        return State(
            items=self._items,
            rules=self._rules,
            counts=self._counts,
            item_counts=self.item_counts.arrays,
            category_counts=self.category_counts.arrays,
            task_counts=self.task_counts.arrays,
            category_task_counts=self.category_task_counts.arrays,
            exposure_counts=self.exposure_counts.arrays,
            users=self._users.arrays,
            links=self.covisitation.arrays,
            log=self._no_log if self.trending is None else self.trending.arrays,
            numbers=self._numbers,
        )

    def know_users(self, n_users: int) -> None:
        """Let users 0 to ``n_users`` be known, without any event of theirs."""
        self._numbers[N_USERS] = max(n_users, self.n_users)
        if n_users:
            self._users.make_room(n_users, n_users - 1)

    def make_room(self, user_index: int) -> None:
        """Let the state have room for one more event of a user.

        Raises:
            ReleaseError: if the user's stored row names an item more than once.
        """
        broken = int(self._numbers[BROKEN_ROW])
        if broken:
            self._numbers[BROKEN_ROW] = 0
            self._users.refuse(broken - 1)
        self._users.make_room(user_index + 1, user_index)
        self.covisitation.make_room(self.config.covisitation_window + 1)
        if self.trending is not None:
            self.trending.make_room()

    def apply(
        self,
        user_index: int,
        item_index: int,
        signal: int,
        value: float,
        time_ms: int,
        context: Sequence[int] = (),
    ) -> None:
        """Advance by one event.

        Args:
            user_index: 0-based; an index of ``n_users`` or more enlarges the state.
            item_index: 0-based, below N.
            signal: position in ``signals``.
            value: strength, finite; rounded to float32 first, as in ``EventTable``.
            time_ms: time of the event, within ±2^61.
            context: positions of the event's context values, from ``context_values``.

        Raises:
            DataError: if an argument is out of range; the message has its name, and the state is not changed.
        """
        check_event((user_index, item_index, signal, value, time_ms), len(self.touches), self.signals)
        one, positions = self._one_event, np.array(context, dtype=np.int32).reshape(1, -1)
        for column, entry in zip(one, (user_index, item_index, signal, value, time_ms), strict=False):
            column[0] = entry
        if user_index >= len(self._users.arrays.start):
            self.make_room(user_index)
        self.apply_all(EventColumns(*(frozen(column) for column in (*one, positions))), 0, 1)

    def apply_all(self, events: EventColumns, start: int, stop: int) -> None:
        """Advance by events that were checked, see ``columns``, ``start`` to ``stop``.

        Raises:
            ReleaseError: if a user's stored row names an item more than once.
        """
        while start < stop:
            start = int(apply_events(self.arrays, events, start, stop))
            if start < stop:
                self.make_room(int(events.user[start]))

    def columns(self, events: EventTable, contexts: np.ndarray | None = None) -> EventColumns:
        """Return events for compiled functions, after a check that the state can take all of them.

        Args:
            events: in time order.
            contexts: int32 ``[X, C]``, as ``Snapshot.contexts``; None if the state keeps no context.

        Raises:
            DataError: if an event is out of range, or before the one above; the message has its row and field.
        """
        check_events(events, len(self.touches), self.signals)
        columns = event_columns(events, contexts, self.context_starts)
        self.know_users(int(events.user_index.max(initial=-1)) + 1)
        return columns

    def history(self, user_index: int) -> History:
        """Return the newest ``history_length`` distinct items; empty for an unknown user."""
        newest = [self._users.read(user_index, column)[: -self.config.history_length - 1 : -1] for column in _HISTORY]
        return History(*newest)

    def has_touched(self, user_index: int, item_index: int) -> bool:
        """Return whether the user has touched an item."""
        return self._users.find(user_index, item_index) >= 0

    def touched(self, user_index: int) -> np.ndarray:
        """Return all int64 items that the user touched, in first-touch order."""
        return self._users.read(user_index, ITEMS)

    def touch_times(self, user_index: int) -> np.ndarray:
        """Return int64 first-touch times in ms, parallel to ``touched``."""
        return self._users.read(user_index, TIMES)

    def touch_values(self, user_index: int) -> np.ndarray:
        """Return float32 values of each item's best event, parallel to ``touched``."""
        return self._users.read(user_index, VALUES)

    def touch_positives(self, user_index: int) -> np.ndarray:
        """Return int64 masks, parallel to ``touched``; bit t is set if the pair was positive for task t."""
        return self._users.read(user_index, POSITIVES)

    def context_values(self, codes: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of context values among all V.

        Args:
            codes: one a context column, as in ``contexts.parquet``; 0 if unknown, and left out of the result.
        """
        return tuple(start + code - 1 for start, code in zip(self.context_starts, codes, strict=True) if code > 0)

    def context_codes(self, moment: Mapping[str, str]) -> tuple[int, ...]:
        """Return one code a context column from values by name; an unknown value is code 0."""
        return tuple(
            codes.get(moment.get(column.name, ""), 0) for column, codes in zip(self.context, self._codes, strict=True)
        )

    def last_event_ms(self, user_index: int) -> int | None:
        """Return the time of the user's newest touch, repeated touches included; None without a touch."""
        latest = self._users.read(user_index, LATEST)
        return int(latest.max()) if len(latest) else None

    def total(self, name: str) -> float:
        """Return the sum over all items of ``touches``, ``exposures``, ``item_events`` or ``item_value_sum``."""
        return float(self.totals[SUMMED.index(name)])

    def task_total(self, task: int) -> float:
        """Return the number of user-item pairs that were positive for the task at position ``task``."""
        return float(self.totals[len(SUMMED) + task])

    def popularity(self, time_ms: int, half_life: int | None) -> np.ndarray:
        """Return float32 ``[N]`` first touches, decayed to ``time_ms``.

        Args:
            time_ms: time of the read, int ms UTC.
            half_life: position in ``half_lives_days`` (-1 is the longest), or None for all time
                without decay.
        """
        counts = self.touches if half_life is None else self.item_counts.read(half_life, time_ms)
        return counts.astype(np.float32)

    def popular(
        self,
        time_ms: int,
        k: int,
        exclude: np.ndarray,
        available_from_ms: np.ndarray | None = None,
        half_life: int | None = -1,
    ) -> ScoredItems:
        """Return the most popular items.

        Args:
            time_ms: time of the request, int ms UTC; items that are not available yet are left out.
            k: number of items; fewer are returned only if fewer items remain.
            exclude: item indices that must not be returned.
            available_from_ms: int64 ``[N]``, time from which each item may be recommended; None = its creation.
            half_life: position in ``half_lives_days`` (-1 is the longest), or None for all time without decay.

        Returns:
            Items by popularity, ties by item index.
        """
        scores = self.popularity(time_ms, half_life)
        eligible = (self.items.created_at_ms if available_from_ms is None else available_from_ms) <= time_ms
        eligible[exclude] = False
        ids = np.flatnonzero(eligible)
        return ScoredItems.sort(ids, scores[ids], k)

    def save(self, directory: Path) -> None:
        """Write the state as ``.npy`` arrays and ``state.json`` below ``directory``, which must exist."""
        for prefix, name in DECAYED.items():
            getattr(self, name).save(directory, prefix)
        for name in PLAIN:
            np.save(directory / f"{name}.npy", getattr(self, name))
        self._users.save(directory, self.n_users)
        self.covisitation.save(directory)
        trending = None if self.trending is None else self.trending.config
        if self.trending is not None:
            self.trending.save(directory)
        identity = state_identity(self.items, self.config, self.signals, self.tasks, self.context, trending)
        write_json(directory / STATE_FILE, identity)

    @classmethod
    def load(
        cls,
        directory: Path,
        items: ItemTable,
        config: FeatureConfig,
        signals: tuple[str, ...],
        tasks: tuple[Task, ...],
        context: tuple[ContextColumn, ...] = (),
        trending: TrendsConfig | None = None,
    ) -> FunnelState:
        """Load a saved state; arrays are memory-mapped copy-on-write, so the files never change.

        Raises:
            ReleaseError: if a file is missing or malformed, or if the state was saved for other items,
                signals, tasks, context or configuration.
        """
        check_identity(directory / STATE_FILE, state_identity(items, config, signals, tasks, context, trending))
        arrays = load_arrays(directory, array_shapes(items, config, tasks, context, trending))
        lengths = [len(column.values) for column in context if trending and column.name == trending.segment]
        check_values(directory, arrays, len(items), len(signals), 1 + sum(lengths))
        return cls(items, config, signals, tasks, context, arrays, trending)
