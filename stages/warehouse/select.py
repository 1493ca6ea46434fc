"""The dataset step's questions, written once in SQLAlchemy Core and executed by the warehouse.

DuckDB and PostgreSQL give the same rows in the same order: everything is ordered by integers, and
ids are sorted bytewise outside the database, since collations differ.

Every part is [start, end). A row is judged by what came before the end of its own part: neither
de-duplication nor activity looks at a later part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.tables import DAY_MS
from stages.warehouse.engine import Warehouse, arrow_batches
from stages.warehouse.tables import INTERACTIONS, ITEM_ALIASES

EVENTS_SCHEMA = pa.schema(
    [
        ("event_id", pa.int64()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("signal", pa.string()),
        ("value", pa.float64()),
        ("event_time_ms", pa.int64()),
        ("part", pa.int8()),
        ("active", pa.bool_()),
    ]
)
BATCH_ROWS = 100_000

_E = INTERACTIONS.c


class ActivityPolicy(Config):
    """Who is active at the end of a part.

    Attributes:
        min_events: at least so many events, before de-duplication ...
        window_days: ... in so many days before the end of the part; None = since ever.
        max_events: at most so many in the same window (bots have more), or None.
        signals: kinds that count; None = the kinds that are exported.
    """

    min_events: int = Field(default=1, ge=0)
    window_days: float | None = Field(default=None, gt=0)
    max_events: int | None = None
    signals: tuple[str, ...] | None = None

    def start_ms(self, end_ms: int) -> int:
        """Return the start of the window before ``end_ms``; no event is older than 0."""
        return 0 if self.window_days is None else end_ms - round(self.window_days * DAY_MS)


def export_events(
    warehouse: Warehouse,
    snapshot_key: str,
    signals: Sequence[str],
    start_ms: int,
    borders: Sequence[int],
    activity: ActivityPolicy,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield the first event of each (user, canonical item, signal), by (event_time_ms, event_id).

    Args:
        warehouse: where from.
        snapshot_key: whose aliases (``write_aliases``) make an item canonical.
        signals: kinds of events to keep.
        start_ms: int ms UTC; older events are left out, also from de-duplication.
        borders: ends of the parts, increasing; part p is [borders[p - 1], borders[p]), the first
            one begins at ``start_ms``.
        activity: decides ``active``; its window may reach back before ``start_ms``.
        batch_rows: largest number of rows of a batch.

    Yields:
        Batches with ``EVENTS_SCHEMA``; memory is bounded.

    Raises:
        ConfigError: if borders do not increase or there is no signal.
        DataError: if the warehouse has no tables yet.
    """
    _check(signals, start_ms, borders)
    events = _labelled(snapshot_key, signals, start_ms, borders, activity)
    statement = sa.select(*(events.c[name] for name in EVENTS_SCHEMA.names))
    statement = statement.order_by(events.c.event_time_ms, events.c.event_id)
    with warehouse.connect() as connection:
        yield from arrow_batches(connection, statement, EVENTS_SCHEMA, batch_rows)


@dataclass(frozen=True)
class ActivityCounts:
    """Numbers for the selection report.

    Attributes:
        users: users with a selected event.
        part_users: of them, with a de-duplicated event in each part.
        removed_users: of those, not active at the end of the part.
        events: selected events before de-duplication.
        duplicates: events that de-duplication removed.
        removed_events: de-duplicated events of users who are not active, by part.
    """

    users: int
    part_users: tuple[int, ...]
    removed_users: tuple[int, ...]
    events: int
    duplicates: int
    removed_events: tuple[int, ...]


