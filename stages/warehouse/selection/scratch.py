"""Storage for the large intermediate tables of one selection.

DuckDB keeps temporary tables uncompressed: a hundred million coded events take 3.8 GB, which can fill the
memory, but only 1.4 GB in a file. So they go into a database file of their own beside the warehouse, which
is attached during a selection.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateTableAs

from stages.warehouse.database.engine import Warehouse

_ATTACHED = "selection_scratch"


class Scratch:
    """Makes tables that disappear when the connection's transaction is rolled back."""

    def __init__(self, connection: Connection, attached: bool) -> None:
        self._connection, self._attached = connection, attached

    def make(self, name: str, statement: sa.Select[Any], large: bool = False) -> None:
        """Make a table from a SELECT; on DuckDB a ``large`` one goes into the compressed file."""
        if large and self._attached:
            self._connection.execute(CreateTableAs(statement, name, schema=_ATTACHED))
            view = f"CREATE TEMPORARY VIEW {name} AS FROM {_ATTACHED}.{name}"
            self._connection.execute(sa.text(view))
            return
        self._connection.execute(CreateTableAs(statement, name, temporary=True))
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(sa.text(f"ANALYZE {name}"))

    def add(self, name: str, statement: sa.Select[Any], large: bool = False) -> None:
        """Add the rows of a SELECT to a table that ``make`` made with the same ``large``."""
        columns: list[Any] = [sa.column(each.name) for each in statement.selected_columns]
        table = sa.table(name, *columns, schema=_ATTACHED if large and self._attached else None)
        self._connection.execute(sa.insert(table).from_select(columns, statement))


@contextmanager
def open_scratch(warehouse: Warehouse, connection: Connection) -> Iterator[Scratch]:
    """Yield a scratch on a connection; files left by killed processes are removed."""
    path = Path(str(warehouse.url.database))
    if not warehouse.is_duckdb or str(path) == ":memory:":
        yield Scratch(connection, attached=False)
        return
    prefix = f"{path.name}.selection-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        # Only one process can have the DuckDB file open, so files of other processes are left-overs.
        if not left.name.startswith(f"{prefix}{os.getpid()}-"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=path.parent) as directory:
        file = str(Path(directory) / "scratch.duckdb").replace("'", "''").replace(":", "\\:")
        connection.execute(sa.text(f"ATTACH '{file}' AS {_ATTACHED}"))
        try:
            yield Scratch(connection, attached=True)
        finally:
            connection.rollback()  # also detaches the file
