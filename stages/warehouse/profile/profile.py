"""The measurements of the data contracts: aggregates only, executed by the warehouse.

The statements are written once in SQLAlchemy Core; DuckDB and PostgreSQL give equal numbers. No
function here brings events into Python: the largest answer has one row a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from stages.contracts.tables import DAY_MS
from stages.warehouse.database.column_check import has_table
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INGEST_LOG, INTERACTIONS, ITEMS
from stages.warehouse.selection.conditions import chosen_events, count_if, is_active, threshold_unit, window_counts
from stages.warehouse.selection.policies import ActivityPolicy

FLOAT32_MAX = 3.4028234e38
"""Larger values become infinite in a snapshot, which stores float32."""

KEYS = ("event_id", "user_id", "item_id", "signal", "value", "event_time_ms")
"""Required columns of an event."""

_NAME = 40  # PostgreSQL cuts names at 63 bytes

ITEM_COLUMNS = ("title", "categories", "created_at_ms", "duration_s", "text")

_E = INTERACTIONS.c
_I = ITEMS.c


@dataclass(frozen=True)
class LabelRule:
    """The rule that makes an event a positive of a task.

    Attributes:
        signals: kinds of events.
        min_value: smallest value of a positive, or None for any.
    """

    signals: tuple[str, ...]
    min_value: float | None


@dataclass(frozen=True)
class Scope:
    """Which events are measured.

    Attributes:
        signals: kinds of events that the dataset keeps.
        start_ms: int ms UTC; older events are not selected.
        as_of_ms: int ms UTC; events from then on are not selected.
        now_ms: the clock, int ms UTC; None if no event is later than the clock.
        labels: rule by task.
        ranges: (lowest, highest) value allowed, by signal.
    """

    signals: tuple[str, ...]
    start_ms: int
    as_of_ms: int
    now_ms: int | None = None
    labels: Mapping[str, LabelRule] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class EventProfile:
    """Counts from one pass over all events.

    Attributes:
        rows: all events.
        null_keys: events with a null in one of ``KEYS``.
        after_now: events later than the clock.
        after_as_of: events at or after the as-of time.
        before_as_of: events before the as-of time.
        selected: events before the as-of time, of the kept signals and not before the start.
        bad_values: selected events with a value that is no number, infinite, or beyond a range.
        bad_times: events with a time before 1970.
        oldest_ms, newest_ms: earliest and latest time of the selected events, or None.
        by_signal: selected events of each kept signal.
    """

    rows: int
    null_keys: int
    after_now: int
    after_as_of: int
    before_as_of: int
    selected: int
    bad_values: int
    bad_times: int
    oldest_ms: int | None
    newest_ms: int | None
    by_signal: Mapping[str, int]


def profile_events(warehouse: Warehouse, scope: Scope) -> EventProfile:
    """Measure everything that needs no grouping, in one pass over the events."""
    selected = sa.and_(*selected_events(scope))
    counts: dict[str, Any] = {
        "rows": sa.func.count(),
        "null_keys": count_if(sa.or_(*(_E[name].is_(None) for name in KEYS))),
        "after_now": count_if(_E.event_time_ms > scope.now_ms) if scope.now_ms is not None else sa.literal(0),
        "after_as_of": count_if(_E.event_time_ms >= scope.as_of_ms),
        "before_as_of": count_if(_E.event_time_ms < scope.as_of_ms),
        "selected": count_if(selected),
        "bad_values": count_if(selected & bad_value(scope)),
        "bad_times": count_if(_E.event_time_ms < 0),
        "oldest_ms": sa.func.min(sa.case((selected, _E.event_time_ms))),
        "newest_ms": sa.func.max(sa.case((selected, _E.event_time_ms))),
    }
    signals = [count_if(selected & (_E.signal == signal)) for signal in scope.signals]
    with warehouse.connect() as connection:
        row = connection.execute(sa.select(*counts.values(), *signals)).one()
    known = dict(zip(counts, row[: len(counts)], strict=True))
    by_signal = dict(zip(scope.signals, map(int, row[len(counts) :]), strict=True))
    return EventProfile(**known, by_signal=by_signal)


@dataclass(frozen=True)
class DayCounts:
    """One day of selected events.

    Attributes:
        events: selected events.
        positives: by task.
        of: by task, the events that could be positives: those of the task's signals. For a task without
            ``min_value`` all selected events, since every event of its signals is a positive.
    """

    events: int
    positives: Mapping[str, int]
    of: Mapping[str, int]


def daily_counts(warehouse: Warehouse, scope: Scope, days: int) -> dict[int, DayCounts]:
    """Return counts by day: day d ends d days before the as-of time, for d < ``days``.

    A day without events is left out.
    """
    with warehouse.connect() as connection:
        rows = connection.execute(daily_statement(scope, days)).all()
    found = {}
    for from_ms, events, *labels in rows:
        positives = dict(zip(scope.labels, map(int, labels[::2]), strict=True))
        found[(scope.as_of_ms - int(from_ms)) // DAY_MS - 1] = DayCounts(
            int(events), positives, dict(zip(scope.labels, map(int, labels[1::2]), strict=True))
        )
    return found


def daily_statement(scope: Scope, days: int) -> sa.Select[Any]:
    """Return the SELECT of ``daily_counts``: start of the day, events, and two counts a task; the last day first."""
    age = sa.literal(scope.as_of_ms - 1) - _E.event_time_ms
    start = sa.literal(scope.as_of_ms - DAY_MS) - (age - age % DAY_MS)
    recent = (
        sa.select(start.label("day_from_ms"), _E.signal, _E.value)
        .where(*selected_events(scope), _E.event_time_ms >= scope.as_of_ms - days * DAY_MS)
        .subquery("recent")
    )
    counts = []
    for position, (task, rule) in enumerate(scope.labels.items()):
        name = task if task.isidentifier() and len(task) <= _NAME else str(position)
        own = recent.c.signal.in_(list(rule.signals))
        positive = own if rule.min_value is None else own & (recent.c.value >= rule.min_value)
        counts.append(count_if(positive).label(f"positives_{name}"))
        counts.append((sa.func.count() if rule.min_value is None else count_if(own)).label(f"of_{name}"))
    day = recent.c.day_from_ms
    return sa.select(day, sa.func.count().label("events"), *counts).group_by(day).order_by(day.desc())


@dataclass(frozen=True)
class Duplicates:
    """Repeated rows.

    Attributes:
        rows: selected events of the window.
        identical: rows beyond the first with equal user, item, signal and time.
        repeats: rows beyond the first with equal user, item and signal, at any time.
    """

    rows: int
    identical: int
    repeats: int


def count_duplicates(warehouse: Warehouse, scope: Scope, window_days: float | None) -> Duplicates:
    """Count duplicates among the selected events of the last ``window_days`` before the as-of time (None: all).

    The two groupings run one after the other; nested, they would need the memory of both at once.
    """
    triple = (_E.user_id, _E.item_id, _E.signal)
    with warehouse.connect() as connection:
        rows, moments = connection.execute(_groups(scope, window_days, (*triple, _E.event_time_ms))).one()
        _, triples = connection.execute(_groups(scope, window_days, triple)).one()
    return Duplicates(int(rows), int(rows) - int(moments), int(rows) - int(triples))


def _groups(scope: Scope, window_days: float | None, key: tuple[Any, ...]) -> sa.Select[Any]:
    """Return the SELECT of (events, distinct keys among them)."""
    each = sa.select(sa.func.count().label("n")).where(*window_events(scope, window_days)).group_by(*key)
    groups = each.subquery("groups")
    return sa.select(sa.func.coalesce(sa.func.sum(groups.c.n), 0), sa.func.count()).select_from(groups)


@dataclass(frozen=True)
class UnknownItems:
    """Selected events, events whose item has no catalogue row, and the number of such items."""

    events: int
    unknown: int
    items: int


def count_unknown_items(warehouse: Warehouse, scope: Scope) -> UnknownItems:
    """Count the selected events whose item has no catalogue row."""
    each = events_by_item(scope)
    missing = _I.item_id.is_(None)
    statement = sa.select(
        sa.func.coalesce(sa.func.sum(each.c.events), 0),
        sa.func.coalesce(sa.func.sum(sa.case((missing, each.c.events), else_=0)), 0),
        count_if(missing),
    ).select_from(each.outerjoin(ITEMS, _I.item_id == each.c.item_id))
    with warehouse.connect() as connection:
        return UnknownItems(*(int(number) for number in connection.execute(statement).one()))


@dataclass(frozen=True)
class ItemProfile:
    """Items of the catalogue, and how many of them lack each of ``ITEM_COLUMNS``."""

    rows: int
    nulls: Mapping[str, int]


def profile_items(warehouse: Warehouse) -> ItemProfile:
    """Measure the catalogue in one pass."""
    statement = sa.select(sa.func.count(), *(count_if(lacks(name)) for name in ITEM_COLUMNS))
    with warehouse.connect() as connection:
        rows, *nulls = (int(number) for number in connection.execute(statement.select_from(ITEMS)).one())
    return ItemProfile(rows, dict(zip(ITEM_COLUMNS, nulls, strict=True)))


def count_active(warehouse: Warehouse, scope: Scope, policy: ActivityPolicy) -> tuple[int, int]:
    """Return (users with a selected event, those of them who are active at the as-of time)."""
    each = user_activity(scope, policy)
    statement = sa.select(sa.func.count(), count_if(each.c.active)).select_from(each)
    with warehouse.connect() as connection:
        users, active = connection.execute(statement).one()
    return int(users), int(active)


def ingested_rows(warehouse: Warehouse) -> tuple[int, int]:
    """Return (rows read, rows quarantined) of all ingested files; zeros if there is none."""
    if not has_table(warehouse, INGEST_LOG.name):
        return 0, 0
    log = INGEST_LOG.c
    total = sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in (log.rows_read, log.rows_quarantined)))
    with warehouse.connect() as connection:
        read, aside = connection.execute(total).one()
    return int(read), int(aside)


def selected_events(scope: Scope) -> list[Any]:
    """Return the conditions that select the dataset's events."""
    return chosen_events(scope.signals, scope.start_ms, scope.as_of_ms)


