"""Check that the tables have the columns that the dataset step reads, also tables that others filled.

Allowed is a table, a view or (on PostgreSQL) a materialised view or foreign table. A column may have another type of
the declared family: ``INTEGER`` for ``BIGINT``, ``VARCHAR(40)`` for ``TEXT``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from stages.warehouse.database.engine import Warehouse, views
from stages.warehouse.database.tables import INTERACTIONS, ITEMS, USERS

REQUIRED: dict[str, tuple[str, ...]] = {
    INTERACTIONS.name: ("event_id", "user_id", "item_id", "signal", "value", "event_time_ms", "context"),
    ITEMS.name: ("item_id", "title", "categories", "created_at_ms", "duration_s", "text", "state", "row_hash"),
    USERS.name: ("user_id", "attributes", "row_hash"),
}
"""The columns that a run reads, by table."""

_TABLES = {table.name: table for table in (INTERACTIONS, ITEMS, USERS)}
# Type names of DuckDB and PostgreSQL. The declared type can hold every value of these types.
_INTEGERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
_TEXTS = frozenset({"TEXT", "VARCHAR", "CHAR", "CHARACTER", "CHARACTER VARYING", "BPCHAR"})
_NUMBERS = _INTEGERS | {"REAL", "FLOAT", "DOUBLE", "DOUBLE PRECISION", "DECIMAL", "NUMERIC"}


@dataclass(frozen=True)
class ColumnFault:
    """A column that is missing or of another type.

    Attributes:
        table: its table.
        column: its name, or ``*`` where the table itself is missing.
        declared: the type that is needed.
        found: the type that is there; None if the column is missing.
    """

    table: str
    column: str
    declared: str
    found: str | None

    def __str__(self) -> str:
        """Return the fault as a sentence."""
        return f"{self.table}.{self.column} is {self.found or 'missing'}, needed: {self.declared}"


def column_faults(warehouse: Warehouse) -> tuple[ColumnFault, ...]:
    """Return every required column that is missing or of a type that does not fit."""
    faults = []
    with warehouse.connect() as connection:
        for name, columns in REQUIRED.items():
            found = _column_types(connection, name)
            if not found:
                faults.append(ColumnFault(name, "*", "a table or view", None))
                continue
            for column in columns:
                declared = _TABLES[name].c[column].type
                kind = found.get(column)
                if kind is None or not _fits(declared, kind):
                    faults.append(ColumnFault(name, column, str(declared), kind))
    return tuple(faults)


def has_table(warehouse: Warehouse, name: str) -> bool:
    """Return whether a table or view of this name exists."""
    with warehouse.connect() as connection:
        return bool(_column_types(connection, name))


def has_column(warehouse: Warehouse, table: str, column: str) -> bool:
    """Return whether a table or view has a column of this name."""
    with warehouse.connect() as connection:
        return column in _column_types(connection, table)


def _column_types(connection: Connection, table: str) -> dict[str, str]:
    """Return the type of each column in capitals, without its length; empty if there is no such table."""
    if connection.dialect.name != "duckdb":
        inspector = sa.inspect(connection)
        if table not in {*inspector.get_table_names(), *views(connection)}:
            return {}
        return {column["name"]: _plain(str(column["type"])) for column in inspector.get_columns(table)}
    columns = sa.table(
        "columns",
        sa.column("table_catalog"),
        sa.column("table_schema"),
        sa.column("table_name"),
        sa.column("column_name"),
        sa.column("data_type"),
        schema="information_schema",
    )
    statement = sa.select(columns.c.column_name, columns.c.data_type).where(
        columns.c.table_catalog == sa.func.current_database(),
        columns.c.table_schema == sa.func.current_schema(),
        columns.c.table_name == table,
    )
    return {name: _plain(kind) for name, kind in connection.execute(statement)}


def _plain(kind: str) -> str:
    return re.sub(r"\(.*\)", "", kind).strip().upper()


def _fits(declared: Any, found: str) -> bool:
    if isinstance(declared, sa.BigInteger):
        return found in _INTEGERS
    if isinstance(declared, sa.Double):
        return found in _NUMBERS
    return found in _TEXTS
