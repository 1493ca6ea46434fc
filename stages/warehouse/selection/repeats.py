"""Reduce repeated events of a user, an item and a kind, as SQL over the coded events.

``first`` keeps a user's first event of a kind on an item, over all periods. For ``last``, ``sum`` and ``max``
the first period, which has no requests, keeps one row: the row at which the value became final, at its own
time (``max``: the earliest row with the maximum). The later periods keep every row that changed the value, with
the value as of that row, so that no row shows a value that was known only later. Sums are computed in
millionths.

If every kind keeps its first event, the keys with several events are found by counting. Then only their
events, which are few, are numbered. The repeats are left out when the events are read, one stretch of time at a
time. So each event is read a fixed number of times, and only one stretch is sorted at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from stages.warehouse.selection.policies import RepeatPolicy

_MICRO = 1_000_000.0

CODED = sa.table(
    "coded_events",
    sa.column("user_index", sa.Integer),
    sa.column("item_index", sa.Integer),
    sa.column("signal", sa.SmallInteger),
    sa.column("value", sa.Double),
    sa.column("event_time_ms", sa.BigInteger),
    sa.column("event_id", sa.BigInteger),
    sa.column("context", sa.Integer),
)
"""The selected events before repeats are removed."""
REPEATED = sa.table("repeated_events", sa.column("event_id", sa.BigInteger), sa.column("event_time_ms", sa.BigInteger))
"""The events that are not the first of their user, item and kind."""
_PACKED_KEYS = 1 << 63
"""Number of keys that fit into a signed 64-bit number."""
_PAIR = (CODED.c.user_index, CODED.c.item_index, CODED.c.signal)
_ORDER = (CODED.c.event_time_ms, CODED.c.event_id)


def all_first(policies: Mapping[int, RepeatPolicy]) -> bool:
    """Return whether every kind of event has the policy ``first``."""
    return set(policies.values()) == {"first"}


def repeated_keys(n_users: int, n_items: int, n_signals: int) -> sa.Select[Any]:
    """Return the SELECT of the keys (``key0`` and so on) of user, item and kind that have several events.

    Args:
        n_users: above every ``user_index``.
        n_items: above every ``item_index``.
        n_signals: above every signal code.
    """
    keys = _keys(n_users, n_items, n_signals)
    return sa.select(*keys).group_by(*keys).having(sa.func.count() > 1)


def repeated_rows(n_users: int, n_items: int, n_signals: int) -> sa.Select[Any]:
    """Return the SELECT of the rows of ``REPEATED``; it reads a table ``repeated_keys`` made by that function.

    Args:
        n_users: as for ``repeated_keys``.
        n_items: as for ``repeated_keys``.
        n_signals: as for ``repeated_keys``.
    """
    keys = _keys(n_users, n_items, n_signals)
    several = sa.table("repeated_keys", *(sa.column(key.name, sa.BigInteger) for key in keys))
    same = sa.and_(*(several.c[key.name] == key.element for key in keys))
    turn = sa.func.row_number().over(partition_by=list(several.c), order_by=_ORDER).label("turn")
    joined = CODED.join(several, same)
    rows = sa.select(CODED.c.event_id, CODED.c.event_time_ms, turn).select_from(joined).subquery("numbered")
    return sa.select(rows.c.event_id, rows.c.event_time_ms).where(rows.c.turn > 1)


def _keys(n_users: int, n_items: int, n_signals: int) -> list[sa.Label[Any]]:
    """Return the key columns of an event: one number, which is quicker, if it fits into 64 bits, else three."""
    if n_users * n_items * n_signals >= _PACKED_KEYS:
        return [column.label(f"key{place}") for place, column in enumerate(_PAIR)]
    pair = sa.cast(CODED.c.user_index, sa.BigInteger) * n_items + CODED.c.item_index
    return [(pair * n_signals + CODED.c.signal).label("key0")]


def first_rows(start_ms: int | None = None, end_ms: int | None = None) -> sa.Select[Any]:
    """Return the SELECT of the coded events that are not in ``REPEATED``, in [start, end) if both are given."""
    repeated = sa.exists().where(REPEATED.c.event_id == CODED.c.event_id)
    statement = sa.select(*CODED.c)
    if start_ms is None or end_ms is None:
        return statement.where(~repeated)
    repeated = repeated.where(*_between(REPEATED.c.event_time_ms, start_ms, end_ms))
    return statement.where(*_between(CODED.c.event_time_ms, start_ms, end_ms), ~repeated)


def time_histogram(events: Any, start_ms: int, width_ms: int) -> sa.Select[Any]:
    """Return the SELECT of (start of a bin, events in it) over bins of ``width_ms`` from ``start_ms`` on."""
    bin_ms = events.c.event_time_ms - sa.func.mod(events.c.event_time_ms - start_ms, width_ms)
    binned = sa.select(bin_ms.label("bin_ms")).subquery("binned")
    return sa.select(binned.c.bin_ms, sa.func.count()).group_by(binned.c.bin_ms).order_by(binned.c.bin_ms)


def time_at(events: Any, position: int) -> sa.Select[Any]:
    """Return the SELECT of the time, int ms UTC, of the event at a 0-based position in time order."""
    column = events.c.event_time_ms
    return sa.select(column).order_by(column).offset(position).limit(1)


def kept_rows(policies: Mapping[int, RepeatPolicy], borders: Sequence[int]) -> sa.Select[Any]:
    """Return the SELECT of the coded events without repeats, with the columns of ``CODED``.

    Args:
        policies: by signal code.
        borders: ends of the periods; not needed if every policy is ``first``.
    """
    if all_first(policies):
        return first_rows()
    codes = {name: [code for code, policy in policies.items() if policy == name] for name in ("first", "sum", "max")}
    numbered = _with_running_values(codes["sum"], borders)
    signal = numbered.c.signal
    changes = sa.case(
        (signal.in_(codes["first"]), numbered.c.turn == 1),
        (signal.in_(codes["max"]), (numbered.c.turn == 1) | (numbered.c.value > numbered.c.highest)),
        else_=sa.true(),
    )
    changed = sa.select(*numbered.c).where(changes).subquery("changed")
    key = [changed.c[name] for name in ("user_index", "item_index", "signal", "part")]
    latest = sa.func.row_number().over(
        partition_by=key, order_by=(changed.c.event_time_ms.desc(), changed.c.event_id.desc())
    )
    ranked = sa.select(*changed.c, latest.label("latest")).subquery("latest_first")
    columns = [ranked.c.running.label("value") if c.name == "value" else ranked.c[c.name] for c in CODED.c]
    return sa.select(*columns).where((ranked.c.part > 0) | (ranked.c.latest == 1))


def _with_running_values(summed: Sequence[int], borders: Sequence[int]) -> Any:
    """Return the coded events with turn, period, the highest earlier value, and the value as of the row."""
    turn = sa.func.row_number().over(partition_by=_PAIR, order_by=_ORDER).label("turn")
    part = sa.case(*((CODED.c.event_time_ms < border, part) for part, border in enumerate(borders)), else_=len(borders))
    micro = sa.cast(sa.func.floor(CODED.c.value * _MICRO + 0.5), sa.BigInteger)
    total = sa.func.sum(micro).over(partition_by=_PAIR, order_by=_ORDER, rows=(None, 0))
    highest = sa.func.max(CODED.c.value).over(partition_by=_PAIR, order_by=_ORDER, rows=(None, -1))
    running = sa.case((CODED.c.signal.in_(list(summed)), sa.cast(total, sa.Double) / _MICRO), else_=CODED.c.value)
    columns = (turn, part.label("part"), highest.label("highest"), running.label("running"))
    return sa.select(*CODED.c, *columns).subquery("numbered")


def _between(column: Any, start_ms: int, end_ms: int) -> tuple[Any, Any]:
    return column >= start_ms, column < end_ms
