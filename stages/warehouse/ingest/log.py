"""Log the files that were loaded, so that a folder with a few new files is cheap to load again.

A file whose size and times have not changed since its load is not opened. A changed file is hashed; if
its bytes are known, it is not read again. A file with events in the future is always read again: they
may be in the past by now.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection

from stages.contracts.errors import DataError
from stages.contracts.files import canonical_json, sha256_text
from stages.warehouse.database.tables import INGEST_LOG
from stages.warehouse.ingest.input_files import Stamp
from stages.warehouse.ingest.normalise import IN_FUTURE
from stages.warehouse.ingest.report import FileReport
from stages.warehouse.mapping import FileSource


def reading_key(source_name: str, file: FileSource) -> str:
    """Return a hex sha256 of how a file is read: source, table, format and mapping, not its path."""
    chosen = file.model_dump(mode="json", exclude={"path"}, exclude_defaults=True)
    chosen["mapping"].pop("allow_times", None)
    return sha256_text(canonical_json([source_name, file.mapping.table, file.resolved_format(), chosen]))


def find_untouched(connection: Connection, path: Path, reading: str, stamp: Stamp) -> FileReport | None:
    """Return the report of a file that was loaded before and has not changed since, else None.

    Raises:
        DataError: if the log's row is damaged.
    """
    wanted = {"file": str(path), "reading": reading} | asdict(stamp)
    return _find(connection, sa.and_(*(INGEST_LOG.c[name] == value for name, value in wanted.items())), path)


def find_batch(connection: Connection, path: Path, batch_id: str) -> FileReport | None:
    """Return the report of a file whose bytes were loaded before, else None.

    Raises:
        DataError: if the log's row is damaged.
    """
    return _find(connection, INGEST_LOG.c.batch_id == batch_id, path)


def _find(connection: Connection, condition: sa.ColumnElement[bool], path: Path) -> FileReport | None:
    row = connection.execute(sa.select(INGEST_LOG).where(condition)).first()
    if row is None or (row.rows_quarantined and row.reasons is None):
        return None
    reasons = _reasons(row.reasons or "{}", path)
    if IN_FUTURE in reasons:
        return None
    return FileReport(
        file=str(path),
        table=row.table_name,
        batch_id=row.batch_id,
        rows_read=row.rows_read,
        rows_duplicate=row.rows_read - row.rows_quarantined,
        rows_quarantined=row.rows_quarantined,
        reasons=reasons,
        known=True,
    )


def _reasons(text: str, path: Path) -> dict[str, int]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(type(count) is int and count > 0 for count in found.values()):
        raise DataError(
            f"{path}: ingest_log.reasons = {text!r} in the row of its load; allowed is a JSON object of counts by "
            "reason; set it to null, and the file is read again"
        )
    return found


def write_log(
    connection: Connection, report: FileReport, source_name: str, reading: str | None, stamp: Stamp | None
) -> None:
    """Note that a file was read to its end; with a stamp of None the file is hashed at the next load."""
    names = ("batch_id", "file", "rows_read", "rows_loaded", "rows_duplicate", "rows_quarantined")
    values = {name: getattr(report, name) for name in names} | {"table_name": report.table, "reading": reading}
    values["source"] = source_name
    values["reasons"] = canonical_json(report.reasons)
    values |= asdict(stamp) if stamp else dict.fromkeys(("size_bytes", "modified_ns", "changed_ns"))
    statement = insert(INGEST_LOG).values(values)
    changes = {name: statement.excluded[name] for name in values if name != "batch_id"}
    connection.execute(statement.on_conflict_do_update(index_elements=["batch_id"], set_=changes))


def move_stamp(connection: Connection, batch_id: str, path: Path, stamp: Stamp | None) -> None:
    """Note the latest path and stamp of a known file."""
    if stamp is not None:
        changes = {"file": str(path)} | asdict(stamp)
        connection.execute(sa.update(INGEST_LOG).where(INGEST_LOG.c.batch_id == batch_id).values(changes))
