"""Checks of a snapshot before the two-tower is trained on it.

Without them, a row beyond a table or a number that is not finite would end as an error deep inside a kernel, on
one rank of several, or as a tower whose answers are NaN.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.snapshot import ItemTable, Snapshot
from stages.contracts.tables import EventTable


def checked_tables(snapshot: Snapshot) -> tuple[EventTable, ItemTable]:
    """Read the events and the items of a snapshot.

    Raises:
        DataError: naming the column, the first row that is at fault, its value and what is allowed.
    """
    events, items = snapshot.events(), snapshot.items()
    check_items(items)
    check_events(events, len(items), snapshot.n_users(), len(snapshot.meta.signals))
    return events, items


def check_events(events: EventTable, n_items: int, n_users: int, n_signals: int) -> None:
    """Refuse codes beyond their tables and values that are not finite.

    Raises:
        DataError: see ``checked_tables``.
    """
    for name, rows in (("item_index", n_items), ("user_index", n_users), ("signal", n_signals)):
        codes = getattr(events, name)
        _refuse("events", name, codes, (codes < 0) | (codes >= rows), f"0 to {rows - 1}")
    _refuse("events", "value", events.value, ~np.isfinite(events.value), "finite numbers")


def check_items(items: ItemTable) -> None:
    """Refuse categories beyond their table, and durations that are infinite or below 0; NaN means unknown.

    Raises:
        DataError: see ``checked_tables``.
    """
    codes, n_categories = items.category_codes, items.n_categories
    _refuse("items", "categories", codes, (codes < 0) | (codes >= n_categories), f"0 to {n_categories - 1}")
    duration_s = items.duration_s
    wrong = np.isinf(duration_s) | (duration_s < 0)
    _refuse("items", "duration_s", duration_s, wrong, "finite numbers from 0, and NaN where it is unknown")


def _refuse(table: str, column: str, values: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{table}.parquet: {column} = {values[row]} at position {row} ({np.count_nonzero(wrong):,} of "
            f"{len(values):,} are wrong), allowed are {allowed}"
        )
