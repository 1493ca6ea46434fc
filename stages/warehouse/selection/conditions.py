"""SQL conditions of a selection, and counts of the warehouse's events before the selection (see ``selection``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INTERACTIONS
from stages.warehouse.selection.policies import WEIGHT_UNIT, ActivityPolicy

_E = INTERACTIONS.c


@dataclass(frozen=True)
class EventSurvey:
    """How many events the warehouse holds, and how many are left out for which reason; each event counts once.

    Attributes:
        n_events: all events.
        n_other_signals: events of kinds that are not chosen.
        n_after_as_of: events of chosen kinds at or after the as-of time.
        n_before_start: events of chosen kinds before the start.
        first_ms: time of the earliest selected event, or None.
    """

    n_events: int
    n_other_signals: int
    n_after_as_of: int
    n_before_start: int
    first_ms: int | None


def survey_events(warehouse: Warehouse, signals: Sequence[str], as_of_ms: int, start_ms: int | None) -> EventSurvey:
    """Count the events that a selection keeps and leaves out; without a start if ``start_ms`` is None."""
    with warehouse.connect() as connection:
        return EventSurvey(*connection.execute(survey_statement(signals, as_of_ms, start_ms)).one())


def survey_statement(signals: Sequence[str], as_of_ms: int, start_ms: int | None) -> sa.Select[Any]:
    """Return the SELECT of ``survey_events``."""
    chosen = _E.signal.in_(list(signals))
    late = chosen & (_E.event_time_ms >= as_of_ms)
    early = chosen & (_E.event_time_ms < as_of_ms) & (_E.event_time_ms < (0 if start_ms is None else start_ms))
    kept = sa.and_(chosen, sa.not_(late), sa.not_(early))
    return sa.select(
        sa.func.count(),
        count_if(sa.not_(chosen)),
        count_if(late),
        count_if(early),
        sa.func.min(sa.case((kept, _E.event_time_ms))),
    )


def window_activity(
    warehouse: Warehouse, signals: Sequence[str], end_ms: int, policy: ActivityPolicy
) -> tuple[int, float]:
    """Return (users, events of the most active user) in the window before ``end_ms``, for error messages.

    Events have the policy's weights.
    """
    each = window_counts(signals, (end_ms,), policy).subquery("each_user")
    statement = sa.select(count_if(each.c.n0 > 0), sa.func.max(each.c.n0))
    with warehouse.connect() as connection:
        users, most = connection.execute(statement).one()
    return int(users), int(most or 0) / threshold_unit(policy)


def window_counts(
    signals: Sequence[str],
    borders: Sequence[int],
    policy: ActivityPolicy,
    key: Any = _E.user_id,
    events: Any = INTERACTIONS,
    codes: Mapping[str, int] | None = None,
) -> sa.Select[Any]:
    """Return the SELECT of each user's (weighted) number of events before each border, columns ``n<part>``.

    Args:
        signals: kinds that count if the policy has none.
        borders: ends of the periods, int ms UTC.
        policy: window, kinds and weights.
        key: column by which events are grouped, the user by default.
        events: a table with the key, ``signal`` and ``event_time_ms``.
        codes: code of each signal in ``events``; None if it holds the signals themselves.
    """
    codes = codes or {}
    kinds = [codes.get(signal, signal) for signal in policy.signals or signals]
    window = within(min(policy.start_ms(end) for end in borders), borders[-1], events)
    columns = window_columns(borders, policy, events=events, codes=codes)
    return sa.select(key, *columns).where(events.c.signal.in_(kinds), window).group_by(key)


def window_columns(
    borders: Sequence[int],
    policy: ActivityPolicy,
    *conditions: Any,
    events: Any = INTERACTIONS,
    codes: Mapping[str, int] | None = None,
) -> list[Any]:
    """Return the aggregates ``n<part>``: (weighted) number of events in the window before each border.

    Args:
        borders: ends of the periods, int ms UTC.
        policy: window and weights.
        conditions: further conditions on an event.
        events: as for ``window_counts``.
        codes: as for ``window_counts``.
    """
    counts = []
    for part, end in enumerate(borders):
        inside = sa.and_(within(policy.start_ms(end), end, events), *conditions)
        count: Any = count_if(inside)
        if policy.weights:
            weight = _weight(policy, events.c.signal, codes or {})
            count = sa.func.coalesce(sa.func.sum(sa.case((inside, weight))), 0)
        counts.append(count.label(f"n{part}"))
    return counts


def is_active(count: Any, policy: ActivityPolicy) -> Any:
    """Return the condition that a count of ``window_counts`` is active by the policy."""
    unit = threshold_unit(policy)
    enough = count >= policy.min_events * unit
    return enough if policy.max_events is None else enough & (count <= policy.max_events * unit)


def threshold_unit(policy: ActivityPolicy) -> int:
    """Return the number that one event of weight 1 adds to a count of ``window_counts``."""
    return WEIGHT_UNIT if policy.weights else 1


def chosen_events(signals: Sequence[str], start_ms: int, end_ms: int) -> list[Any]:
    """Return the conditions on the interactions of a selection."""
    return [_E.signal.in_(list(signals)), _E.event_time_ms >= start_ms, _E.event_time_ms < end_ms]


def count_if(condition: Any) -> Any:
    """Return the number of rows that satisfy a condition."""
    return sa.func.count(sa.case((condition, 1)))


def within(start_ms: int, end_ms: int, events: Any = INTERACTIONS) -> Any:
    """Return the condition that an event happened in [start, end)."""
    return (events.c.event_time_ms >= start_ms) & (events.c.event_time_ms < end_ms)


def _weight(policy: ActivityPolicy, signal: Any, codes: Mapping[str, int]) -> Any:
    weights: dict[Any, int] = {
        codes.get(name, name): round(weight * WEIGHT_UNIT)
        for name, weight in sorted(policy.weights.items())
        if not codes or name in codes
    }
    return sa.case(weights, value=signal, else_=WEIGHT_UNIT) if weights else sa.literal(WEIGHT_UNIT, sa.BigInteger)
