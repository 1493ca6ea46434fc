"""The dataset step's interface to the warehouse."""

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
        """Code the events; see ``CodedSelection.code``."""

    def items(self) -> pa.Table:
        """Return the canonical ids of the events' items with their first times: id, first_ms."""

    def users(self) -> pa.Table:
        """Return the ids of the events' users with their first times: id, first_ms."""

    def place(self, item_ids: pa.Array, user_ids: pa.Array) -> None:
        """Set the ids of items and users by index."""

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) among the n events without repeats, by time."""

    def user_activity(self, borders: Sequence[int], policy: ActivityPolicy, n_users: int) -> np.ndarray:
        """Return int8 ``[U]``: bit p is set if the user is active at the end of period p."""

    def item_eligibility(self, borders: Sequence[int], policy: ItemPolicy, n_items: int) -> np.ndarray:
        """Return int8 ``[N]``: bit p is set if the item is eligible at the end of period p."""

    def split_events(
        self, split: PairSplit, repeats: Mapping[str, RepeatPolicy], user_parts: np.ndarray
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events and their period, ``part``, in time order."""

    def marked_twice(self, split: PairSplit) -> int:
        """Return the number of pairs with both a held-out signal and another one."""

    def events(self, borders: Sequence[int], repeats: Mapping[str, RepeatPolicy]) -> Iterator[pa.RecordBatch]:
        """Yield the events without repeats, by (event_time_ms, event_id).

        Columns: user_index, item_index, event_time_ms, signal, value, context.
        """


class EventSource(Protocol):
    """Reads events and items; the tests implement it with plain lists."""

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue: item_id, title, categories ('|'-joined), created_at_ms, duration_s, text, state."""

    def matching(self, reason: str, predicate: str) -> list[str]:
        """Return the ids of the items that a SQL predicate of the content policy matches."""

    def write_aliases(self, key: str, aliases: Mapping[str, str]) -> None:
        """Store the canonical item of each duplicate under the decision's key."""

    def survey(self, config: DatasetStepConfig, history_ms: int | None) -> EventSurvey:
        """Count rows by whether the selection keeps them."""

    def selection(self, config: DatasetStepConfig, start_ms: int) -> AbstractContextManager[Selection]:
        """Return the selection of the events from ``start_ms`` to the as-of time."""

    def activity(self, config: DatasetStepConfig, end_ms: int) -> tuple[int, float]:
        """Return (users, events of the most active user) in the activity window before ``end_ms``.

        Stored events count by their weight, before de-duplication.
        """


class WarehouseSource:
    """The interface over an open warehouse."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def items(self, config: DatasetStepConfig) -> pa.Table:
        """Return the catalogue's items; items that only occur in events are not among them."""
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
