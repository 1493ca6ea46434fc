"""Which load gave a row, so that a file that is read again replaces what it gave before.

A load is what one file gave under one reading. Each row names its load; loads that gave the same row too
are listed beside it, so that a row goes only with the last of them. A file with the same bytes under
another path shares the load. A load's number passes on to what replaces it: of a long log to which a few
lines were added, only these are written.
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
    """What a file gave: its batch, its reading, and the number that its rows carry.

    Attributes:
        batch_id: of the bytes and the reading.
        reading: how the file was read.
        load_id: int64.
        shared: whether another file has the same bytes and reading.
    """

    batch_id: str
    reading: str
    load_id: int
    shared: bool


def new_load_id(connection: Connection, batch_id: str) -> int:
    """Return the int64 number of a load that replaces nothing, and that no other file's rows carry."""
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
    """Return what a file gave before and gives no longer, the same reading first.

    Args:
        connection: of the warehouse.
        path: absolute path of the file.
        table: that it fills.
        batch_id: what it holds now.
        reading: how that is read.
        readings: all readings of the file in this ingestion; what another of them gave stays.
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
    """Return the number of the load of a batch, or None if no file is known to have given it."""
    found = connection.execute(sa.select(_F.load_id).where(_F.batch_id == batch_id)).first()
    return None if found is None else int(found.load_id)


def is_held(connection: Connection, path: str, batch_id: str) -> bool:
    """Return whether a file is noted to give a batch."""
    own = sa.select(_F.load_id).where(_F.batch_id == batch_id, _F.file == path)
    return connection.execute(own).first() is not None


def is_logged(connection: Connection, batch_id: str) -> bool:
    """Return whether a batch was loaded to its end."""
    return connection.execute(sa.select(_L.batch_id).where(_L.batch_id == batch_id)).first() is not None


def note_load(connection: Connection, path: str, table: str, reading: str, batch_id: str, load_id: int) -> None:
    """Note which load a file gives. A file with the same bytes that is no longer there was renamed to this one."""
    holders = sa.select(_F.file).where(_F.batch_id == batch_id)
    for holder in connection.execute(holders).scalars().all():
        if holder == path or not Path(holder).exists():
            connection.execute(sa.delete(FILE_LOADS).where(_F.batch_id == batch_id, _F.file == holder))
    values = dict(file=path, table_name=table, reading=reading, batch_id=batch_id, load_id=load_id)
    connection.execute(sa.insert(FILE_LOADS).values(values))


def forget_loads(connection: Connection, path: str, loads: Collection[Load]) -> None:
    """Take a file off what it gave before, and off the log what no other file gives."""
    for load in loads:
        connection.execute(sa.delete(FILE_LOADS).where(_F.file == path, _F.batch_id == load.batch_id))
        if not load.shared:
            connection.execute(sa.delete(INGEST_LOG).where(_L.batch_id == load.batch_id))


def refuse_unknown(connection: Connection, path: str, batch_id: str, reading: str, readings: Collection[str]) -> None:
    """Refuse to replace what a version before this one loaded: it did not note which events a file gave.

    Raises:
        DataError: if the log has events of the same file, read or filled otherwise, without a load.
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
    """Note the loads whose items or users are about to be changed: they gave these rows too.

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
    """Note that a load gave rows that are another load's.

    Args:
        connection: in a transaction.
        table: of the rows, which are in it.
        keys: the column of its key.
        load_id: of the load that gave them.
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
    """Keys that a file gives again, in a temporary table of the transaction.

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
        """Add the keys of a chunk, a table with the column of the key."""
        with staged(self._connection, self._source, keys) as stage:
            self._connection.execute(sa.insert(self.table).from_select(["key"], sa.select(stage.c[self._key])))

    def drop(self) -> None:
        """Remove the temporary table."""
        self._connection.execute(sa.text(f"DROP TABLE IF EXISTS {self.table.name}"))


def count_given(connection: Connection, table: sa.Table, load_id: int) -> int:
    """Return how many rows of a table a load gave, those that others gave too included."""
    shared, key = SHARED[table.name], table.c[LOADED[table]]
    own = sa.select(sa.func.count()).select_from(table).where(table.c.load_id == load_id)
    also = (
        sa.select(sa.func.count())
        .select_from(table.join(shared, shared.c.key == key))
        .where(shared.c.load_id == load_id, table.c.load_id != load_id)
    )
    return int(connection.execute(own).scalar_one()) + int(connection.execute(also).scalar_one())


def release(connection: Connection, table: sa.Table, load_id: int, kept: Kept | None = None) -> int:
    """Take back the rows that a load gave, but for those that are kept; those of other loads become theirs.

    Args:
        connection: in a transaction.
        table: one of ``LOADED``.
        load_id: of the load.
        kept: keys that the load gives again; None keeps nothing.

    Returns:
        How many rows are no longer in the table.
    """
    shared, key = SHARED[table.name], table.c[LOADED[table]]
    postgresql = connection.dialect.name != "duckdb"
    if postgresql:  # it knows nothing yet of how many rows are kept, and would join them row by row
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
    """Take back what a load quarantined, before it is read again: line numbers may have moved."""
    release(connection, QUARANTINE, load_id)


def takes_back(table: str, reading: str, load: Load) -> bool:
    """Return whether rows go that a file gives no longer.

    A catalogue that names an item no longer leaves it as it was: its events need it still.
    """
    return table == INTERACTIONS.name or load.reading != reading
