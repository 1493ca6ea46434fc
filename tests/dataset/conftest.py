from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from stages.contracts.snapshot import TimeBorders
from stages.contracts.tables import DAY_MS
from stages.dataset.config import DatasetStepConfig
from stages.warehouse.select import EventSurvey

Event = tuple[str, str, str, float, int]
Item = tuple[str, str, str, int | None, float | None]


class ListSource:
    """A warehouse of plain lists: the definition of every query, row by row."""

    def __init__(self, events: Sequence[Event], items: Sequence[Item] = (), batch: int = 7) -> None:
        self.rows, self.catalogue, self.batch = list(events), list(items), batch
        self.aliases: dict[str, dict[str, str]] = {}

    def items(self, config: DatasetStepConfig) -> pa.Table:
        names = ("item_id", "title", "categories", "created_at_ms", "duration_s")
        kinds = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.float64())
        columns = [[row[place] for row in self.catalogue] for place in range(5)]
        return pa.table(
            {name: pa.array(values, kind) for name, values, kind in zip(names, columns, kinds, strict=True)}
        )

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

    def selected(self, config: DatasetStepConfig, start_ms: int, key: str) -> list[Event]:
        first: dict[tuple[str, str, str], Event] = {}
        for row in sorted(self.rows, key=lambda row: (row[4], hashlib.sha256(repr(row).encode()).hexdigest())):
            user, item, signal, value, time = row
            if signal in config.signals and start_ms <= time < config.as_of_ms:
                item = self.aliases[key].get(item, item)
                first.setdefault((user, item, signal), (user, item, signal, value, time))
        return list(first.values())

    def time_quantiles(
        self, config: DatasetStepConfig, start_ms: int, key: str, shares: Sequence[float]
    ) -> tuple[int, ...]:
        times = [row[4] for row in self.selected(config, start_ms, key)]
        return tuple(times[int(share * len(times))] for share in shares)

    def _active(self, config: DatasetStepConfig, end_ms: int) -> Counter[str]:
        since = end_ms - round(config.activity.window_days * DAY_MS)
        return Counter(row[0] for row in self.rows if row[2] in config.signals and since <= row[4] < end_ms)

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, int]:
        counts = self._active(config, end_ms)
        return len(counts), max(counts.values(), default=0)

    def events(self, config: DatasetStepConfig, borders: TimeBorders, key: str) -> Iterator[pa.RecordBatch]:
        ends = [borders.candidate_end_ms, borders.ranker_end_ms, borders.as_of_ms]
        counts = [self._active(config, end) for end in ends]
        low, high = config.activity.min_events, config.activity.max_events or 1 << 60
        rows = []
        for row in self.selected(config, borders.start_ms, key):
            part = sum(row[4] >= end for end in ends)
            rows.append((*row, part, low <= counts[part][row[0]] <= high))
        names = ["user_id", "item_id", "signal", "value", "event_time_ms", "part", "active"]
        kinds = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.int64(), pa.int8(), pa.bool_()]
        for start in range(0, len(rows), self.batch):
            columns: Any = zip(*rows[start : start + self.batch], strict=True)
            arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names=names)


@pytest.fixture(scope="session")
def list_source() -> Callable[..., ListSource]:
    return ListSource
