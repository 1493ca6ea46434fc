"""The SQL statements of a selection: coding, activity and eligibility; ``selection`` runs them.

Written once in SQLAlchemy Core for every database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from stages.contracts.tables import DAY_MS
from stages.warehouse.database.tables import INTERACTIONS, ITEMS
from stages.warehouse.selection.conditions import chosen_events, count_if, is_active, window_counts
from stages.warehouse.selection.policies import ActivityPolicy, ItemPolicy
from stages.warehouse.selection.repeats import CODED

_E = INTERACTIONS.c
_MAPS = sa.MetaData()
USER_MAP = sa.Table("selected_users", _MAPS, sa.Column("user_id", sa.Text), sa.Column("user_index", sa.Integer))
ITEM_MAP = sa.Table(
    "selected_items",
    _MAPS,
    sa.Column("item_id", sa.Text),
    sa.Column("item_index", sa.Integer),
    sa.Column("canonical", sa.Boolean),
)
"""Every id that may occur in an event; ids with the same index are duplicates, and one of them is canonical."""
CONTEXT_MAP = sa.Table(
    "selected_contexts",
    _MAPS,
    sa.Column("context", sa.Text),
    sa.Column("context_index", sa.Integer),
)


def context_times(signals: Sequence[str], start_ms: int, end_ms: int) -> sa.Select[Any]:
    """Return the SELECT of each distinct context with the time of its first selected event."""
    chosen = chosen_events(signals, start_ms, end_ms)
    first_ms = sa.func.min(_E.event_time_ms).label("first_ms")
    return sa.select(_E.context.label("id"), first_ms).where(*chosen, _E.context != "").group_by(_E.context)


def user_counts(signals: Sequence[str], start_ms: int, end_ms: int) -> sa.Select[Any]:
    """Return the SELECT of each distinct user with the number of its selected events."""
    chosen = chosen_events(signals, start_ms, end_ms)
    return sa.select(_E.user_id.label("id"), sa.func.count().label("n")).where(*chosen).group_by(_E.user_id)


def unlisted_items(signals: Sequence[str], start_ms: int, end_ms: int) -> sa.Select[Any]:
    """Return the SELECT of the distinct items of the selected events that are not in ``ITEM_MAP``."""
    listed = sa.exists().where(ITEM_MAP.c.item_id == _E.item_id)
    return sa.select(_E.item_id.label("id")).where(*chosen_events(signals, start_ms, end_ms), ~listed).distinct()


def coded_statement(
    signals: Sequence[str], start_ms: int, end_ms: int, with_context: bool, first_item: int = 0
) -> sa.Select[Any]:
    """Return the SELECT of the selected events with codes instead of text, for item codes from ``first_item`` on."""
    code = sa.case({signal: number for number, signal in enumerate(signals)}, value=_E.signal, else_=-1)
    context = sa.func.coalesce(CONTEXT_MAP.c.context_index, 0) if with_context else sa.literal(0, sa.Integer)
    source = INTERACTIONS.join(USER_MAP, USER_MAP.c.user_id == _E.user_id)
    source = source.join(ITEM_MAP, ITEM_MAP.c.item_id == _E.item_id)
    if with_context:
        source = source.outerjoin(CONTEXT_MAP, CONTEXT_MAP.c.context == _E.context)
    conditions = chosen_events(signals, start_ms, end_ms)
    if first_item:
        conditions.append(ITEM_MAP.c.item_index >= first_item)
    return (
        sa.select(
            USER_MAP.c.user_index,
            ITEM_MAP.c.item_index,
            sa.cast(code, sa.SmallInteger).label("signal"),
            _E.value,
            _E.event_time_ms,
            _E.event_id,
            sa.cast(context, sa.Integer).label("context"),
        )
        .select_from(source)
        .where(*conditions)
    )


def first_times(code: Any) -> sa.Select[Any]:
    """Return the SELECT of each distinct value of a column of ``CODED`` with the time of its first event."""
    return sa.select(code.label("code"), sa.func.min(CODED.c.event_time_ms).label("first_ms")).group_by(code)


def activity_statement(
    signals: Sequence[str], borders: Sequence[int], policy: ActivityPolicy, codes: Mapping[str, int] | None = None
) -> sa.Select[Any]:
    """Return the SELECT of each mapped user's activity bits; ``codes`` (of the signals) reads the coded events."""
    key = "user_id" if codes is None else "user_index"
    events = INTERACTIONS if codes is None else CODED
    counts = window_counts(signals, borders, policy, events.c[key], events, codes).subquery("window_counts")
    bits = _bits([is_active(sa.func.coalesce(counts.c[f"n{part}"], 0), policy) for part in range(len(borders))])
    joined = USER_MAP.outerjoin(counts, counts.c[key] == USER_MAP.c[key])
    return sa.select(USER_MAP.c.user_index, bits.label("bits")).select_from(joined)


def eligibility_statement(borders: Sequence[int], policy: ItemPolicy) -> sa.Select[Any]:
    """Return the SELECT of each mapped item's eligibility bits."""
    before = [CODED.c.event_time_ms < border for border in borders]
    support = (
        sa.select(
            CODED.c.item_index,
            sa.func.min(CODED.c.event_time_ms).label("first_ms"),
            *(count_if(condition).label(f"n{part}") for part, condition in enumerate(before)),
            *(
                sa.func.max(sa.case((condition, CODED.c.event_time_ms))).label(f"last{part}")
                for part, condition in enumerate(before)
            ),
        )
        .group_by(CODED.c.item_index)
        .subquery("support")
    )
    joined = ITEM_MAP.outerjoin(support, support.c.item_index == ITEM_MAP.c.item_index)
    joined = joined.outerjoin(ITEMS, ITEMS.c.item_id == ITEM_MAP.c.item_id)
    passed = [_passes(support, part, border, policy) for part, border in enumerate(borders)]
    return sa.select(ITEM_MAP.c.item_index, _bits(passed).label("bits")).select_from(joined).where(ITEM_MAP.c.canonical)


def _passes(support: Any, part: int, border: int, policy: ItemPolicy) -> Any:
    conditions = [sa.func.coalesce(support.c[f"n{part}"], 0) >= policy.min_support]
    if policy.active_within_days is not None:
        since = border - round(policy.active_within_days * DAY_MS)
        conditions.append(sa.func.coalesce(support.c[f"last{part}"], since - 1) >= since)
    if policy.max_age_days is not None:
        since = border - round(policy.max_age_days * DAY_MS)
        first, created = (sa.func.coalesce(column, border) for column in (support.c.first_ms, ITEMS.c.created_at_ms))
        conditions.append(sa.case((first < created, first), else_=created) >= since)
    if policy.states is not None:
        conditions.append(sa.func.coalesce(ITEMS.c.state, "").in_(list(policy.states)))
    return sa.and_(*conditions)


def _bits(conditions: Sequence[Any]) -> Any:
    total: Any = sa.literal(0, sa.Integer)
    for part, condition in enumerate(conditions):
        total = total + sa.case((condition, 1 << part), else_=0)
    return total
