"""The selection, written once in SQLAlchemy Core and executed by the warehouse.

Ids become integers first: the distinct ids with their first times come out, get their indices
outside the database (where they are sorted bytewise, whatever a database's collation is), and go
back in as small tables. From then on the warehouse joins, counts, removes repeats and sorts
integers in tables of one connection (see ``scratch``), which it spills to disk as it needs to. DuckDB
and PostgreSQL give the same rows in the same order: by (event_time_ms, event_id).

Every part is [start, end). A row is judged by what came before the end of its own part. Repeats: see ``repeats``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stages.contracts.errors import ConfigError
from stages.warehouse.coding import (
    CONTEXT_MAP,
    ITEM_MAP,
    USER_MAP,
    activity_statement,
    coded_statement,
    eligibility_statement,
    first_times,
    is_mapped,
)
from stages.warehouse.engine import Warehouse, arrow_batches
from stages.warehouse.load import staged
from stages.warehouse.pair_splits import USER_GROUPS, PairSplit, pairs_marked_twice, split_rows
from stages.warehouse.policies import ActivityPolicy, ItemPolicy, RepeatPolicy
from stages.warehouse.repeats import (
    CODED,
    all_first,
    first_rows,
    kept_rows,
    repeated_keys,
    repeated_rows,
    time_at,
    time_histogram,
)
from stages.warehouse.scratch import Scratch, open_scratch
from stages.warehouse.tables import INTERACTIONS

BATCH_ROWS = 1 << 17
RANGE_ROWS = 1 << 24
"""Events that are sorted at a time on DuckDB: they fit into 2 GB."""
_BINS = 4096
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

_E = INTERACTIONS.c


@contextmanager
def open_selection(
    warehouse: Warehouse,
    signals: Sequence[str],
    start_ms: int,
    end_ms: int,
    batch_rows: int = BATCH_ROWS,
    range_rows: int = RANGE_ROWS,
) -> Iterator[CodedSelection]:
    """Yield a selection on a connection of its own; its temporary tables are rolled back with it.

    Args:
        warehouse: where from.
        signals: kinds of events to keep; their positions are the codes.
        start_ms: int ms UTC; older events are left out, also from de-duplication.
        end_ms: the as-of time; events from then on are left out.
        batch_rows: largest number of rows of a batch.
        range_rows: events that DuckDB sorts at a time, see ``RANGE_ROWS``.

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
            with open_scratch(warehouse, connection) as scratch:
                yield CodedSelection(connection, scratch, tuple(signals), start_ms, end_ms, batch_rows, range_rows)
        finally:
            if warehouse.is_duckdb:
                connection.execute(sa.text("RESET preserve_insertion_order"))


