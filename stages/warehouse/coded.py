"""The selection, written once in SQLAlchemy Core and executed by the warehouse.

Ids become integers first: the distinct ids with their first times come out, get their indices
outside the database (where they are sorted bytewise, whatever a database's collation is), and go
back in as small tables. From then on the warehouse joins, counts, removes repeats and sorts
integers in temporary tables of one connection, which it spills to disk as it needs to. DuckDB and
PostgreSQL give the same rows in the same order: by (event_time_ms, event_id).

Every part is [start, end). A row is judged by what came before the end of its own part.

**Repeats.** ``first`` keeps a user's first event of a kind on an item, over all parts. Of ``last``,
``sum`` and ``max`` the first part, of which no request is asked, keeps one row: the one with which
the value was final, at its own time (``max``: the earliest that attains it). The later parts keep
every row that changed the value, with the value as of that row, so that what becomes known later
never shows earlier. Sums are made of millionths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateTableAs

from stages.contracts.errors import ConfigError
from stages.contracts.tables import DAY_MS
from stages.warehouse.engine import Warehouse, arrow_batches
from stages.warehouse.load import staged
from stages.warehouse.pair_splits import USER_GROUPS, PairSplit, pairs_marked_twice, split_rows
from stages.warehouse.policies import ActivityPolicy, ItemPolicy, RepeatPolicy
from stages.warehouse.select import chosen_events, count_if, is_active, window_counts
from stages.warehouse.tables import INTERACTIONS, ITEMS

BATCH_ROWS = 1 << 17
FIRST_TIMES_SCHEMA = pa.schema([("id", pa.string()), ("first_ms", pa.int64())])
EVENTS_SCHEMA = pa.schema(
    [
        ("user_index", pa.int64()),
        ("item_index", pa.int64()),
        ("event_time_ms", pa.int64()),
        ("signal", pa.int16()),
        ("value", pa.float64()),
        ("context", pa.int32()),
    ]
)
SPLIT_SCHEMA = EVENTS_SCHEMA.append(pa.field("part", pa.int8()))
_BITS_SCHEMA = pa.schema([("index", pa.int64()), ("bits", pa.int32())])
_MICRO = 1_000_000.0

_E = INTERACTIONS.c
_MAPS = sa.MetaData()
USER_MAP = sa.Table("selected_users", _MAPS, sa.Column("user_id", sa.Text), sa.Column("user_index", sa.BigInteger))
ITEM_MAP = sa.Table(
    "selected_items",
    _MAPS,
    sa.Column("item_id", sa.Text),
    sa.Column("item_index", sa.BigInteger),
    sa.Column("canonical", sa.Boolean),
)
"""Every id that may occur in an event; several ids of one index are duplicates, one is canonical."""
CONTEXT_MAP = sa.Table(
    "selected_contexts",
    _MAPS,
    sa.Column("context", sa.Text),
    sa.Column("context_index", sa.Integer),
)
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


@contextmanager
def open_selection(
    warehouse: Warehouse, signals: Sequence[str], start_ms: int, end_ms: int, batch_rows: int = BATCH_ROWS
) -> Iterator[CodedSelection]:
    """Yield a selection on a connection of its own; its temporary tables are rolled back with it.

    Args:
        warehouse: where from.
        signals: kinds of events to keep; their positions are the codes.
        start_ms: int ms UTC; older events are left out, also from de-duplication.
        end_ms: the as-of time; events from then on are left out.
        batch_rows: largest number of rows of a batch.

    Raises:
        ConfigError: if there is no signal or no time between start and end.
    """
    if not signals:
        raise ConfigError("signals: empty; at least one kind of event is needed")
    if start_ms >= end_ms:
        raise ConfigError(f"start_ms = {start_ms} must be before end_ms = {end_ms}")
    with warehouse.connect() as connection:
        if warehouse.is_duckdb:
            # Sorted at the end anyway; without it rows of a chunk need not wait for one another.
            connection.execute(sa.text("SET preserve_insertion_order = false"))
        try:
            yield CodedSelection(connection, tuple(signals), start_ms, end_ms, batch_rows)
        finally:
            if warehouse.is_duckdb:
                connection.execute(sa.text("RESET preserve_insertion_order"))


class CodedSelection:
    """One selection; call ``code`` before anything that reads coded events."""

    def __init__(
        self, connection: Connection, signals: tuple[str, ...], start_ms: int, end_ms: int, batch_rows: int
    ) -> None:
        self._connection, self._signals, self._batch_rows = connection, signals, batch_rows
        self._start_ms, self._end_ms = start_ms, end_ms

    def items(self) -> pa.Table:
        """Return the ids of the selected events' items with their first times, ``FIRST_TIMES_SCHEMA``."""
        return self._table(first_times(_E.item_id, self._signals, self._start_ms, self._end_ms), FIRST_TIMES_SCHEMA)

    def contexts(self) -> pa.Table:
        """Return the contexts of the selected events with their first times, ``FIRST_TIMES_SCHEMA``."""
        statement = first_times(_E.context, self._signals, self._start_ms, self._end_ms).where(_E.context != "")
        return self._table(statement, FIRST_TIMES_SCHEMA)

    def users(self) -> pa.Table:
        """Return the ids of the users of mapped items with their first times, ``FIRST_TIMES_SCHEMA``."""
        statement = first_times(_E.user_id, self._signals, self._start_ms, self._end_ms)
        unmapped = sa.select(_E.item_id).where(*self._chosen(), ~_is_mapped()).limit(1)
        if self._connection.execute(unmapped).all():
            statement = statement.where(_is_mapped())
        return self._table(statement, FIRST_TIMES_SCHEMA)

    def map_items(self, item_map: pa.Table) -> None:
        """Stage ``item_id``, ``item_index``, ``canonical``; events of other items are left out from now on."""
        self._stage(ITEM_MAP, item_map)

    def code(self, user_map: pa.Table, context_map: pa.Table) -> None:
        """Turn the selected events into integers.

        Args:
            user_map: ``user_id``, ``user_index``.
            context_map: ``context``, ``context_index``; what it lacks gets 0.
        """
        self._stage(USER_MAP, user_map)
        self._stage(CONTEXT_MAP, context_map)
        statement = coded_statement(self._signals, self._start_ms, self._end_ms, len(context_map) > 0)
        self._make("coded_events", statement)

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) of the n first events.

        Args:
            shares: each in [0, 1]; a share of 1 gives the last event.

        Returns:
            One time a share; none if there is no event.
        """
        first = kept_rows(dict.fromkeys(range(len(self._signals)), "first"), ()).subquery("first_events")
        size = int(self._connection.execute(sa.select(sa.func.count()).select_from(first)).scalar_one())
        if size == 0:
            return ()
        positions = [min(int(share * size), size - 1) for share in shares]
        rows = self._connection.execute(at_positions(first, positions))
        times: dict[int, int] = {row[0]: row[1] for row in rows}
        return tuple(times[position] for position in positions)

    def user_activity(self, borders: Sequence[int], policy: ActivityPolicy, n_users: int) -> np.ndarray:
        """Return int8 ``[U]``: bit p is set where the user is active at the end of part p."""
        return self._bits(activity_statement(self._signals, borders, policy), n_users)

    def item_eligibility(self, borders: Sequence[int], policy: ItemPolicy, n_items: int) -> np.ndarray:
        """Return int8 ``[N]``: bit p is set where the item is eligible at the end of part p."""
        return self._bits(eligibility_statement(borders, policy), n_items)

    def events(self, borders: Sequence[int], repeats: Mapping[str, RepeatPolicy]) -> Iterator[pa.RecordBatch]:
        """Yield the events without repeats by (event_time_ms, event_id); memory is bounded.

        Args:
            borders: ends of the parts, increasing; the last one is the end of the selection.
            repeats: policy by signal, ``first`` where it is not given.

        Yields:
            Batches with ``EVENTS_SCHEMA``.

        Raises:
            ConfigError: if the borders do not increase or end elsewhere.
        """
        edges = [self._start_ms, *borders]
        if len(borders) == 0 or any(late <= early for early, late in pairwise(edges)):
            raise ConfigError(
                f"borders = {list(borders)} after start_ms = {self._start_ms}: each must be later than the last"
            )
        kept = self._kept(repeats, borders)
        columns = [kept.c[name] for name in EVENTS_SCHEMA.names]
        statement = sa.select(*columns).order_by(kept.c.event_time_ms, kept.c.event_id)
        yield from arrow_batches(self._connection, statement, EVENTS_SCHEMA, self._batch_rows)

    def split_events(
        self, split: PairSplit, repeats: Mapping[str, RepeatPolicy], user_parts: np.ndarray
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events without repeats and their parts by (event_time_ms, event_id).

        Args:
            split: how user-item pairs are dealt.
            repeats: as for ``events``; of ``last``, ``sum`` and ``max`` one row remains.
            user_parts: int8 ``[U]``, the part that each user was dealt to, for the method ``users``.

        Yields:
            Batches with ``SPLIT_SCHEMA``.
        """
        index = np.arange(len(user_parts), dtype=np.int64)
        self._stage(USER_GROUPS, pa.table({"user_index": index, "part": user_parts.astype(np.int32)}))
        rows = split_rows(self._kept(repeats, (self._end_ms,)), split).subquery("split_events")
        columns = [rows.c[name] for name in SPLIT_SCHEMA.names]
        statement = sa.select(*columns).order_by(rows.c.event_time_ms, rows.c.event_id)
        yield from arrow_batches(self._connection, statement, SPLIT_SCHEMA, self._batch_rows)

    def marked_twice(self, split: PairSplit) -> int:
        """Return how many pairs have a held-out signal and another one."""
        return int(self._connection.execute(pairs_marked_twice(CODED, split)).scalar_one())

    def _kept(self, repeats: Mapping[str, RepeatPolicy], borders: Sequence[int]) -> Any:
        policies = {code: repeats.get(signal, "first") for code, signal in enumerate(self._signals)}
        return kept_rows(policies, borders).subquery("kept_events")

    def _chosen(self) -> list[Any]:
        return chosen_events(self._signals, self._start_ms, self._end_ms)

    def _table(self, statement: sa.Select[Any], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_batches(
            arrow_batches(self._connection, statement, schema, self._batch_rows), schema=schema
        )

    def _bits(self, statement: sa.Select[Any], size: int) -> np.ndarray:
        bits = np.zeros(size, dtype=np.int8)
        for batch in arrow_batches(self._connection, statement, _BITS_SCHEMA, self._batch_rows):
            bits[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
        return bits

    def _stage(self, table: sa.Table, rows: pa.Table) -> None:
        with staged(self._connection, table, rows.select(table.c.keys())) as stage:
            self._make(table.name, sa.select(*stage.c))

    def _make(self, name: str, statement: sa.Select[Any]) -> None:
        self._connection.execute(CreateTableAs(statement, name, temporary=True))
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(sa.text(f"ANALYZE {name}"))


def first_times(key: Any, signals: Sequence[str], start_ms: int, end_ms: int) -> sa.Select[Any]:
    """Return the SELECT of each distinct value of a column with the time of its first selected event."""
    chosen = chosen_events(signals, start_ms, end_ms)
    return sa.select(key.label("id"), sa.func.min(_E.event_time_ms).label("first_ms")).where(*chosen).group_by(key)


def coded_statement(signals: Sequence[str], start_ms: int, end_ms: int, with_context: bool) -> sa.Select[Any]:
    """Return the SELECT of the selected events with indices and codes in place of text."""
    code = sa.case({signal: number for number, signal in enumerate(signals)}, value=_E.signal, else_=-1)
    context = sa.func.coalesce(CONTEXT_MAP.c.context_index, 0) if with_context else sa.literal(0, sa.Integer)
    source = INTERACTIONS.join(USER_MAP, USER_MAP.c.user_id == _E.user_id)
    source = source.join(ITEM_MAP, ITEM_MAP.c.item_id == _E.item_id)
    if with_context:
        source = source.outerjoin(CONTEXT_MAP, CONTEXT_MAP.c.context == _E.context)
    return (
        sa.select(
            sa.cast(USER_MAP.c.user_index, sa.Integer).label("user_index"),
            sa.cast(ITEM_MAP.c.item_index, sa.Integer).label("item_index"),
            sa.cast(code, sa.SmallInteger).label("signal"),
            _E.value,
            _E.event_time_ms,
            _E.event_id,
            sa.cast(context, sa.Integer).label("context"),
        )
        .select_from(source)
        .where(*chosen_events(signals, start_ms, end_ms))
    )


def at_positions(events: Any, positions: Sequence[int]) -> sa.Select[Any]:
    """Return the SELECT of (position, event_time_ms) of some rows of events in time order."""
    rank = sa.func.row_number().over(order_by=(events.c.event_time_ms, events.c.event_id)) - 1
    ranked = sa.select(events.c.event_time_ms, rank.label("position")).subquery("ranked")
    return sa.select(ranked.c.position, ranked.c.event_time_ms).where(ranked.c.position.in_(sorted(set(positions))))


def activity_statement(signals: Sequence[str], borders: Sequence[int], policy: ActivityPolicy) -> sa.Select[Any]:
    """Return the SELECT of each mapped user's activity bits."""
    counts = window_counts(signals, borders, policy).subquery("window_counts")
    bits = _bits([is_active(sa.func.coalesce(counts.c[f"n{part}"], 0), policy) for part in range(len(borders))])
    joined = USER_MAP.outerjoin(counts, counts.c.user_id == USER_MAP.c.user_id)
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


def _is_mapped() -> Any:
    return sa.exists().where(ITEM_MAP.c.item_id == _E.item_id)


def _bits(conditions: Sequence[Any]) -> Any:
    total: Any = sa.literal(0, sa.Integer)
    for part, condition in enumerate(conditions):
        total = total + sa.case((condition, 1 << part), else_=0)
    return total


def kept_rows(policies: Mapping[int, RepeatPolicy], borders: Sequence[int]) -> sa.Select[Any]:
    """Return the SELECT of the coded events without repeats, with the columns of ``CODED``.

    Args:
        policies: by signal code.
        borders: ends of the parts; not needed where every policy is ``first``.
    """
    pair = (CODED.c.user_index, CODED.c.item_index, CODED.c.signal)
    order = (CODED.c.event_time_ms, CODED.c.event_id)
    turn = sa.func.row_number().over(partition_by=pair, order_by=order).label("turn")
    if set(policies.values()) == {"first"}:
        numbered = sa.select(*CODED.c, turn).subquery("numbered")
        return sa.select(*(numbered.c[column.name] for column in CODED.c)).where(numbered.c.turn == 1)
    codes = {name: [code for code, policy in policies.items() if policy == name] for name in ("first", "sum", "max")}
    numbered = _with_running_values(turn, pair, order, codes["sum"], borders)
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


def _with_running_values(turn: Any, pair: Any, order: Any, summed: Sequence[int], borders: Sequence[int]) -> Any:
    """Return the coded events with turn, part, the highest value before and the value as of the row."""
    part = sa.case(*((CODED.c.event_time_ms < border, part) for part, border in enumerate(borders)), else_=len(borders))
    micro = sa.cast(sa.func.floor(CODED.c.value * _MICRO + 0.5), sa.BigInteger)
    total = sa.func.sum(micro).over(partition_by=pair, order_by=order, rows=(None, 0))
    highest = sa.func.max(CODED.c.value).over(partition_by=pair, order_by=order, rows=(None, -1))
    running = sa.case((CODED.c.signal.in_(list(summed)), sa.cast(total, sa.Double) / _MICRO), else_=CODED.c.value)
    columns = (turn, part.label("part"), highest.label("highest"), running.label("running"))
    return sa.select(*CODED.c, *columns).subquery("numbered")
