"""What the dataset step asks of the warehouse, as one small interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from stages.dataset.config import DatasetStepConfig
from stages.warehouse.selection.conditions import EventSurvey, survey_events, window_activity
from stages.warehouse.selection.items import export_catalogue, matching_items, write_aliases
from stages.warehouse.selection.pair_splits import PairSplit
from stages.warehouse.selection.policies import ActivityPolicy, ItemPolicy, RepeatPolicy
from stages.warehouse.selection.selection import open_selection

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.warehouse.database.engine import Warehouse


class Selection(Protocol):
    """The selected events; see ``stages.warehouse.selection.selection.CodedSelection``."""

    def contexts(self) -> pa.Table:
        """Return the events' contexts with their first times: id, first_ms."""

    def code(self, listed: pa.Table, blocked: pa.Array, context_map: pa.Table) -> None:
        """Take item_id and canonical_id of the catalogue, ids whose events are left out, context and context_index."""

    def items(self) -> pa.Table:
        """Return the ids that stand for the events' items with their first times: id, first_ms."""

    def users(self) -> pa.Table:
        """Return the ids of the events' users with their first times: id, first_ms."""

    def place(self, item_ids: pa.Array, user_ids: pa.Array) -> None:
        """Take the ids of items and users by index."""

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) of the n first events, by time."""

    def user_activity(self, borders: Sequence[int], policy: ActivityPolicy, n_users: int) -> np.ndarray:
        """Return int8 ``[U]``: bit p is set where the user is active at the end of part p."""

    def item_eligibility(self, borders: Sequence[int], policy: ItemPolicy, n_items: int) -> np.ndarray:
        """Return int8 ``[N]``: bit p is set where the item is eligible at the end of part p."""

    def split_events(
        self, split: PairSplit, repeats: Mapping[str, RepeatPolicy], user_parts: np.ndarray
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events and their ``part`` in time order."""

    def marked_twice(self, split: PairSplit) -> int:
        """Return the number of pairs with a held-out signal and another one."""

    def events(self, borders: Sequence[int], repeats: Mapping[str, RepeatPolicy]) -> Iterator[pa.RecordBatch]:
        """Yield the events without repeats, by (event_time_ms, event_id).

        Columns: user_index, item_index, event_time_ms, signal, value, context.
        """


class EventSource(Protocol):
    """Reads events and items; the tests have one made of plain lists."""

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue: item_id, title, categories ('|'-joined), created_at_ms, duration_s, text, state."""

    def matching(self, reason: str, predicate: str) -> list[str]:
        """Return the ids of the items that a SQL predicate of the content policy matches."""

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        """Keep which item stands for a duplicate; ``key`` names the decision."""

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        """Count rows by whether the selection keeps them."""

    def selection(self, config: DatasetStepConfig, start_ms: int) -> AbstractContextManager[Selection]:
        """Return the selection of the events from ``start_ms`` to the as-of time."""

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, float]:
        """Return (users, events of the most active user) in the activity window before ``end_ms``.

        Events count as they are stored, before de-duplication, by their weight.
        """


class WarehouseSource:
    """The interface over an open warehouse."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue's items; ids that only events mention are left to the events."""
        return export_catalogue(self._warehouse)

    def matching(self, reason: str, predicate: str) -> list[str]:
        """Return the ids of the items that a predicate matches."""
        return matching_items(self._warehouse, reason, predicate)

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        """Replace the aliases of ``key`` in the warehouse."""
        write_aliases(self._warehouse, key, aliases)

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        """Count rows by whether the selection keeps them."""
        return survey_events(self._warehouse, config.signals, config.as_of_ms, history_ms)

    def selection(self, config: DatasetStepConfig, start_ms: int) -> AbstractContextManager[Selection]:
        """Return the selection, on a connection of its own."""
        return open_selection(self._warehouse, config.signals, start_ms, config.as_of_ms)

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, float]:
        """Return users and the largest number of events in the activity window."""
        return window_activity(self._warehouse, config.signals, end_ms, activity_policy(config))


def activity_policy(config: DatasetStepConfig) -> ActivityPolicy:
    """Return the warehouse's form of the activity section."""
    return ActivityPolicy(**config.activity.model_dump())
