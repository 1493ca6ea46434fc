"""Track the load of each row, so that a file that is read again replaces its earlier rows.

A load is the set of rows of one file under one reading (format and mapping). Each row has the number of its
load. Further loads that contain the same row are listed in a table of their own; the row is removed with the
last of its loads. A file with the same bytes under another path shares the load. A load that replaces another
one takes over its number, so that only the new lines of a growing log are written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateTable

from stages.contracts.errors import DataError
from stages.warehouse.database.tables import FILE_LOADS, INGEST_LOG, INTERACTIONS, LOADED, QUARANTINE, SHARED
from stages.warehouse.database.upsert import staged
from stages.warehouse.ingest.row_ids import hash_text

_F, _L = FILE_LOADS.c, INGEST_LOG.c


@dataclass(frozen=True)
class Load:
    """The rows of a file under one reading: batch, reading, and the number that the rows carry.

    Attributes:
        batch_id: hash of the bytes and the reading.
        reading: hash of how the file was read, see ``log.reading_key``.
        load_id: int64.
        shared: whether another file has the same bytes and reading.
    """

    batch_id: str
    reading: str
    load_id: int
    shared: bool


def new_load_id(connection: Connection, batch_id: str) -> int:
    """Return an unused int64 number for a load that replaces nothing."""
    text = batch_id
    while True:
        number = int(hash_text(text).view(np.int64))
        used = sa.select(_F.load_id).where(_F.load_id == number, _F.batch_id != batch_id)
        if number and connection.execute(used).first() is None:
            return number
        text += "+"


def earlier_loads(
    connection: Connection, path: str, table: str, batch_id: str, reading: str, readings: Collection[str]
) -> list[Load]:
    """Return the earlier loads of a file that its current content replaces, those of the same reading first.

    Args:
        connection: of the warehouse.
        path: absolute path of the file.
        table: the table that it fills.
        batch_id: of its current content.
        reading: of its current content.
        readings: all readings of the file in this ingestion; the loads of the other readings stay.
    """
    others = FILE_LOADS.alias("others")
    shared = sa.exists().where(others.c.batch_id == _F.batch_id, others.c.file != path)
    own = sa.select(_F.batch_id, _F.reading, _F.load_id, shared.label("shared")).where(
        _F.file == path, _F.table_name == table, _F.batch_id != batch_id
    )
    found = [Load(*row) for row in connection.execute(own)]
    gone = [load for load in found if load.reading == reading or load.reading not in readings]
    return sorted(gone, key=lambda load: (load.reading != reading, load.batch_id))


def find_load(connection: Connection, batch_id: str) -> int | None:
    """Return the number of the load of a batch, or None if no file is noted for it."""
    found = connection.execute(sa.select(_F.load_id).where(_F.batch_id == batch_id)).first()
    return None if found is None else int(found.load_id)


def is_held(connection: Connection, path: str, batch_id: str) -> bool:
    """Return whether a file is noted for a batch."""
    own = sa.select(_F.load_id).where(_F.batch_id == batch_id, _F.file == path)
    return connection.execute(own).first() is not None


def is_logged(connection: Connection, batch_id: str) -> bool:
    """Return whether a batch was loaded to its end."""
    return connection.execute(sa.select(_L.batch_id).where(_L.batch_id == batch_id)).first() is not None


def note_load(connection: Connection, path: str, table: str, reading: str, batch_id: str, load_id: int) -> None:
    """Note the load of a file; a noted file with the same bytes that no longer exists was renamed to this one."""
    holders = sa.select(_F.file).where(_F.batch_id == batch_id)
    for holder in connection.execute(holders).scalars().all():
        if holder == path or not Path(holder).exists():
            connection.execute(sa.delete(FILE_LOADS).where(_F.batch_id == batch_id, _F.file == holder))
    values = dict(file=path, table_name=table, reading=reading, batch_id=batch_id, load_id=load_id)
    connection.execute(sa.insert(FILE_LOADS).values(values))


def forget_loads(connection: Connection, path: str, loads: Collection[Load]) -> None:
    """Delete the notes of a file's earlier loads, and their log entries if no other file shares them."""
    for load in loads:
        connection.execute(sa.delete(FILE_LOADS).where(_F.file == path, _F.batch_id == load.batch_id))
        if not load.shared:
            connection.execute(sa.delete(INGEST_LOG).where(_L.batch_id == load.batch_id))


def refuse_unknown(connection: Connection, path: str, batch_id: str, reading: str, readings: Collection[str]) -> None:
    """Refuse to replace events of an earlier version of Sluice, which did not note the events of each file.

    Raises:
        DataError: if the log has events of the same file, with other content or another reading, without a load.
    """
    known = sa.exists().where(_F.batch_id == _L.batch_id)
    statement = sa.select(_L.batch_id, _L.reading).where(
        _L.file == path, _L.table_name == INTERACTIONS.name, _L.batch_id != batch_id, ~known
    )
    for row in connection.execute(statement):
        if row.reading is None or row.reading == reading or row.reading not in readings:
            raise DataError(
                f"{path}: was loaded before with other content or another mapping, by a version of Sluice that did "
                "not note which events a file gave: they cannot be replaced, and nothing of it was stored. Load into "
                "a new warehouse (SLUICE_HOME or SLUICE_WAREHOUSE_URL), or take the old events out by hand: see "
                "'events of an older version' in docs/runbook.md"
            )