class CodedSelection:
    """One selection; call ``code`` before anything that reads coded events."""

    def __init__(
        self,
        connection: Connection,
        scratch: Scratch,
        signals: tuple[str, ...],
        start_ms: int,
        end_ms: int,
        batch_rows: int,
        range_rows: int,
    ) -> None:
        self._connection, self._scratch, self._signals = connection, scratch, signals
        self._start_ms, self._end_ms = start_ms, end_ms
        self._batch_rows, self._range_rows = batch_rows, range_rows
        self._touched: pa.ChunkedArray | None = None
        self._every_item_is_mapped = False
        self._repeats_are_listed = False
        self._n_users = self._n_items = 0

    def items(self) -> pa.Table:
        """Return the ids of the selected events' items with their first times, ``FIRST_TIMES_SCHEMA``."""
        found = self._table(first_times(_E.item_id, self._signals, self._start_ms, self._end_ms), FIRST_TIMES_SCHEMA)
        self._touched = found["id"]
        return found

    def contexts(self) -> pa.Table:
        """Return the contexts of the selected events with their first times, ``FIRST_TIMES_SCHEMA``."""
        statement = first_times(_E.context, self._signals, self._start_ms, self._end_ms).where(_E.context != "")
        return self._table(statement, FIRST_TIMES_SCHEMA)

    def users(self) -> pa.Table:
        """Return the ids of the users of mapped items with their first times, ``FIRST_TIMES_SCHEMA``."""
        statement = first_times(_E.user_id, self._signals, self._start_ms, self._end_ms)
        if not self._every_item_is_mapped:
            statement = statement.where(is_mapped())
        return self._table(statement, FIRST_TIMES_SCHEMA)

    def map_items(self, item_map: pa.Table) -> None:
        """Stage ``item_id``, ``item_index``, ``canonical``; events of other items are left out from now on."""
        touched = self.items()["id"] if self._touched is None else self._touched
        self._every_item_is_mapped = bool(pc.all(pc.is_in(touched, item_map["item_id"].combine_chunks())).as_py())
        self._n_items = 1 + (pc.max(item_map["item_index"]).as_py() or 0)
        self._stage(ITEM_MAP, item_map)

    def code(self, user_map: pa.Table, context_map: pa.Table) -> None:
        """Turn the selected events into integers.

        Args:
            user_map: ``user_id``, ``user_index``.
            context_map: ``context``, ``context_index``; what it lacks gets 0.
        """
        self._n_users = 1 + (pc.max(user_map["user_index"]).as_py() or 0)
        self._stage(USER_MAP, user_map)
        self._stage(CONTEXT_MAP, context_map)
        statement = coded_statement(self._signals, self._start_ms, self._end_ms, len(context_map) > 0)
        self._scratch.make("coded_events", statement, large=True)
        self._repeats_are_listed = False

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) of the n first events.

        Args:
            shares: each in [0, 1]; a share of 1 gives the last event.

        Returns:
            One time a share; none if there is no event.
        """
        self._list_repeats()
        first = first_rows().subquery("first_events")
        bins, ends = self._histogram(first)
        if len(ends) == 0:
            return ()
        positions = [min(int(share * ends[-1]), int(ends[-1]) - 1) for share in shares]
        width, found = self._bin_ms(), []
        for position in positions:
            place = int(np.searchsorted(ends, position, side="right"))
            within = position - (int(ends[place - 1]) if place else 0)
            start_ms = int(bins[place])
            in_bin = first_rows(start_ms, start_ms + width).subquery("first_events")
            found.append(int(self._connection.execute(time_at(in_bin, within)).scalar_one()))
        return tuple(found)

    def user_activity(self, borders: Sequence[int], policy: ActivityPolicy, n_users: int) -> np.ndarray:
        """Return int8 ``[U]``: bit p is set where the user is active at the end of part p."""
        codes = {signal: code for code, signal in enumerate(self._signals)}
        within = borders[-1] <= self._end_ms and all(policy.start_ms(end) >= self._start_ms for end in borders)
        known = set(policy.signals or self._signals) <= set(codes)
        # Then the coded events are all that count, and they are quicker to read.
        is_coded = self._every_item_is_mapped and within and known
        statement = activity_statement(self._signals, borders, policy, codes if is_coded else None)
        return self._bits(statement, n_users)

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
        kept = self._kept(repeats, borders).subquery("kept_events")
        if not all_first(self._policies(repeats)):
            yield from self._in_order(kept, EVENTS_SCHEMA)
            return
        for start_ms, end_ms in self._stretches():
            yield from self._in_order(first_rows(start_ms, end_ms).subquery("kept_events"), EVENTS_SCHEMA)

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
        kept = self._kept(repeats, (self._end_ms,)).subquery("kept_events")
        yield from self._in_order(split_rows(kept, split).subquery("split_events"), SPLIT_SCHEMA)

    def marked_twice(self, split: PairSplit) -> int:
        """Return how many pairs have a held-out signal and another one."""
        return int(self._connection.execute(pairs_marked_twice(CODED, split)).scalar_one())

    def _policies(self, repeats: Mapping[str, RepeatPolicy]) -> dict[int, RepeatPolicy]:
        return {code: repeats.get(signal, "first") for code, signal in enumerate(self._signals)}

    def _kept(self, repeats: Mapping[str, RepeatPolicy], borders: Sequence[int]) -> sa.Select[Any]:
        policies = self._policies(repeats)
        if all_first(policies):
            self._list_repeats()
        return kept_rows(policies, borders)

    def _list_repeats(self) -> None:
        """Make the table of the events that are not the first of their kind, once."""
        if self._repeats_are_listed:
            return
        sizes = (self._n_users, self._n_items, len(self._signals))
        self._scratch.make("repeated_keys", repeated_keys(*sizes))
        self._scratch.make("repeated_events", repeated_rows(*sizes))
        self._repeats_are_listed = True

    def _bin_ms(self) -> int:
        return max(1, -(-(self._end_ms - self._start_ms) // _BINS))

    def _histogram(self, events: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts of the bins that hold events, int64, and how many events end with each."""
        rows = self._connection.execute(time_histogram(events, self._start_ms, self._bin_ms())).all()
        bins, counts = np.array([(int(start), int(count)) for start, count in rows], dtype=np.int64).reshape(-1, 2).T
        return bins, np.cumsum(counts)

    def _stretches(self) -> list[tuple[int, int]]:
        """Return [start, end) ms of stretches of time with about ``range_rows`` events each; one on PostgreSQL."""
        if self._connection.dialect.name != "duckdb":
            return [(self._start_ms, self._end_ms)]
        bins, ends = self._histogram(CODED)
        group = (ends - 1) // self._range_rows if len(ends) else ends
        starts = [int(start) for start in bins[1:][np.diff(group) > 0]]
        return list(pairwise([self._start_ms, *starts, self._end_ms]))

    def _in_order(self, rows: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        columns = [rows.c[name] for name in schema.names]
        statement = sa.select(*columns).order_by(rows.c.event_time_ms, rows.c.event_id)
        yield from arrow_batches(self._connection, statement, schema, self._batch_rows)

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
            self._scratch.make(table.name, sa.select(*stage.c))
