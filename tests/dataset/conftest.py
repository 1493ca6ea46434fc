from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.contracts.tables import DAY_MS
from stages.dataset.config import DatasetStepConfig
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.selection.conditions import EventSurvey
from stages.warehouse.selection.policies import ActivityPolicy, ItemPolicy
from tests.builders.postgres import postgres_database

Event = tuple[str, str, str, float, int]
Item = tuple[str, str, str, int | None, float | None]


def by_time(rows: Sequence[Event]) -> list[Event]:
    return sorted(rows, key=lambda row: (row[4], hashlib.sha256(repr(row).encode()).hexdigest()))


class ListSelection:
    """The selected events as plain lists: the definition of every query, row by row."""

    def __init__(self, source: ListSource, config: DatasetStepConfig, start_ms: int) -> None:
        self.source, self.config = source, config
        self.rows = [
            row for row in by_time(source.rows) if row[2] in config.signals and start_ms <= row[4] < config.as_of_ms
        ]

    def _first(self, place: int) -> pa.Table:
        first: dict[Any, int] = {}
        for row in self.rows:
            first.setdefault(row[place], row[4])
        return pa.table(
            {"id": pa.array(list(first), pa.string()), "first_ms": pa.array(list(first.values()), pa.int64())}
        )

    def contexts(self) -> pa.Table:
        return pa.table({"id": pa.array([], pa.string()), "first_ms": pa.array([], pa.int64())})

    def code(self, listed: pa.Table, blocked: pa.Array, context_map: pa.Table) -> None:
        stands = dict(zip(listed["item_id"].to_pylist(), listed["canonical_id"].to_pylist(), strict=True))
        left_out = set(blocked.to_pylist())
        self.rows = [(row[0], stands.get(row[1], row[1]), *row[2:]) for row in self.rows if row[1] not in left_out]

    def items(self) -> pa.Table:
        return self._first(1)

    def users(self) -> pa.Table:
        return self._first(0)

    def place(self, item_ids: pa.Array, user_ids: pa.Array) -> None:
        self.names = item_ids.to_pylist()
        self.item_map = {name: index for index, name in enumerate(self.names)}
        self.user_map = {name: index for index, name in enumerate(user_ids.to_pylist())}

    def _coded(self) -> list[tuple[int, int, str, float, int]]:
        return [(self.user_map[row[0]], self.item_map[row[1]], *row[2:]) for row in self.rows]

    def _groups(self) -> dict[tuple[int, int, str], list[tuple[float, int, int]]]:
        groups: dict[tuple[int, int, str], list[tuple[float, int, int]]] = defaultdict(list)
        for number, (user, item, signal, value, time) in enumerate(self._coded()):
            groups[user, item, signal].append((value, time, number))
        return groups

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        times = sorted(rows[0][1] for rows in self._groups().values())
        return tuple(times[min(int(share * len(times)), len(times) - 1)] for share in shares) if times else ()

    def user_activity(self, borders: Sequence[int], policy: ActivityPolicy, n_users: int) -> np.ndarray:
        bits = np.zeros(n_users, dtype=np.int8)
        for part, end_ms in enumerate(borders):
            counts = self.source.counts(self.config, end_ms)
            for user, index in self.user_map.items():
                most = policy.max_events or 1 << 60
                bits[index] |= (policy.min_events <= round(counts[user], 3) <= most) << part
        return bits

    def item_eligibility(self, borders: Sequence[int], policy: ItemPolicy, n_items: int) -> np.ndarray:
        bits = np.zeros(n_items, dtype=np.int8)
        catalogue = {row[0]: row for row in self.source.catalogue}
        for index in range(n_items):
            times = [row[4] for row in self._coded() if row[1] == index]
            row = catalogue.get(self.names[index])
            for part, end in enumerate(borders):
                before = [time for time in times if time < end]
                born = min([*times, *([row[3]] if row and row[3] is not None else [])], default=end)
                passes = len(before) >= policy.min_support
                if policy.active_within_days is not None:
                    passes &= max(before, default=-1) >= end - policy.active_within_days * DAY_MS
                if policy.max_age_days is not None:
                    passes &= born >= end - policy.max_age_days * DAY_MS
                if policy.states is not None:
                    passes &= row is not None and self.source.states.get(row[0]) in policy.states
                bits[index] |= passes << part
        return bits

    def events(self, borders: Sequence[int], repeats: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
        kept = []
        for (user, item, signal), rows in self._groups().items():
            for value, time, number in self._kept(rows, borders[0], repeats.get(signal, "first")):
                kept.append((number, user, item, time, self.config.signals.index(signal), value, 0))
        kept.sort()
        names = ["user_index", "item_index", "event_time_ms", "signal", "value", "context"]
        kinds = [pa.int64(), pa.int64(), pa.int64(), pa.int16(), pa.float64(), pa.int32()]
        for start in range(0, len(kept), self.source.batch):
            columns: Any = list(zip(*kept[start : start + self.source.batch], strict=True))[1:]
            arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names=names)

    @staticmethod
    def _kept(rows: list[tuple[float, int, int]], candidate_end: int, policy: str) -> list[tuple[float, int, int]]:
        """Walk through one pair's events, keeping those that change the value."""
        if policy == "first":
            return rows[:1]
        kept, value = [], None
        for own, time, number in rows:
            if policy == "max" and value is not None and own <= value:
                continue
            value = (value or 0.0) + own if policy == "sum" else own
            kept.append((round(value, 6) if policy == "sum" else value, time, number))
        early = [row for row in kept if row[1] < candidate_end]
        return early[-1:] + kept[len(early) :]