def note_takeover(connection: Connection, table: sa.Table, rows: pa.Table, load_id: int) -> None:
    """Note the loads whose items or users are about to be changed: they contain these rows too.

    Args:
        connection: in a transaction.
        table: items or users.
        rows: with its key and ``row_hash``.
        load_id: of the load that changes them.
    """
    key = LOADED[table]
    with staged(connection, table, rows.select([key, "row_hash"])) as stage:
        changed = sa.and_(stage.c[key] == table.c[key], stage.c.row_hash != table.c.row_hash)
        _share(connection, table, table.c.load_id, sa.exists().where(changed) & (table.c.load_id != load_id))


def note_shared(connection: Connection, table: sa.Table, keys: pa.Table, load_id: int) -> None:
    """Note that a load contains rows that belong to another load.

    Args:
        connection: in a transaction.
        table: the table that holds the rows.
        keys: the rows' keys, in the key's column.
        load_id: of the load that contains them too.
    """
    key = LOADED[table]
    with staged(connection, table, keys) as stage:
        given = sa.exists().where(stage.c[key] == table.c[key])
        _share(connection, table, sa.literal(load_id, sa.BigInteger), given & (table.c.load_id != load_id))


def _share(connection: Connection, table: sa.Table, load_id: Any, condition: Any) -> None:
    shared, key = SHARED[table.name], table.c[LOADED[table]]
    known = sa.exists().where(shared.c.key == key, shared.c.load_id == load_id)
    rows = sa.select(key, load_id).where(condition, ~known)
    connection.execute(sa.insert(shared).from_select(["key", "load_id"], rows))


class Kept:
    """Keys that a file contains again, in a temporary table of the transaction.

    Args:
        connection: in a transaction.
        table: whose keys they are.
    """

    def __init__(self, connection: Connection, table: sa.Table) -> None:
        self._connection, self._source = connection, table
        self._key = LOADED[table]
        prefix: dict[str, Any] = {} if connection.dialect.name == "duckdb" else {"postgresql_on_commit": "DROP"}
        columns = sa.Column("key", table.c[self._key].type)
        self.table = sa.Table(f"kept_{table.name}", sa.MetaData(), columns, prefixes=["TEMPORARY"], **prefix)
        self.drop()
        connection.execute(CreateTable(self.table))

    def add(self, keys: pa.Table) -> None:
        """Add the keys of a chunk: a table with the key's column."""
        with staged(self._connection, self._source, keys) as stage:
            self._connection.execute(sa.insert(self.table).from_select(["key"], sa.select(stage.c[self._key])))

    def drop(self) -> None:
        """Remove the temporary table."""
        self._connection.execute(sa.text(f"DROP TABLE IF EXISTS {self.table.name}"))


def count_given(connection: Connection, table: sa.Table, load_id: int) -> int:
    """Return how many rows of a table a load contains, including those shared with other loads."""
    shared, key = SHARED[table.name], table.c[LOADED[table]]
    own = sa.select(sa.func.count()).select_from(table).where(table.c.load_id == load_id)
    also = (
        sa.select(sa.func.count())
        .select_from(table.join(shared, shared.c.key == key))
        .where(shared.c.load_id == load_id, table.c.load_id != load_id)
    )
    return int(connection.execute(own).scalar_one()) + int(connection.execute(also).scalar_one())


def release(connection: Connection, table: sa.Table, load_id: int, kept: Kept | None = None) -> int:
    """Remove the rows of a load except the kept ones; a row that is shared passes on to another of its loads.

    Args:
        connection: in a transaction.
        table: one of ``LOADED``.
        load_id: of the load.
        kept: keys that the load contains again; None keeps nothing.

    Returns:
        How many rows are no longer in the table.
    """
    shared, key = SHARED[table.name], table.c[LOADED[table]]
    postgresql = connection.dialect.name != "duckdb"
    if postgresql:  # there are no statistics of the kept rows yet, and it would join them row by row
        connection.execute(sa.text("SET LOCAL enable_nestloop = off"))

    def gone(column: Any) -> Any:
        return sa.true() if kept is None else ~sa.exists().where(kept.table.c.key == column)

    connection.execute(sa.delete(shared).where(shared.c.load_id == load_id, gone(shared.c.key)))
    mine = sa.and_(table.c.load_id == load_id, gone(key))
    others = sa.and_(shared.c.key == key, shared.c.load_id != load_id)
    heir = sa.select(sa.func.min(shared.c.load_id)).where(others).scalar_subquery()
    connection.execute(sa.update(table).where(mine, sa.exists().where(others)).values(load_id=heir))
    removed = connection.execute(sa.delete(table).where(mine)).rowcount
    if postgresql:
        connection.execute(sa.text("SET LOCAL enable_nestloop = on"))
    return int(removed)


def clear_quarantine(connection: Connection, load_id: int) -> None:
    """Remove the quarantined rows of a load before its file is read again: line numbers may have changed."""
    release(connection, QUARANTINE, load_id)


def takes_back(table: str, reading: str, load: Load) -> bool:
    """Return whether rows that a file no longer contains are removed.

    An item or user that its file no longer lists under the same reading stays: its events still need it.
    """
    return table == INTERACTIONS.name or load.reading != reading
