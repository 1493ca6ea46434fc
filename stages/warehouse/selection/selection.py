"""The selection, written once in SQLAlchemy Core and executed by the warehouse.

First, ids become integer codes: the distinct ids are read and written back as small tables with a code each, in
any order. From then on the warehouse joins, counts, removes repeats and sorts integers in tables of one connection
(see ``scratch``), which can spill to disk. Python then assigns the indices by first times, with ids sorted bytewise
whatever the database's collation is; they replace the codes in the rows that are read. Text is slow to group,
above all with many ids, so it is read only twice: for the distinct users, and for coding. DuckDB and PostgreSQL
return the same rows in the same order: by (event_time_ms, event_id).

Every period is [start, end). Activity and eligibility of a row depend only on events before the end of its own
period. Repeats: see ``repeats``.
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
from stages.warehouse.database.engine import Warehouse, arrow_batches
from stages.warehouse.database.upsert import staged
from stages.warehouse.selection.pair_splits import USER_GROUPS, PairSplit, pairs_marked_twice, split_rows
from stages.warehouse.selection.policies import ActivityPolicy, ItemPolicy, RepeatPolicy
from stages.warehouse.selection.repeats import (
    CODED,
    all_first,
    first_rows,
    kept_rows,
    repeated_keys,
    repeated_rows,
    time_at,
    time_histogram,
)
from stages.warehouse.selection.scratch import Scratch, open_scratch
from stages.warehouse.selection.statements import (
    CONTEXT_MAP,
    ITEM_MAP,
    USER_MAP,
    activity_statement,
    coded_statement,
    context_times,
    eligibility_statement,
    first_times,
    unlisted_items,
    user_counts,
)

BATCH_ROWS = 1 << 17
RANGE_ROWS = 1 << 24
"""Number of events that DuckDB sorts at a time: they fit into 2 GB."""
_BINS = 4096
_DUCKDB_SETTINGS = {
    # The rows are sorted at the end anyway; without insertion order, threads need not wait for each other.
    "preserve_insertion_order": "false",
    # Groups by a code below two million are counted in an array: less than .2 GB a thread for these queries.
    "perfect_ht_threshold": "21",
}
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
_FIRST_CODES_SCHEMA = pa.schema([("code", pa.int64()), ("first_ms", pa.int64())])
_COUNTS_SCHEMA = pa.schema([("id", pa.string()), ("n", pa.int64())])
SPLIT_SCHEMA = EVENTS_SCHEMA.append(pa.field("part", pa.int8()))
_BITS_SCHEMA = pa.schema([("index", pa.int64()), ("bits", pa.int32())])


@contextmanager
def open_selection(
    warehouse: Warehouse,
    signals: Sequence[str],
    start_ms: int,
    end_ms: int,
    batch_rows: int = BATCH_ROWS,
    range_rows: int = RANGE_ROWS,
) -> Iterator[CodedSelection]:
    """Yield a selection on a connection of its own; its temporary tables are rolled back at the end.

    Args:
        warehouse: the warehouse to read.
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
            for name, value in _DUCKDB_SETTINGS.items():
                connection.execute(sa.text(f"SET {name} = {value}"))
        try:
            with open_scratch(warehouse, connection) as scratch:
                yield CodedSelection(connection, scratch, tuple(signals), start_ms, end_ms, batch_rows, range_rows)
        finally:
            if warehouse.is_duckdb:
                for name in _DUCKDB_SETTINGS:
                    connection.execute(sa.text(f"RESET {name}"))