def window_events(scope: Scope, window_days: float | None) -> list[Any]:
    """Return the conditions of a selected event in the last ``window_days`` before the as-of time (None: all)."""
    if window_days is None:
        return selected_events(scope)
    return [*selected_events(scope), _E.event_time_ms >= scope.as_of_ms - round(window_days * DAY_MS)]


def bad_value(scope: Scope) -> Any:
    """Return the condition of a value that is no number, infinite, or beyond its signal's range."""
    # Both databases order NaN after every number, so NaN is out of range.
    beyond = sa.not_(_E.value.between(-FLOAT32_MAX, FLOAT32_MAX))
    ranged = [
        (_E.signal == signal) & sa.not_(_E.value.between(low, high)) for signal, (low, high) in scope.ranges.items()
    ]
    return sa.or_(beyond, *ranged)


def events_by_item(scope: Scope) -> Any:
    """Return the subquery of the number of selected events of each item."""
    counts = sa.select(_E.item_id, sa.func.count().label("events"), sa.func.min(_E.event_time_ms).label("first_ms"))
    return counts.where(*selected_events(scope)).group_by(_E.item_id).subquery("each_item")


def lacks(name: str) -> Any:
    """Return the condition that an item lacks an attribute; a title that equals the id counts as missing."""
    column = _I[name]
    if name in ("created_at_ms", "duration_s"):
        return column.is_(None)
    empty = sa.or_(column.is_(None), sa.func.trim(column) == "")
    return sa.or_(empty, column == _I.item_id) if name == "title" else empty


def user_activity(scope: Scope, policy: ActivityPolicy) -> Any:
    """Return the subquery of users with a selected event: their (weighted) events in the window, and ``active``."""
    users = sa.select(_E.user_id).where(*selected_events(scope)).group_by(_E.user_id).subquery("selected_users")
    counts = window_counts(scope.signals, (scope.as_of_ms,), policy).subquery("window_counts")
    unit = threshold_unit(policy)
    number = sa.cast(sa.func.coalesce(counts.c.n0, 0), sa.BigInteger)
    events = number if unit == 1 else sa.cast(number, sa.Double) / unit
    columns = (users.c.user_id, events.label("events"), is_active(number, policy).label("active"))
    joined = users.outerjoin(counts, counts.c.user_id == users.c.user_id)
    return sa.select(*columns).select_from(joined).subquery("users_by_activity")
