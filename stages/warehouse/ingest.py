"""Loading files into the warehouse: nothing twice, nothing lost.

Every row that is read ends in one of three places: loaded, known already, or put aside with its
reason. A chunk is one transaction, and a row's identity depends only on its content, so a load that
was killed is completed by running it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy.engine import Connection
from tqdm import tqdm

from stages.contracts.errors import DataError
from stages.contracts.files import canonical_json, sha256_file, sha256_text
from stages.warehouse.arrow import chunk_batches, read_parquet
from stages.warehouse.blocks import Progress
from stages.warehouse.chunks import Chunk, Reject
from stages.warehouse.engine import Warehouse
from stages.warehouse.files import Stamp, expand
from stages.warehouse.hashing import Occurrences, combine, hash_numbers, hash_strings, hash_text
from stages.warehouse.ingest_log import find_batch, find_untouched, move_stamp, reading_key, write_log
from stages.warehouse.jsonl import read_jsonl
from stages.warehouse.layouts import table_mappings
from stages.warehouse.load import add_rows, put_rows
from stages.warehouse.mapping import ColumnMapping, FileSource, IngestSource, InteractionColumns
from stages.warehouse.normalise import normalise
from stages.warehouse.report import FileReport, IngestReport
from stages.warehouse.sequences import read_sequences
from stages.warehouse.tables import INTERACTIONS, ITEMS, QUARANTINE, USERS
from stages.warehouse.text import read_csv

CHUNK_ROWS = 500_000
"""Rows of a chunk, about: bounds the memory of a load, and what a kill can undo."""

_MANY = 8
_READERS = {"csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet, "sequences": read_sequences}


def ingest(
    warehouse: Warehouse,
    source: IngestSource,
    progress: bool = False,
    *,
    now_ms: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> IngestReport:
    """Load every file of a source.

    Args:
        warehouse: where to; missing tables are created.
        source: the files and their mappings.
        progress: whether to show a progress bar on a terminal.
        now_ms: int ms UTC; events after it are put aside. None accepts any time.
        chunk_rows: about how many rows are read, and committed, at a time.

    Returns:
        Counts by file; they add up.

    Raises:
        DataError: if a file is missing, unreadable or lacks a mapped column. The chunks before a
            fault in the middle stay loaded; running again completes the load.
        TransientError: if the warehouse went away.
    """
    warehouse.create_tables_to_load()
    files = expand(source)
    # A bar for the files where there are many, and one for the bytes of each.
    shown = tqdm(files, unit="file", desc=source.name, disable=None if progress and len(files) > _MANY else True)
    report = IngestReport(
        files=tuple(_ingest_file(warehouse, source.name, file, progress, now_ms, chunk_rows) for file in shown)
    )
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
    """Load rows from memory, with the same identities as from files.

    Args:
        warehouse: where to; missing tables are created.
        interactions: user_id, item_id, signal, value, event_time_ms; all of it in one call, since
            identical rows are told apart by their number within the call.
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
        load = _Load(warehouse, source_name, mapping, FileReport(file=name, table=table, batch_id=batch_id), now_ms)
        reports.append(load.run(chunk_batches(name, mapping, batches)))
    warehouse.analyze()
    return IngestReport(files=tuple(reports))


def _ingest_file(
    warehouse: Warehouse, source_name: str, file: FileSource, progress: bool, now_ms: int | None, chunk_rows: int
) -> FileReport:
    stamp, reading = Stamp.of(file.path), reading_key(source_name, file)
    known = find_untouched(warehouse, file.path, reading, stamp)
    if known is not None:
        return known
    try:
        digest = sha256_file(file.path)
    except OSError as error:
        raise DataError(f"{file.path}: {error.strerror}") from None
    batch_id = sha256_text(canonical_json([reading, digest]))
    settled = stamp if stamp.settled(now_ms) else None
    known = find_batch(warehouse, file.path, batch_id)
    if known is not None:
        with warehouse.begin() as connection:
            move_stamp(connection, batch_id, file.path, settled)
        return known
    report = FileReport(file=str(file.path), table=file.mapping.table, batch_id=batch_id)
    hidden = None if progress else True
    with tqdm(
        total=stamp.size_bytes, unit="B", unit_scale=True, desc=file.path.name, disable=hidden, leave=None
    ) as bar:
        advance: Progress = bar.update
        chunks = _READERS[file.resolved_format()](file, chunk_rows, advance)
        return _Load(warehouse, source_name, file.mapping, report, now_ms, reading, settled).run(chunks)


