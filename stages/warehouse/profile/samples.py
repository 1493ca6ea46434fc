"""Sample rows for a broken data contract, and the SQL that shows more of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INTERACTIONS, ITEMS, QUARANTINE
from stages.warehouse.profile.profile import (
    KEYS,
    Scope,
    bad_value,
    events_by_item,
    lacks,
    selected_events,
    user_activity,
    window_events,
)
from stages.warehouse.selection.policies import ActivityPolicy

Rows = sa.Select[Any]
"""A SELECT of sample rows, the most informative first."""

_E = INTERACTIONS.c
_I = ITEMS.c
_EVENT = (_E.user_id, _E.item_id, _E.signal, _E.value, _E.event_time_ms)


@dataclass(frozen=True)
class Sample:
    """A few rows as plain values, and the statement without its limit in the warehouse's SQL."""

    rows: tuple[dict[str, Any], ...]
    sql: str


def take_sample(warehouse: Warehouse, statement: Rows, limit: int) -> Sample:
    """Return the first ``limit`` rows of a statement."""
    with warehouse.connect() as connection:
        found = connection.execute(statement.limit(limit)).mappings().all() if limit else []
        text = str(statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}))
    rows = tuple({name: _plain(value) for name, value in row.items()} for row in found)
    if not warehouse.is_duckdb:
        # SQLAlchemy doubles percent signs for psycopg2; the text is meant for psql.
        text = text.replace("%%", "%")
    return Sample(rows, text.replace(" \n", " ").replace("\n", " "))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def events_without_keys() -> Rows:
    """Return events with a null in a required column."""
    return sa.select(*_EVENT).where(sa.or_(*(_E[name].is_(None) for name in KEYS))).order_by(_E.event_id)


def events_with_bad_values(scope: Scope) -> Rows:
    """Return selected events with a value that is no number, infinite or out of range."""
    return _events(*selected_events(scope), bad_value(scope))


def events_before_1970() -> Rows:
    """Return events with a negative time."""
    return _events(_E.event_time_ms < 0)


def events_after(time_ms: int) -> Rows:
    """Return events later than a time, the latest first."""
    return sa.select(*_EVENT).where(_E.event_time_ms > time_ms).order_by(_E.event_time_ms.desc(), _E.event_id)


def newest_events(scope: Scope) -> Rows:
    """Return the selected events, the latest first."""
    return sa.select(*_EVENT).where(*selected_events(scope)).order_by(_E.event_time_ms.desc(), _E.event_id)


def signals_found(scope: Scope) -> Rows:
    """Return the number of events before the as-of time by signal, kept or not, the most frequent first."""
    events = sa.func.count().label("events")
    counts = sa.select(_E.signal, events).where(_E.event_time_ms < scope.as_of_ms).group_by(_E.signal)
    return counts.order_by(events.desc(), sa.func.min(_E.event_time_ms))


def repeated_events(scope: Scope, window_days: float | None, identical: bool) -> Rows:
    """Return the keys of repeated events and how often each occurs, the most frequent first.

    Args:
        scope: which events.
        window_days: only events of so many days before the as-of time; None = all.
        identical: whether the time must be equal as well.
    """
    key = (_E.user_id, _E.item_id, _E.signal, *((_E.event_time_ms,) if identical else ()))
    n = sa.func.count().label("rows")
    counts = sa.select(*key, n).where(*window_events(scope, window_days)).group_by(*key).having(sa.func.count() > 1)
    return counts.order_by(n.desc(), sa.func.min(_E.event_time_ms), sa.func.min(_E.event_id))


def unknown_items(scope: Scope) -> Rows:
    """Return items with events but without a catalogue row, those with most events first."""
    each = events_by_item(scope)
    missing = sa.select(each).select_from(each.outerjoin(ITEMS, _I.item_id == each.c.item_id))
    return missing.where(_I.item_id.is_(None)).order_by(each.c.events.desc(), each.c.first_ms)


def items_that_lack(name: str) -> Rows:
    """Return items of the catalogue without an attribute."""
    shown = [_I.item_id, _I.title, _I.categories, _I.created_at_ms, _I.duration_s]
    return sa.select(*shown).where(lacks(name)).order_by(_I.item_id)


def inactive_users(scope: Scope, policy: ActivityPolicy) -> Rows:
    """Return users who are not active, those with most events first."""
    each = user_activity(scope, policy)
    return sa.select(each.c.user_id, each.c.events).where(sa.not_(each.c.active)).order_by(each.c.events.desc())


def rows_put_aside() -> Rows:
    """Return rows that ingestion quarantined."""
    q = QUARANTINE.c
    return sa.select(q.file, q.row_number, q.reason, q.raw).order_by(q.quarantine_id)


def _events(*conditions: Any) -> Rows:
    return sa.select(*_EVENT).where(*conditions).order_by(_E.event_time_ms, _E.event_id)