class ListSource:
    """A warehouse of plain lists."""

    def __init__(
        self,
        events: Sequence[Event],
        items: Sequence[Item] = (),
        batch: int = 7,
        states: Mapping[str, str] | None = None,
    ) -> None:
        self.rows, self.catalogue, self.batch = list(events), list(items), batch
        self.states = dict(states or {})
        self.aliases: dict[str, dict[str, str]] = {}

    def items(self, config: DatasetStepConfig) -> pa.Table:
        names = ("item_id", "title", "categories", "created_at_ms", "duration_s")
        kinds = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.float64())
        columns = [[row[place] for row in self.catalogue] for place in range(5)]
        table = pa.table(
            {name: pa.array(values, kind) for name, values, kind in zip(names, columns, kinds, strict=True)}
        )
        states = pa.array([self.states.get(row[0]) for row in self.catalogue], pa.string())
        return table.append_column("text", pa.nulls(len(table), pa.string())).append_column("state", states)

    def matching(self, reason: str, predicate: str) -> list[str]:
        """A predicate of these tests is the beginning of an id."""
        return [row[0] for row in self.catalogue if row[0].startswith(predicate)]

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        self.aliases[key] = dict(aliases)

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        counts: Counter[str] = Counter()
        left = []
        for _, _, signal, _, time in self.rows:
            if signal not in config.signals:
                counts["signal"] += 1
            elif time >= config.as_of_ms:
                counts["late"] += 1
            elif history_ms is not None and time < history_ms:
                counts["old"] += 1
            else:
                left.append(time)
        return EventSurvey(len(self.rows), counts["signal"], counts["late"], counts["old"], min(left, default=None))

    @contextmanager
    def selection(self, config: DatasetStepConfig, start_ms: int) -> Iterator[ListSelection]:
        yield ListSelection(self, config, start_ms)

    def counts(self, config: DatasetStepConfig, end_ms: int) -> dict[str, float]:
        activity = config.activity
        since = end_ms - round(activity.window_days * DAY_MS)
        counts: dict[str, float] = defaultdict(float)
        for row in self.rows:
            if row[2] in (activity.signals or config.signals) and since <= row[4] < end_ms:
                counts[row[0]] += activity.weights.get(row[2], 1.0)
        return counts

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, float]:
        counts = [count for count in self.counts(config, end_ms).values() if count > 0]
        return len(counts), max(counts, default=0)


@pytest.fixture(scope="session")
def list_source() -> Callable[..., ListSource]:
    return ListSource


@pytest.fixture
def postgres_warehouse() -> Iterator[Warehouse]:
    with postgres_database("dataset") as url, Warehouse(url) as warehouse:
        yield warehouse
