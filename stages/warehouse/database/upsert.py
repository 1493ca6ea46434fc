"""Add rows to the warehouse that are not there yet.

A chunk is staged as a temporary table (DuckDB: registered Arrow; PostgreSQL: COPY), then one
INSERT … SELECT, written once in SQLAlchemy Core, inserts the rows that are new.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateTable

_COPY_ROWS = 50_000


def add_rows(connection: Connection, table: sa.Table, key: str, rows: Any) -> int:
    """Insert rows whose key is not in the table.

    Args:
        connection: in a transaction.
        table: the table to insert into.
        key: name of its unique int64 column.
        rows: ``pa.Table`` with the table's columns; no key twice.

    Returns:
        Number of rows that were added.
    """
    if len(rows) == 0:
        return 0
    with staged(connection, table, rows) as stage:
        known = sa.exists().where(table.c[key] == stage.c[key])
        statement = insert(table).from_select(rows.column_names, sa.select(*stage.c).where(~known))
        if connection.dialect.name == "postgresql":
            # Another load may have added the same row since the SELECT.
            statement = statement.on_conflict_do_nothing()
        return int(connection.execute(statement).rowcount)


def put_rows(connection: Connection, table: sa.Table, key: str, rows: Any) -> int:
    """Insert rows, or replace rows with the same key and another ``row_hash``; of equal keys the last row counts.

    Args:
        connection: in a transaction.
        table: the table to insert into; it has a column ``row_hash``.
        key: name of its primary key, a text column.
        rows: ``pa.Table`` with the table's columns.

    Returns:
        Number of rows that were added or changed.
    """
    last = {value: row for row, value in enumerate(rows[key].to_pylist())}
    if not last:
        return 0
    # Sorted by key, so that two concurrent loads lock rows in the same order.
    distinct = rows.take(pa.array([last[value] for value in sorted(last)]))
    with staged(connection, table, distinct) as stage:
        statement = insert(table).from_select(distinct.column_names, sa.select(*stage.c).where(sa.true()))
        new = statement.excluded
        changes = {name: new[name] for name in distinct.column_names if name != key}
        statement = statement.on_conflict_do_update(
            index_elements=[key], set_=changes, where=table.c.row_hash != new.row_hash
        )
        return int(connection.execute(statement).rowcount)


@contextmanager
def staged(connection: Connection, table: sa.Table, rows: Any) -> Iterator[Any]:
    """Make rows readable for one SQL statement in a ``with`` block.

    Args:
        connection: in a transaction.
        table: gives the column types.
        rows: ``pa.Table`` with some or all columns of ``table``.

    Yields:
        A table clause with the columns of ``rows``, in their order.
    """
    name = f"stage_{table.name}"
    stage = sa.table(name, *(sa.column(column, table.c[column].type) for column in rows.column_names))
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "duckdb":
        driver.register(name, _read_once(rows))
        try:
            yield stage
        finally:
            driver.unregister(name)
        return
    # Created once in a transaction and emptied after use: each new table holds locks until the transaction ends.
    columns = [sa.Column(column.name, column.type) for column in table.c]
    temporary = sa.Table(name, sa.MetaData(), *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")
    connection.execute(CreateTable(temporary, if_not_exists=True))
    copy = f"COPY {name} ({', '.join(rows.column_names)}) FROM STDIN WITH (FORMAT csv)"
    with driver.cursor() as cursor:
        for start in range(0, len(rows), _COPY_ROWS):
            cursor.copy_expert(copy, _csv(rows.slice(start, _COPY_ROWS)))
    yield stage
    connection.execute(sa.text(f"TRUNCATE {name}"))


def _read_once(rows: Any) -> Any:
    """Return a reader that lets go of the rows as they are read.

    DuckDB keeps a registered object until the transaction ends, and a whole file may be one transaction.
    """
    batches = (batch for batch in rows.to_batches())
    return pa.RecordBatchReader.from_batches(rows.schema, batches)


def _csv(rows: Any) -> io.BytesIO:
    # Arrow quotes every string and leaves null unquoted. COPY needs that to tell "" from NULL.
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(rows, buffer, pyarrow.csv.WriteOptions(include_header=False))
    buffer.seek(0)
    return buffer
