"""Load files into the warehouse: no row twice, no row lost.

Every row that is read is loaded, or known already, or quarantined with its reason. A row's id depends
only on its content, so that no row counts twice. If the content or the mapping of a file changed, its
earlier rows are replaced (see ``loads``), in one transaction.

Nothing is stored before the times of the events are checked (see ``times``). From then on each file is
one transaction. Without this check each chunk is a transaction, unless the file replaces earlier rows. To
complete a load that was killed, run it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stages.contracts.errors import DataError
from stages.contracts.files import canonical_json, sha256_file, sha256_text
from stages.contracts.progress import progress as track
from stages.contracts.progress import progress_of
from stages.warehouse.database.engine import Warehouse, lock_loads
from stages.warehouse.database.tables import INTERACTIONS, ITEMS, QUARANTINE, USERS
from stages.warehouse.database.upsert import add_rows, put_rows
from stages.warehouse.ingest.identity import event_ids, quarantine_rows
from stages.warehouse.ingest.input_files import Stamp, absolute, expand
from stages.warehouse.ingest.loads import (
    Kept,
    Load,
    clear_quarantine,
    count_given,
    earlier_loads,
    find_load,
    forget_loads,
    is_held,
    is_logged,
    new_load_id,
    note_load,
    note_shared,
    note_takeover,
    refuse_unknown,
    release,
    takes_back,
)
from stages.warehouse.ingest.log import find_batch, find_untouched, move_stamp, reading_key, write_log
from stages.warehouse.ingest.normalise import normalise
from stages.warehouse.ingest.report import FileReport, IngestReport
from stages.warehouse.ingest.row_ids import Occurrences
from stages.warehouse.ingest.times import Times, check_within_an_hour, is_judged, source_span
from stages.warehouse.layouts.detect import table_mappings
from stages.warehouse.mapping import ColumnMapping, FileSource, IngestSource, InteractionColumns
from stages.warehouse.readers.chunk import Chunk, Reject
from stages.warehouse.readers.csv_file import read_csv
from stages.warehouse.readers.item_lists import read_sequences
from stages.warehouse.readers.json_lines import read_jsonl
from stages.warehouse.readers.parquet_file import chunk_batches, read_parquet

CHUNK_ROWS = 500_000
"""Approximate number of rows of a chunk; it bounds the memory of a load."""

_MANY = 8
_TABLES = {table.name: table for table in (INTERACTIONS, ITEMS, USERS)}
_READERS = {"csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet, "sequences": read_sequences}


def ingest(
    warehouse: Warehouse,
    source: IngestSource,
    progress: bool = False,
    *,
    now_ms: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
    check_times: bool = False,
) -> IngestReport:
    """Load every file of a data source.

    Args:
        warehouse: the warehouse to load into; missing tables are created.
        source: the files and their mappings.
        progress: whether to show a progress bar on a terminal.
        now_ms: int ms UTC; events after it are quarantined. None accepts any time.
        chunk_rows: about how many rows are read at a time.
        check_times: whether to refuse implausible times, unless the mapping allows them; needs ``now_ms``.

    Returns:
        Counts by file; they add up.

    Raises:
        DataError: if a file is missing, unreadable or lacks a mapped column, if an id is not exact, or if
            the times are implausible. Nothing of the faulty file is stored; earlier files stay once the
            times have passed their check. Without ``check_times`` the chunks before the fault stay too.
        TransientError: if the connection to the warehouse is lost.
    """
    warehouse.create_tables_to_load()
    files = expand(source)
    # A bar for the files where there are many, and one for the bytes of each.
    shown = track(files, source.name, unit="file") if progress and len(files) > _MANY else files
    with warehouse.loading() as connection:
        run = _Run(connection, source.name, files, now_ms if check_times else None)
        report = IngestReport(files=tuple(run.load(file, progress, now_ms, chunk_rows) for file in shown))
        run.check_whole()
    if report.rows_loaded:
        warehouse.analyze()
    return report


def ingest_tables(
    warehouse: Warehouse,
    interactions: pa.Table | Iterable[pa.RecordBatch],
    items: pa.Table,
    users: pa.Table,
    source_name: str,
    *,
    now_ms: int | None = None,
) -> IngestReport:
    """Load rows from memory, with the same ids as from files.

    Args:
        warehouse: the warehouse to load into; missing tables are created.
        interactions: user_id, item_id, signal, value, event_time_ms. Pass all rows in one call:
            identical rows are numbered within a call.
        items: item_id, title, categories ("|"-joined), created_at_ms, duration_s.
        users: user_id, attributes (a JSON object).
        source_name: as ``IngestSource.name``.
        now_ms: as for ``ingest``.

    Raises:
        DataError: if a column is missing.
    """
    warehouse.create_tables_to_load()
    reports = []
    for table, data in (("items", items), ("users", users), ("interactions", interactions)):
        mapping = table_mappings()[table]
        name = f"{source_name}:{table}"
        batches = data.to_batches(max_chunksize=CHUNK_ROWS) if isinstance(data, pa.Table) else data
        batch_id = sha256_text(canonical_json([source_name, table, mapping.model_dump(mode="json")]))
        report = FileReport(file=name, table=table, batch_id=batch_id)
        with warehouse.loading() as connection:
            load = _Load(connection, source_name, mapping, report, now_ms, new_load_id(connection, batch_id))
            reports.append(load.run(chunk_batches(name, mapping, batches), commits=True))
            write_log(connection, reports[-1], source_name, None, None)
    warehouse.analyze()
    return IngestReport(files=tuple(reports))


class _Run:
    """The load of one data source, in a transaction that stays open until the times are checked.

    Args:
        connection: from ``Warehouse.loading``.
        source_name: name of the data source.
        files: all of its files.
        judged_ms: the clock against which times are checked, int ms UTC; None checks nothing.
    """

    def __init__(
        self, connection: Connection, source_name: str, files: Iterable[FileSource], judged_ms: int | None
    ) -> None:
        self._connection = connection
        self._source_name = source_name
        self._readings: dict[tuple[str, str], set[str]] = {}
        for file in files:
            key = absolute(file.path), file.mapping.table
            self._readings.setdefault(key, set()).add(reading_key(source_name, file))
        judged = judged_ms is not None and any(is_judged(file) for file in files)
        self._times = Times(judged_ms) if judged and judged_ms is not None else None
        self._unit = ""

    @property
    def _may_commit(self) -> bool:
        return self._times is None or self._times.settled

    def check_whole(self) -> None:
        """Check the times of all files together, at the end.

        Raises:
            DataError: if they are implausible.
        """
        if self._times is None or self._times.settled or self._times.rows == 0:
            return
        if source_span(self._connection, self._source_name) is None:
            self._times.check(self._source_name, self._unit, soon=False)
        check_within_an_hour(self._connection, self._source_name)

    def load(self, file: FileSource, progress: bool, now_ms: int | None, chunk_rows: int) -> FileReport:
        """Load a file unless it is known already, and replace its earlier rows."""
        connection, table = self._connection, file.mapping.table
        path, stamp, reading = absolute(file.path), Stamp.of(file.path), reading_key(self._source_name, file)
        readings = self._readings[path, table]
        known = find_untouched(connection, file.path, reading, stamp)
        if known is not None:
            earlier = earlier_loads(connection, path, table, known.batch_id, reading, readings)
            return self._known(known, path, reading, earlier)
        batch_id = _batch_id(file, reading)
        settled = stamp if stamp.settled(now_ms) else None
        earlier = earlier_loads(connection, path, table, batch_id, reading, readings)
        known = find_batch(connection, file.path, batch_id)
        if known is not None:
            move_stamp(connection, batch_id, file.path, settled)
            return self._known(known, path, reading, earlier)
        if table == INTERACTIONS.name:
            refuse_unknown(connection, path, batch_id, reading, readings)
        with progress_of(file.path.name, stamp.size_bytes, "B", shown=progress) as advance:
            chunks = _READERS[file.resolved_format()](file, chunk_rows, advance)
            report = FileReport(file=str(file.path), table=table, batch_id=batch_id)
            report = self._read(file, report, reading, earlier, now_ms, chunks)
        write_log(connection, report, self._source_name, reading, settled)
        self._commit()
        return report

    def _commit(self) -> None:
        if self._may_commit:
            self._connection.commit()
            lock_loads(self._connection)

    def _known(self, report: FileReport, path: str, reading: str, earlier: list[Load]) -> FileReport:
        """Remove the rows of a known file's earlier loads and return its report; the file is not read."""
        load_id = find_load(self._connection, report.batch_id)
        if load_id is not None and not is_held(self._connection, path, report.batch_id):
            note_load(self._connection, path, report.table, reading, report.batch_id, load_id)
        if not earlier:
            return report
        replaced = self._count(report.table, earlier)
        forget_loads(self._connection, path, earlier)
        removed = self._release(report.table, reading, earlier, None)
        self._commit()
        return report.model_copy(update={"rows_replaced": replaced, "rows_removed": removed})

    def _read(
        self,
        file: FileSource,
        report: FileReport,
        reading: str,
        earlier: list[Load],
        now_ms: int | None,
        chunks: Iterator[Chunk],
    ) -> FileReport:
        connection, table, path = self._connection, _TABLES[report.table], absolute(file.path)
        heir, known = next((load for load in earlier if not load.shared), None), find_load(connection, report.batch_id)
        if known is not None:
            heir = None
        of_old_version = known is None and is_logged(connection, report.batch_id)
        load_id = known or (heir.load_id if heir else new_load_id(connection, report.batch_id))
        replaced = self._count(report.table, earlier)
        forget_loads(connection, path, earlier)
        if not of_old_version:
            note_load(connection, path, report.table, reading, report.batch_id, load_id)
        if heir or known:
            clear_quarantine(connection, load_id)
        kept = Kept(connection, table) if heir and takes_back(report.table, reading, heir) else None
        times = Times(self._times.now_ms) if self._times is not None and is_judged(file) else None
        load = _Load(connection, self._source_name, file.mapping, report, now_ms, load_id, kept, times)
        report = load.run(chunks, commits=self._may_commit and not earlier)
        if self._times is not None and times is not None:
            self._unit = file.mapping.time_unit
            times.check(str(file.path), self._unit, soon=True)
            self._times.merge(times)
        removed = release(connection, table, load_id, kept) if kept is not None else 0
        if kept is not None:
            kept.drop()
        removed += self._release(report.table, reading, earlier, heir)
        return report.model_copy(update={"rows_replaced": replaced, "rows_removed": removed})

    def _count(self, table: str, earlier: list[Load]) -> int:
        if table != INTERACTIONS.name:
            return 0
        return sum(count_given(self._connection, INTERACTIONS, load.load_id) for load in earlier)

    def _release(self, table: str, reading: str, earlier: list[Load], heir: Load | None) -> int:
        """Remove the rows of earlier loads whose number is not re-used, and return how many were removed."""
        removed = 0
        for load in earlier:
            if load is heir or load.shared:
                continue
            clear_quarantine(self._connection, load.load_id)
            if takes_back(table, reading, load):
                removed += release(self._connection, _TABLES[table], load.load_id)
        return removed