class _Load:
    """The load of one file."""

    def __init__(
        self,
        warehouse: Warehouse,
        source_name: str,
        mapping: ColumnMapping,
        report: FileReport,
        now_ms: int | None,
        reading: str | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        self._warehouse = warehouse
        self._source_name = source_name
        self._mapping = mapping
        self._report = report
        self._now_ms = now_ms
        self._reading = reading
        self._stamp = stamp
        events = mapping if isinstance(mapping, InteractionColumns) else None
        self._has_context = events is not None and bool(events.context)
        self._has_ids = events is not None and events.event_id is not None
        self._lists_items = events is not None and events.item_separator is not None

    def run(self, chunks: Iterator[Chunk]) -> FileReport:
        """Load every chunk in a transaction of its own, then log the file."""
        loaded = read = 0
        reasons: dict[str, int] = {}
        with ExitStack() as stack:
            rows_seen, rejects_seen = stack.enter_context(Occurrences()), stack.enter_context(Occurrences())
            for chunk in chunks:
                rows, rejects = normalise(chunk, self._mapping, self._now_ms)
                read += len(rows) + len(rejects)
                for reject in rejects:
                    reasons[reject.reason] = reasons.get(reject.reason, 0) + 1
                with self._warehouse.begin() as connection:
                    loaded += self._put(connection, rows, rows_seen)
                    add_rows(connection, QUARANTINE, "quarantine_id", self._quarantine(rejects, rejects_seen))
        aside = sum(reasons.values())
        report = self._report.model_copy(
            update={
                "rows_read": read,
                "rows_loaded": loaded,
                "rows_duplicate": read - loaded - aside,
                "rows_quarantined": aside,
                "reasons": reasons,
            }
        )
        with self._warehouse.begin() as connection:
            write_log(connection, report, self._reading, self._stamp)
        return report

    def _put(self, connection: Connection, rows: Any, seen: Occurrences) -> int:
        if self._report.table == "items":
            return put_rows(connection, ITEMS, "item_id", rows)
        if self._report.table == "users":
            return put_rows(connection, USERS, "user_id", rows)
        if self._has_ids:
            rows, ids = self._by_event_id(rows)
        else:
            ids = _identity(self._content(rows), seen)
        source = pa.repeat(pa.scalar(self._source_name), len(rows))
        identified = rows.add_column(0, "event_id", pa.array(ids)).append_column("source", source)
        return add_rows(connection, INTERACTIONS, "event_id", identified)

    def _content(self, rows: Any) -> np.ndarray:
        """Return uint64 ``[R]`` hashes of events that have no id of their own."""
        return combine(
            [
                hash_text(self._source_name),
                hash_strings(rows["user_id"]),
                hash_strings(rows["item_id"]),
                hash_strings(rows["signal"]),
                hash_numbers(rows["value"]),
                hash_numbers(rows["event_time_ms"]),
                # Only where there is one: an event without context keeps the identity that it always had.
                *([hash_strings(rows["context"])] if self._has_context else []),
            ],
            len(rows),
        )

    def _by_event_id(self, rows: Any) -> tuple[Any, np.ndarray]:
        """Return the events that come first under their own id, and int64 identities made of it."""
        parts: list[np.ndarray | np.uint64] = [hash_text(self._source_name), hash_text("event_id")]
        parts.append(hash_strings(rows["event_key"]))
        if self._lists_items:
            parts += [hash_strings(rows["item_id"]), hash_strings(rows["signal"])]
        ids = combine(parts, len(rows)).view(np.int64)
        first = np.sort(np.unique(ids, return_index=True)[1])
        return rows.drop_columns(["event_key"]).take(pa.array(first)), ids[first]

    def _quarantine(self, rejects: list[Reject], seen: Occurrences) -> Any:
        size = len(rejects)
        reasons = pa.array([reject.reason for reject in rejects], pa.large_string())
        raws = pa.array([reject.raw.replace("\0", "\\x00") for reject in rejects], pa.large_string())
        names = [hash_text(self._source_name), hash_text(self._report.table)]
        hashes = combine([*names, hash_strings(reasons), hash_strings(raws)], size)
        columns = {
            "quarantine_id": _identity(hashes, seen),
            "batch_id": pa.repeat(pa.scalar(self._report.batch_id), size),
            "file": pa.repeat(pa.scalar(self._report.file), size),
            "table_name": pa.repeat(pa.scalar(self._report.table), size),
            "row_number": pa.array([reject.row_number for reject in rejects], pa.int64()),
            "reason": reasons,
            "raw": raws,
        }
        return pa.table(columns)


def _identity(hashes: np.ndarray, seen: Occurrences) -> np.ndarray:
    """Return int64 ids: the hash of a row and of its number among identical ones."""
    numbers = seen.number(hashes).astype(np.uint64)
    return combine([hashes, numbers], len(hashes)).view(np.int64)