class CodedSelection:
    """One selection; call ``code``, then ``place``, before any method that reads events."""

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
        self._every_event_is_coded = self._repeats_are_listed = False
        self._user_ids = self._item_ids = pa.array([], pa.string())
        self._item_place = self._user_place = _Places(self._item_ids, self._item_ids)

    def contexts(self) -> pa.Table:
        """Return the contexts of the selected events with their first times, ``FIRST_TIMES_SCHEMA``."""
        return self._table(context_times(self._signals, self._start_ms, self._end_ms), FIRST_TIMES_SCHEMA)

    def code(self, listed: pa.Table, blocked: pa.Array, context_map: pa.Table) -> None:
        """Turn the selected events into integers; an unlisted item is its own canonical item.

        Args:
            listed: ``item_id`` and ``canonical_id`` of the catalogue's items.
            blocked: ids of the items whose events are left out.
            context_map: ``context``, ``context_index``; a context that is not listed gets 0.
        """
        window = (self._signals, self._start_ms, self._end_ms)
        users = self._table(user_counts(*window), _COUNTS_SCHEMA)
        self._user_ids = users["id"].combine_chunks()
        n_chosen = pc.sum(users["n"]).as_py() or 0
        self._stage(USER_MAP, pa.table({"user_id": self._user_ids, "user_index": _codes(0, len(users))}))
        self._stage(CONTEXT_MAP, context_map)
        item_id, canonical_id = (listed[name].combine_chunks() for name in ("item_id", "canonical_id"))
        canonical = pc.equal(item_id, canonical_id)
        self._item_ids = item_id.filter(canonical)
        item_code = pc.index_in(canonical_id, self._item_ids)
        self._stage(ITEM_MAP, pa.table([item_id, item_code, canonical], names=ITEM_MAP.c.keys()))
        with_context = len(context_map) > 0
        self._scratch.make("coded_events", coded_statement(*window, with_context), large=True)
        n_coded = self._n_coded()
        if n_coded < n_chosen:
            self._code_unlisted(blocked, with_context)
            n_coded = self._n_coded()
        self._every_event_is_coded = n_coded == n_chosen
        self._repeats_are_listed = False

    def _code_unlisted(self, blocked: pa.Array, with_context: bool) -> None:
        """Add the events of the items that are neither listed nor blocked."""
        window = (self._signals, self._start_ms, self._end_ms)
        others = self._table(unlisted_items(*window), pa.schema([("id", pa.string())]))["id"].combine_chunks()
        unlisted = others.filter(pc.invert(pc.is_in(others, blocked)))
        first_code = len(self._item_ids)
        self._item_ids = pa.concat_arrays([self._item_ids, unlisted])
        codes, canonical = _codes(first_code, len(self._item_ids)), np.ones(len(unlisted), dtype=bool)
        self._stage(ITEM_MAP, pa.table([unlisted, codes, canonical], names=ITEM_MAP.c.keys()), more=True)
        self._scratch.add("coded_events", coded_statement(*window, with_context, first_code), large=True)

    def items(self) -> pa.Table:
        """Return the canonical ids of the events' items with their first times, ``FIRST_TIMES_SCHEMA``."""
        return self._first_times(CODED.c.item_index, self._item_ids)

    def users(self) -> pa.Table:
        """Return the ids of the events' users with their first times, ``FIRST_TIMES_SCHEMA``."""
        return self._first_times(CODED.c.user_index, self._user_ids)

    def place(self, item_ids: pa.Array, user_ids: pa.Array) -> None:
        """Set the ids of items and users by index; rows read from now on have these indices.

        Args:
            item_ids: strings ``[N]`` with every id of ``items``.
            user_ids: strings ``[U]`` with every id of ``users``.
        """
        self._item_place, self._user_place = _Places(self._item_ids, item_ids), _Places(self._user_ids, user_ids)

    def time_quantiles(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return the time of the event at position floor(share * n) among the n events without repeats.

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
        """Return int8 ``[U]``: bit p is set if the user is active at the end of period p."""
        codes = {signal: code for code, signal in enumerate(self._signals)}
        within = borders[-1] <= self._end_ms and all(policy.start_ms(end) >= self._start_ms for end in borders)
        known = set(policy.signals or self._signals) <= set(codes)
        # If the coded events contain every event that counts, read those: they are quicker to read.
        is_coded = self._every_event_is_coded and within and known
        statement = activity_statement(self._signals, borders, policy, codes if is_coded else None)
        return self._bits(statement, self._user_place, n_users)

    def item_eligibility(self, borders: Sequence[int], policy: ItemPolicy, n_items: int) -> np.ndarray:
        """Return int8 ``[N]``: bit p is set if the item is eligible at the end of period p."""
        return self._bits(eligibility_statement(borders, policy), self._item_place, n_items)

    def events(self, borders: Sequence[int], repeats: Mapping[str, RepeatPolicy]) -> Iterator[pa.RecordBatch]:
        """Yield the events without repeats by (event_time_ms, event_id); memory is bounded.

        Args:
            borders: ends of the periods, increasing; the last one is the end of the selection.
            repeats: policy by signal, ``first`` by default.

        Yields:
            Batches with ``EVENTS_SCHEMA``.

        Raises:
            ConfigError: if there is no border or the borders do not increase.
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
        """Yield the events without repeats and their periods by (event_time_ms, event_id).

        Args:
            split: how user-item pairs are assigned to periods.
            repeats: as for ``events``; with ``last``, ``sum`` and ``max`` one row remains.
            user_parts: int8 ``[U]``, the period that each user is assigned to, for the method ``users``.

        Yields:
            Batches with ``SPLIT_SCHEMA``.
        """
        parts = self._user_place.of_codes(user_parts).astype(np.int32)
        self._stage(USER_GROUPS, pa.table({"user_index": np.arange(len(parts)), "part": parts}))
        kept = self._kept(repeats, (self._end_ms,)).subquery("kept_events")
        yield from self._in_order(split_rows(kept, split).subquery("split_events"), SPLIT_SCHEMA)

    def marked_twice(self, split: PairSplit) -> int:
        """Return how many pairs have both a held-out signal and another one."""
        return int(self._connection.execute(pairs_marked_twice(CODED, split)).scalar_one())

    def _policies(self, repeats: Mapping[str, RepeatPolicy]) -> dict[int, RepeatPolicy]:
        return {code: repeats.get(signal, "first") for code, signal in enumerate(self._signals)}

    def _kept(self, repeats: Mapping[str, RepeatPolicy], borders: Sequence[int]) -> sa.Select[Any]:
        policies = self._policies(repeats)
        if all_first(policies):
            self._list_repeats()
        return kept_rows(policies, borders)

    def _list_repeats(self) -> None:
        """Make the table of repeated events, once."""
        if self._repeats_are_listed:
            return
        sizes = (len(self._user_ids), len(self._item_ids), len(self._signals))
        self._scratch.make("repeated_keys", repeated_keys(*sizes))
        self._scratch.make("repeated_events", repeated_rows(*sizes))
        self._repeats_are_listed = True

    def _bin_ms(self) -> int:
        return max(1, -(-(self._end_ms - self._start_ms) // _BINS))

    def _histogram(self, events: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts of the bins with events, int64, and the cumulative number of events to each bin's end."""
        rows = self._connection.execute(time_histogram(events, self._start_ms, self._bin_ms())).all()
        bins, counts = np.array([(int(start), int(count)) for start, count in rows], dtype=np.int64).reshape(-1, 2).T
        return bins, np.cumsum(counts)

    def _stretches(self) -> list[tuple[int, int]]:
        """Return [start, end) in ms of stretches of time with about ``range_rows`` events each; PostgreSQL gets one."""
        if self._connection.dialect.name != "duckdb":
            return [(self._start_ms, self._end_ms)]
        bins, ends = self._histogram(CODED)
        group = (ends - 1) // self._range_rows if len(ends) else ends
        starts = [int(start) for start in bins[1:][np.diff(group) > 0]]
        return list(pairwise([self._start_ms, *starts, self._end_ms]))

    def _in_order(self, rows: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        columns = [rows.c[name] for name in schema.names]
        statement = sa.select(*columns).order_by(rows.c.event_time_ms, rows.c.event_id)
        places = {"user_index": self._user_place, "item_index": self._item_place}
        for batch in arrow_batches(self._connection, statement, schema, self._batch_rows):
            placed = [place.index(batch[name]) for name, place in places.items()]
            yield pa.record_batch([*placed, *batch.columns[len(placed) :]], schema=schema)

    def _first_times(self, code: Any, ids: pa.Array) -> pa.Table:
        found = self._table(first_times(code), _FIRST_CODES_SCHEMA)
        return pa.table([ids.take(found["code"].combine_chunks()), found["first_ms"]], schema=FIRST_TIMES_SCHEMA)

    def _n_coded(self) -> int:
        return int(self._connection.execute(sa.select(sa.func.count()).select_from(CODED)).scalar_one())

    def _table(self, statement: sa.Select[Any], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_batches(
            arrow_batches(self._connection, statement, schema, self._batch_rows), schema=schema
        )

    def _bits(self, statement: sa.Select[Any], place: _Places, size: int) -> np.ndarray:
        bits = np.zeros(size, dtype=np.int8)
        for batch in arrow_batches(self._connection, statement, _BITS_SCHEMA, self._batch_rows):
            index = place.by_code[batch.column(0).to_numpy()]
            bits[index[index >= 0]] = batch.column(1).to_numpy()[index >= 0]
        return bits

    def _stage(self, table: sa.Table, rows: pa.Table, more: bool = False) -> None:
        with staged(self._connection, table, rows.select(table.c.keys())) as stage:
            (self._scratch.add if more else self._scratch.make)(table.name, sa.select(*stage.c))


def _codes(start: int, stop: int) -> np.ndarray:
    """Return the codes as int32, so that lookup tables fit into the caches."""
    return np.arange(start, stop, dtype=np.int32)


class _Places:
    """The index of each code, -1 for a code without an index."""

    def __init__(self, by_code: pa.Array, by_index: pa.Array) -> None:
        self.by_code = pc.fill_null(pc.index_in(by_code, by_index), -1).to_numpy()

    def index(self, codes: pa.Array) -> pa.Array:
        """Return the int64 indices of codes, each of which must have one."""
        index = self.by_code[codes.to_numpy()].astype(np.int64)
        if len(index) and index.min() < 0:
            raise ValueError("place: an event's user or item is not among the ids")
        return pa.array(index)

    def of_codes(self, values: np.ndarray) -> np.ndarray:
        """Return by code the values that are given by index; 0 for a code without an index."""
        return np.where(self.by_code >= 0, values[self.by_code], 0)
