"""What the dataset step asks of the warehouse, as one small interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow.compute as pc

from stages.contracts.snapshot import TimeBorders
from stages.dataset.config import DatasetStepConfig
from stages.warehouse.catalogue import export_items, write_aliases
from stages.warehouse.select import (
    ActivityPolicy,
    EventSurvey,
    export_events,
    survey_events,
    time_quantiles,
    window_activity,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.warehouse.engine import Warehouse


class EventSource(Protocol):
    """Reads events and items; the tests have one made of plain lists."""

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue: item_id, title, categories ('|'-joined), created_at_ms, duration_s."""

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        """Keep which item stands for a duplicate; ``key`` names the decision."""

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        """Count rows by whether the selection keeps them."""

    def time_quantiles(
        self, config: DatasetStepConfig, start_ms: int, key: str, shares: Sequence[float]
    ) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) of the n selected events, by time."""

    def events(self, config: DatasetStepConfig, borders: TimeBorders, key: str) -> Iterator[pa.RecordBatch]:
        """Yield the first event of each (user, canonical item, signal), by (event_time_ms, event_id).

        Columns: user_id, item_id, signal, value, event_time_ms, part, active.
        """

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, int]:
        """Return (users, events of the most active user) in the activity window before ``end_ms``.

        Events count as they are stored, before de-duplication.
        """


class WarehouseSource:
    """The interface over an open warehouse."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue's items; ids that only events mention are left to the events."""
        table = export_items(self._warehouse, config.as_of_ms, config.signals)
        # Such an id comes without any attribute and with itself as title.
        blank = pc.and_(pc.equal(table["title"], table["item_id"]), pc.equal(table["categories"], ""))
        for name in ("created_at_ms", "duration_s"):
            blank = pc.and_(blank, pc.is_null(table[name]))
        return table.filter(pc.invert(pc.and_(blank, pc.is_valid(table["first_event_ms"]))))

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        """Replace the aliases of ``key`` in the warehouse."""
        write_aliases(self._warehouse, key, aliases)

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        """Count rows by whether the selection keeps them."""
        return survey_events(self._warehouse, config.signals, config.as_of_ms, history_ms)

    def time_quantiles(
        self, config: DatasetStepConfig, start_ms: int, key: str, shares: Sequence[float]
    ) -> tuple[int, ...]:
        """Return times of de-duplicated events at shares of their number."""
        return time_quantiles(self._warehouse, key, config.signals, start_ms, config.as_of_ms, shares)

    def events(self, config: DatasetStepConfig, borders: TimeBorders, key: str) -> Iterator[pa.RecordBatch]:
        """Yield first events in time order, with part and activity."""
        ends = (borders.candidate_end_ms, borders.ranker_end_ms, borders.as_of_ms)
        policy = ActivityPolicy(**config.activity.model_dump())
        return export_events(self._warehouse, key, config.signals, borders.start_ms, ends, policy)

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, int]:
        """Return users and the largest number of events in the activity window."""
        return window_activity(self._warehouse, config.signals, end_ms, config.activity.window_days)