def activity_counts(
    warehouse: Warehouse,
    snapshot_key: str,
    signals: Sequence[str],
    start_ms: int,
    borders: Sequence[int],
    activity: ActivityPolicy,
) -> ActivityCounts:
    """Count what ``export_events`` with the same arguments selects and removes."""
    _check(signals, start_ms, borders)
    events = _labelled(snapshot_key, signals, start_ms, borders, activity)
    removed = sa.case((~events.c.active, events.c.user_id))
    by_part = sa.select(
        events.c.part,
        sa.func.count(),
        sa.func.count(sa.distinct(events.c.user_id)),
        sa.func.count(sa.distinct(removed)),
        sa.func.count(removed),
    ).group_by(events.c.part)
    selected = sa.select(sa.func.count(), sa.func.count(sa.distinct(_E.user_id)))
    selected = selected.where(*_chosen(signals, start_ms, borders[-1]))
    with warehouse.connect() as connection:
        n_events, n_users = connection.execute(selected).one()
        found = {row[0]: row[1:] for row in connection.execute(by_part)}
    rows = [found.get(part, (0, 0, 0, 0)) for part in range(len(borders))]
    return ActivityCounts(
        users=n_users,
        part_users=tuple(row[1] for row in rows),
        removed_users=tuple(row[2] for row in rows),
        events=n_events,
        duplicates=n_events - sum(row[0] for row in rows),
        removed_events=tuple(row[3] for row in rows),
    )


@dataclass(frozen=True)
class EventSurvey:
    """What the warehouse holds and why some of it is left out; each event counts once.

    Attributes:
        n_events: all events.
        n_other_signals: of kinds that are not chosen.
        n_after_as_of: of chosen kinds, at or after the as-of time.
        n_before_start: of chosen kinds, before the start.
        first_ms: time of the earliest event that is left, or None.
    """

    n_events: int
    n_other_signals: int
    n_after_as_of: int
    n_before_start: int
    first_ms: int | None


def survey_events(warehouse: Warehouse, signals: Sequence[str], as_of_ms: int, start_ms: int | None) -> EventSurvey:
    """Count events by whether a selection keeps them; ``start_ms`` None sets no start."""
    chosen = _E.signal.in_(list(signals))
    late = chosen & (_E.event_time_ms >= as_of_ms)
    early = chosen & (_E.event_time_ms < as_of_ms) & (_E.event_time_ms < (0 if start_ms is None else start_ms))
    kept = sa.and_(chosen, sa.not_(late), sa.not_(early))
    statement = sa.select(
        sa.func.count(),
        _count_if(sa.not_(chosen)),
        _count_if(late),
        _count_if(early),
        sa.func.min(sa.case((kept, _E.event_time_ms))),
    )
    with warehouse.connect() as connection:
        return EventSurvey(*connection.execute(statement).one())


def time_quantiles(
    warehouse: Warehouse,
    snapshot_key: str,
    signals: Sequence[str],
    start_ms: int,
    end_ms: int,
    shares: Sequence[float],
) -> tuple[int, ...]:
    """Return the time of the event at position floor(share * n) of the n de-duplicated events.

    Args:
        warehouse: where from.
        snapshot_key: as for ``export_events``.
        signals: as for ``export_events``.
        start_ms: start of the selection, int ms UTC.
        end_ms: its end.
        shares: each in [0, 1]; a share of 1 gives the last event.

    Returns:
        One time a share; none if there is no event.
    """
    first = _first_events(snapshot_key, signals, start_ms, end_ms)
    rank = sa.func.row_number().over(order_by=(first.c.event_time_ms, first.c.event_id)) - 1
    ranked = sa.select(first.c.event_time_ms, rank.label("position")).subquery("ranked")
    with warehouse.connect() as connection:
        size = int(connection.execute(sa.select(sa.func.count()).select_from(first)).scalar_one())
        if size == 0:
            return ()
        positions = [min(int(share * size), size - 1) for share in shares]
        statement = sa.select(ranked.c.position, ranked.c.event_time_ms)
        statement = statement.where(ranked.c.position.in_(sorted(set(positions))))
        times: dict[int, int] = {row[0]: row[1] for row in connection.execute(statement)}
    return tuple(times[position] for position in positions)


