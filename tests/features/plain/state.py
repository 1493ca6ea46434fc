"""FunnelState: everything that events update, offline by replay and online by posted events."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.files import write_json
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import ScoredItems
from stages.contracts.touches import touching
from stages.features.config import FeatureConfig, TrendsConfig
from stages.features.state_files import (
    DECAYED,
    PLAIN,
    STATE_FILE,
    SUMMED,
    USER_COLUMNS,
    array_shapes,
    check_identity,
    load_arrays,
    state_identity,
)
from tests.features.plain.counters import NEVER_MS, DecayedCounts, memory_cells
from tests.features.plain.covisitation import Covisitation
from tests.features.plain.keyed_rows import KeyedRows, Row
from tests.features.plain.trending import Trending

_LARGEST = float(np.finfo(np.float32).max)
_ITEMS, _TIMES, _SIGNALS, _VALUES, _POSITIVES, _LATEST = range(6)


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
        n_users: number of users known so far.
        context: context columns; all columns together have V values.
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
        self.n_users = len(arrays["users_offsets"]) - 1
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
        self._users = KeyedRows("users", USER_COLUMNS, arrays)
        self.covisitation = Covisitation(arrays, len(items), config.covisitation_neighbours)
        self.trending = None if trending is None else Trending(trending, context, arrays, len(items))
        # A memory view reads and writes single elements several times faster than numpy.
        self._cells = {name: memory_cells(getattr(self, name)) for name in (*SUMMED, "totals", "category_touches")}
        self._positives = [memory_cells(row) for row in self.positives]
        self._codes = [{value: code for code, value in enumerate(column.values, start=1)} for column in context]
        self._context_starts = tuple(accumulate((len(column.values) for column in context), initial=0))[:-1]
        self._touching = touching(signals, config.exposure_signals).tolist()
        self._rules = [_positive_rules(name, tasks) for name in signals]

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
        state.n_users = n_users
        return state

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
        self._check(user_index, item_index, signal, value, time_ms)
        value = float(np.float32(value))
        self.n_users = max(self.n_users, user_index + 1)
        if not self._touching[signal]:
            self._count("exposures", item_index, 1)
            self.exposure_counts.add(item_index, time_ms)
            return
        mask, _ = self._judge(signal, value)
        row = self._users.open(user_index)
        slot = row.slots.get(item_index)
        if slot is None:
            self._first_touch(item_index, row.columns[_ITEMS], time_ms, context)
            row.append(item_index, time_ms, signal, value, mask, time_ms)
            self._add_positives(mask, item_index, time_ms)
        else:
            self._repeat(row, slot, item_index, signal, value, time_ms)
        self._count("item_events", item_index, 1)
        self._count("item_value_sum", item_index, value)

    def history(self, user_index: int) -> History:
        """Return the newest ``history_length`` distinct items; empty for an unknown user."""
        newest = [
            self._users.read(user_index, column)[: -self.config.history_length - 1 : -1]
            for column in (_ITEMS, _TIMES, _SIGNALS, _VALUES)
        ]
        return History(*newest)

    def touched(self, user_index: int) -> np.ndarray:
        """Return all int64 items that the user touched, in first-touch order."""
        return self._users.read(user_index, _ITEMS)

    def touch_times(self, user_index: int) -> np.ndarray:
        """Return int64 first-touch times in ms, parallel to ``touched``."""
        return self._users.read(user_index, _TIMES)

    def touch_values(self, user_index: int) -> np.ndarray:
        """Return float32 values of each item's best event, parallel to ``touched``."""
        return self._users.read(user_index, _VALUES)

    def touch_positives(self, user_index: int) -> np.ndarray:
        """Return int64 masks, parallel to ``touched``; bit t is set if the pair was positive for task t."""
        return self._users.read(user_index, _POSITIVES)

    def context_values(self, codes: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of context values among all V.

        Args:
            codes: one a context column, as in ``contexts.parquet``; 0 if unknown, and left out of the result.
        """
        return tuple(start + code - 1 for start, code in zip(self._context_starts, codes, strict=True) if code > 0)

    def context_codes(self, moment: Mapping[str, str]) -> tuple[int, ...]:
        """Return one code a context column from values by name; an unknown value is code 0."""
        return tuple(
            codes.get(moment.get(column.name, ""), 0) for column, codes in zip(self.context, self._codes, strict=True)
        )

    def last_event_ms(self, user_index: int) -> int | None:
        """Return the time of the user's newest touch, repeated touches included; None without a touch."""
        latest = self._users.read(user_index, _LATEST)
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
        return cls(items, config, signals, tasks, context, arrays, trending)

    def _check(self, user_index: int, item_index: int, signal: int, value: float, time_ms: int) -> None:
        if user_index < 0:
            raise DataError(f"event: user_index = {user_index}, allowed are 0 and above")
        if not 0 <= item_index < len(self.touches):
            raise DataError(f"event: item_index = {item_index}, allowed are 0 to {len(self.touches) - 1}")
        if not 0 <= signal < len(self.signals):
            raise DataError(f"event: signal = {signal}, allowed are 0 to {len(self.signals) - 1} {self.signals}")
        if not abs(value) <= _LARGEST:
            raise DataError(f"event: value = {value}, allowed are finite float32 numbers")
        if abs(time_ms) >= -NEVER_MS:
            raise DataError(f"event: time_ms = {time_ms}, allowed are times within ±{-NEVER_MS}")

    def _judge(self, signal: int, value: float) -> tuple[int, float]:
        """Return the tasks that an event is positive for, as a bit mask, and the sum of their relevance."""
        mask, relevance = 0, 0.0
        for bit, min_value, gain in self._rules[signal]:
            if value >= min_value:
                mask |= bit
                relevance += gain
        return mask, relevance

    def _count(self, name: str, item_index: int, amount: float) -> None:
        self._cells[name][item_index] += amount
        self._cells["totals"][SUMMED.index(name)] += amount

    def _first_touch(self, item_index: int, touched: array, time_ms: int, context: Sequence[int]) -> None:
        self._count("touches", item_index, 1)
        self.item_counts.add(item_index, time_ms)
        categories = self._categories(item_index)
        for category in categories:
            self.category_counts.add(category, time_ms)
            self._cells["category_touches"][category] += 1
        for value in context:
            self.context_counts[value, item_index] += 1
            self.context_totals[value] += 1
            self.context_categories[value, categories] += 1
        previous = touched[: -self.config.covisitation_window - 1 : -1]
        self.covisitation.link(item_index, previous)
        if self.trending is not None:
            self.trending.add(item_index, time_ms, context)

    def _repeat(self, row: Row, slot: int, item_index: int, signal: int, value: float, time_ms: int) -> None:
        _, _, signals, values, positives, latest = row.columns
        mask, relevance = self._judge(signal, value)
        kept_value = values[slot]
        if (relevance, value) > (self._judge(signals[slot], kept_value)[1], kept_value):
            signals[slot], values[slot] = signal, value
        self._add_positives(mask & ~positives[slot], item_index, time_ms)
        positives[slot] |= mask
        latest[slot] = max(latest[slot], time_ms)

    def _add_positives(self, mask: int, item_index: int, time_ms: int) -> None:
        for task in range(len(self.tasks)):
            if mask >> task & 1:
                self._positives[task][item_index] += 1
                self._cells["totals"][len(SUMMED) + task] += 1
                self.task_counts.add(task * len(self.touches) + item_index, time_ms)
                for category in self._categories(item_index):
                    self.category_positives[task, category] += 1
                    self.category_task_counts.add(task * len(self.category_touches) + category, time_ms)

    def _categories(self, item_index: int) -> list[int]:
        first, last = self.items.category_offsets[item_index : item_index + 2]
        codes: list[int] = self.items.category_codes[first:last].tolist()
        return codes


def _positive_rules(signal: str, tasks: tuple[Task, ...]) -> list[tuple[int, float, float]]:
    """Return (bit, smallest value, relevance) of each task that ``signal`` can be positive for."""
    return [
        (1 << number, -math.inf if task.min_value is None else float(np.float32(task.min_value)), task.relevance)
        for number, task in enumerate(tasks)
        if signal in task.signals
    ]
