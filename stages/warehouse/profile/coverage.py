"""Measure how much of the traffic of past days an activity policy would have covered, in SQL.

For each of the last days: which users (items) have events, and which of those were active enough before
the day began. Activity on a day depends only on events before its start. A day is [start, start + 24 h),
counted back from the as-of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from stages.contracts.tables import DAY_MS
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INTERACTIONS
from stages.warehouse.selection.conditions import chosen_events, count_if, is_active, window_columns, within
from stages.warehouse.selection.policies import ActivityPolicy

_E = INTERACTIONS.c
Who = Literal["users", "items"]


@dataclass(frozen=True)
class Coverage:
    """How much of one day's traffic one threshold would have covered.

    Attributes:
        start_ms: of the day, int ms UTC.
        threshold: smallest number of events before the day.
        seen: users (items) with an event on the day; covered: those that pass the threshold.
        events: events of the day; covered_events: those of covered users (items).
    """

    start_ms: int
    threshold: int
    seen: int
    covered: int
    events: int
    covered_events: int


def day_starts(as_of_ms: int, days: int) -> tuple[int, ...]:
    """Return the starts of the last days before the as-of time, oldest first; negative starts are left out."""
    starts = (as_of_ms - number * DAY_MS for number in range(days, 0, -1))
    return tuple(start for start in starts if start >= 0)


def cover_days(
    warehouse: Warehouse,
    who: Who,
    signals: Sequence[str],
    starts: Sequence[int],
    policy: ActivityPolicy,
    thresholds: Sequence[int],
) -> list[Coverage]:
    """Measure how much of each day's traffic each threshold would have covered.

    Args:
        warehouse: holds the events.
        who: whether events are counted by user or by item.
        signals: kinds of events that are a day's traffic; they also count for activity if the policy has no kinds.
        starts: starts of D consecutive days, int ms UTC.
        policy: window, kinds, weights and maximum; its ``min_events`` is replaced by each threshold.
        thresholds: H smallest numbers of events.

    Returns:
        D * H rows by day and threshold; a day without events has zeros.
    """
    statement = coverage_statement(who, signals, starts, policy, thresholds)
    with warehouse.connect() as connection:
        rows = {int(found.day): found for found in connection.execute(statement)}
    found = []
    for day, start in enumerate(starts):
        for place, threshold in enumerate(thresholds):
            row = rows.get(day)
            values = (0, 0, 0, 0)
            if row is not None:
                values = (row.seen, getattr(row, f"c{place}"), row.events, getattr(row, f"e{place}") or 0)
            found.append(Coverage(start, threshold, *(int(value) for value in values)))
    return found


def coverage_statement(
    who: Who, signals: Sequence[str], starts: Sequence[int], policy: ActivityPolicy, thresholds: Sequence[int]
) -> sa.Select[Any]:
    """Return the SELECT of ``cover_days``: a row a day with traffic.

    Events are read once and grouped by user (item), with two columns a day: events on the day, and in the
    window before it. Only then is each row split into one row a day. Grouping by user and day at once could
    need as many rows as there are events.
    """
    key = _E.user_id if who == "users" else _E.item_id
    counts = _counts_of_each(key, signals, starts, policy).subquery("counts_of_each")
    days = sa.union_all(*(sa.select(sa.literal(day, sa.Integer).label("day")) for day in range(len(starts))))
    each_day = days.subquery("days")
    events, earlier = (
        sa.case(*((each_day.c.day == day, counts.c[f"{column}{day}"]) for day in range(len(starts)))).label(name)
        for column, name in (("d", "events"), ("n", "earlier"))
    )
    rows = sa.select(each_day.c.day, events, earlier).select_from(counts.join(each_day, sa.true()))
    each = rows.subquery("each_one")
    columns = []
    for place, threshold in enumerate(thresholds):
        passes = is_active(each.c.earlier, policy.model_copy(update={"min_events": threshold}))
        columns.append(count_if(passes).label(f"c{place}"))
        columns.append(sa.func.sum(sa.case((passes, each.c.events), else_=0)).label(f"e{place}"))
    totals = (sa.func.count().label("seen"), sa.func.sum(each.c.events).label("events"))
    return sa.select(each.c.day, *totals, *columns).where(each.c.events > 0).group_by(each.c.day)


def _counts_of_each(key: Any, signals: Sequence[str], starts: Sequence[int], policy: ActivityPolicy) -> sa.Select[Any]:
    """Return the SELECT of each key's events on a day, ``d<day>``, and in the window before it, ``n<day>``."""
    kinds, end = policy.signals or signals, starts[-1] + DAY_MS
    counted, came = [], []
    if set(kinds) != set(signals):
        counted, came = [_E.signal.in_(list(kinds))], [_E.signal.in_(list(signals))]
    on_the_day = [
        count_if(sa.and_(within(start, start + DAY_MS), *came)).label(f"d{day}") for day, start in enumerate(starts)
    ]
    chosen = chosen_events(sorted({*kinds, *signals}), min(policy.start_ms(start) for start in starts), end)
    return sa.select(key, *on_the_day, *window_columns(starts, policy, *counted)).where(*chosen).group_by(key)