def window_activity(
    warehouse: Warehouse, signals: Sequence[str], end_ms: int, window_days: float | None
) -> tuple[int, int]:
    """Return (users, events of the most active user) in the days before ``end_ms``, for error messages."""
    start_ms = ActivityPolicy(window_days=window_days).start_ms(end_ms)
    counts = sa.select(sa.func.count().label("n")).where(*_chosen(signals, start_ms, end_ms)).group_by(_E.user_id)
    each = counts.subquery("each_user")
    with warehouse.connect() as connection:
        users, most = connection.execute(sa.select(sa.func.count(), sa.func.max(each.c.n)).select_from(each)).one()
    return int(users), int(most or 0)


def _check(signals: Sequence[str], start_ms: int, borders: Sequence[int]) -> None:
    if not signals:
        raise ConfigError("signals: empty; at least one kind of event is needed")
    edges = [start_ms, *borders]
    if len(borders) == 0 or any(late <= early for early, late in pairwise(edges)):
        raise ConfigError(f"borders = {list(borders)} after start_ms = {start_ms}: each must be later than the last")


def _chosen(signals: Sequence[str], start_ms: int, end_ms: int) -> list[Any]:
    return [_E.signal.in_(list(signals)), _E.event_time_ms >= start_ms, _E.event_time_ms < end_ms]


def _count_if(condition: Any) -> Any:
    return sa.func.count(sa.case((condition, 1)))


def _first_events(snapshot_key: str, signals: Sequence[str], start_ms: int, end_ms: int) -> Any:
    """Return the subquery of the first event of each (user, canonical item, signal)."""
    alias = ITEM_ALIASES
    same_item = sa.and_(alias.c.snapshot_key == snapshot_key, alias.c.item_id == _E.item_id)
    canonical = sa.func.coalesce(alias.c.canonical_id, _E.item_id)
    repeat = sa.func.row_number().over(
        partition_by=(_E.user_id, canonical, _E.signal), order_by=(_E.event_time_ms, _E.event_id)
    )
    numbered = (
        sa.select(
            _E.event_id,
            _E.user_id,
            canonical.label("item_id"),
            _E.signal,
            _E.value,
            _E.event_time_ms,
            repeat.label("repeat"),
        )
        .select_from(INTERACTIONS.outerjoin(alias, same_item))
        .where(*_chosen(signals, start_ms, end_ms))
        .subquery("numbered")
    )
    kept = [column for column in numbered.c if column.name != "repeat"]
    return sa.select(*kept).where(numbered.c.repeat == 1).subquery("first_events")


def _labelled(
    snapshot_key: str, signals: Sequence[str], start_ms: int, borders: Sequence[int], activity: ActivityPolicy
) -> Any:
    """Return the subquery of the first events with their part and whether their user was active."""
    first = _first_events(snapshot_key, signals, start_ms, borders[-1])
    counts = _window_counts(signals, borders, activity)
    parts = range(len(borders))
    before = [(first.c.event_time_ms < border, part) for part, border in enumerate(borders)]
    part = sa.case(*before, else_=len(borders) - 1)
    enough = [
        (first.c.event_time_ms < borders[part], _is_active(sa.func.coalesce(counts.c[f"n{part}"], 0), activity))
        for part in parts
    ]
    active = sa.case(*enough, else_=sa.false())
    joined = first.outerjoin(counts, counts.c.user_id == first.c.user_id)
    return sa.select(*first.c, part.label("part"), active.label("active")).select_from(joined).subquery("labelled")


def _is_active(count: Any, activity: ActivityPolicy) -> Any:
    enough = count >= activity.min_events
    return enough if activity.max_events is None else enough & (count <= activity.max_events)


def _window_counts(signals: Sequence[str], borders: Sequence[int], activity: ActivityPolicy) -> Any:
    """Return the subquery of each user's events ``n<part>`` in the window before each part's end."""
    starts = [activity.start_ms(end) for end in borders]
    counts = [
        _count_if((_E.event_time_ms >= start) & (_E.event_time_ms < end)).label(f"n{part}")
        for part, (start, end) in enumerate(zip(starts, borders, strict=True))
    ]
    chosen = _chosen(activity.signals or signals, min(starts), borders[-1])
    return sa.select(_E.user_id, *counts).where(*chosen).group_by(_E.user_id).subquery("window_counts")