def _batch_id(file: FileSource, reading: str) -> str:
    try:
        return sha256_text(canonical_json([reading, sha256_file(file.path)]))
    except OSError as error:
        raise DataError(f"{file.path}: {error.strerror}") from None


class _Load:
    """The load of one file.

    Args:
        connection: in a transaction.
        source_name: name of the data source.
        mapping: which column means what.
        report: with file, table and batch.
        now_ms: events after it are quarantined; None accepts any time.
        load_id: number that the rows carry.
        kept: collects the keys of the rows, or None.
        times: collects the times of events, or None.
    """

    def __init__(
        self,
        connection: Connection,
        source_name: str,
        mapping: ColumnMapping,
        report: FileReport,
        now_ms: int | None,
        load_id: int,
        kept: Kept | None = None,
        times: Times | None = None,
    ) -> None:
        self._connection = connection
        self._source_name = source_name
        self._mapping = mapping
        self._report = report
        self._now_ms = now_ms
        self._load_id = load_id
        self._kept = kept
        self._times = times
        self._events = mapping if isinstance(mapping, InteractionColumns) else None

    def run(self, chunks: Iterator[Chunk], commits: bool) -> FileReport:
        """Load every chunk, each in a transaction of its own if ``commits``."""
        loaded = read = 0
        reasons: dict[str, int] = {}
        with ExitStack() as stack:
            rows_seen, rejects_seen = stack.enter_context(Occurrences()), stack.enter_context(Occurrences())
            for chunk in chunks:
                rows, rejects = self._normalise(chunk)
                read += len(rows) + len(rejects)
                for reject in rejects:
                    reasons[reject.reason] = reasons.get(reject.reason, 0) + 1
                loaded += self._put(rows, rows_seen)
                self._put_aside(rejects, rejects_seen)
                if commits:
                    self._connection.commit()
                    lock_loads(self._connection)
        aside = sum(reasons.values())
        return self._report.model_copy(
            update={
                "rows_read": read,
                "rows_loaded": loaded,
                "rows_duplicate": read - loaded - aside,
                "rows_quarantined": aside,
                "reasons": reasons,
            }
        )

    def _normalise(self, chunk: Chunk) -> tuple[Any, list[Reject]]:
        try:
            return normalise(chunk, self._mapping, self._now_ms, self._times)
        except DataError as error:
            raise DataError(f"{self._report.file}: {error}") from None

    def _put(self, rows: Any, seen: Occurrences) -> int:
        rows = rows.append_column("load_id", pa.repeat(pa.scalar(self._load_id), len(rows)))
        if self._events is not None:
            rows = self._identified(rows, self._events, seen)
            added = add_rows(self._connection, INTERACTIONS, "event_id", rows)
            self._note(INTERACTIONS, rows.select(["event_id"]), added)
            return added
        table, key = (ITEMS, "item_id") if self._report.table == ITEMS.name else (USERS, "user_id")
        note_takeover(self._connection, table, rows, self._load_id)
        added = put_rows(self._connection, table, key, rows)
        self._note(table, rows.select([key]), added)
        return added

    def _put_aside(self, rejects: list[Reject], seen: Occurrences) -> None:
        rows = quarantine_rows(rejects, self._source_name, self._report, self._load_id, seen)
        added = add_rows(self._connection, QUARANTINE, "quarantine_id", rows)
        if added < len(rows):
            note_shared(self._connection, QUARANTINE, rows.select(["quarantine_id"]), self._load_id)

    def _note(self, table: sa.Table, keys: pa.Table, added: int) -> None:
        if len(keys) == 0:
            return
        if self._kept is not None:
            self._kept.add(keys)
        if added < len(keys):
            note_shared(self._connection, table, keys, self._load_id)

    def _identified(self, rows: Any, events: InteractionColumns, seen: Occurrences) -> Any:
        rows, ids = event_ids(rows, self._source_name, events, seen)
        source = pa.repeat(pa.scalar(self._source_name), len(rows))
        return rows.add_column(0, "event_id", pa.array(ids)).append_column("source", source)
