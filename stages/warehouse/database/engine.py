"""The connection to the warehouse: a DuckDB file by default, PostgreSQL by changing one URL."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import psycopg2
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from stages.contracts.disk import is_out_of_space
from stages.contracts.errors import ConfigError, DataError, OutOfSpaceError, SluiceError, TransientError
from stages.contracts.files import canonical_json, sha256_text
from stages.warehouse.database.postgres_copy import copy_batches
from stages.warehouse.database.tables import ADDED_COLUMNS, INDEXES, INTERACTIONS, ITEMS, METADATA, USERS

_ALLOWED = "duckdb:///path/to/file.duckdb or postgresql+psycopg2://user@host:port/database"
_SCHEMA_LOCK = 5_142_776_031
_LOAD_LOCK = 5_142_776_032
_MISSING_TABLE = "42P01"
# Texts in errors of PostgreSQL and DuckDB that a retry does not cure.
_PERMANENT = (
    "does not exist",
    "authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "not a valid DuckDB database",
    "unrecognized configuration",
)
_MAY_PASS = (sa.exc.OperationalError, sa.exc.InterfaceError, duckdb.IOException, psycopg2.OperationalError)


def _forget_duckdb() -> None:
    """Drop DuckDB's Python modules at exit.

    torch keeps frames alive past the interpreter's end. These frames keep DuckDB's types alive, and its
    binding prints them as leaked on stderr. No code of Sluice runs after this function.
    """
    for name in [name for name in sys.modules if name.startswith(("duckdb", "duckdb_engine"))]:
        vars(sys.modules.pop(name)).clear()
    gc.collect()


atexit.register(_forget_duckdb)


class Warehouse:
    """One open warehouse; use it as a context manager, or call ``close``.

    Args:
        url: SQLAlchemy URL. DuckDB takes its settings from the query, such as
            ``duckdb:///var/warehouse.duckdb?memory_limit=2GB``; the file and its folder are created.

    Raises:
        ConfigError: if the URL is malformed or of another database, or if a retry cannot help (no such
            database, wrong password, not a DuckDB file).
        TransientError: if the server does not answer or another process holds the DuckDB file.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse_url(url)
        self.is_duckdb = self.url.get_backend_name() == "duckdb"
        self._engine = _make_engine(self.url)
        try:
            with self._translated("could not be opened", opening=True), self._engine.connect():
                pass
        except SluiceError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Warehouse({self.name})"

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Yield a connection for reading; database faults become ``SluiceError``.

        Reads here take whole tables. Without statistics PostgreSQL joins row by row, which takes hours
        instead of seconds, so nested-loop joins are switched off.
        """
        with self._translated("refused a query"), self._engine.connect() as connection:
            if not self.is_duckdb:
                connection.execute(sa.text("SET LOCAL enable_nestloop = off"))
            yield connection

    def analyze(self) -> None:
        """Let PostgreSQL gather statistics of the tables; DuckDB keeps its own."""
        if not self.is_duckdb:
            with self.begin() as connection:
                for table in (INTERACTIONS, ITEMS, USERS):
                    connection.execute(sa.text(f"ANALYZE {table.name}"))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in one transaction, committed at the end and rolled back on an error."""
        with self._translated("refused a change"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def loading(self) -> Iterator[Connection]:
        """Yield a connection for a load; committed at the end, rolled back on an error.

        The load may also commit in between. On PostgreSQL only one load at a time holds the lock, from its first
        change to its commit: see ``lock_loads``.
        """
        with self._translated("refused a change"), self._engine.connect() as connection:
            lock_loads(connection)
            yield connection
            connection.commit()

    def create_tables(self) -> None:
        """Create the missing tables and columns; views are left as they are."""
        with self.begin() as connection:
            if not self.is_duckdb:
                # Two sessions may create the same table at once in spite of IF NOT EXISTS, hence the lock.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            found = views(connection)
            for table in METADATA.sorted_tables:
                if table.name not in found:
                    connection.execute(CreateTable(table, if_not_exists=True))
            for column in (each for each in ADDED_COLUMNS if each.table.name not in found):
                declared = CreateColumn(column).compile(dialect=connection.dialect)
                # DuckDB cannot add a column with a constraint.
                declaration = str(declared).replace(" NOT NULL", "") if self.is_duckdb else str(declared)
                connection.execute(sa.text(f"ALTER TABLE {column.table.name} ADD COLUMN IF NOT EXISTS {declaration}"))
            if not self.is_duckdb:
                for index in INDEXES:
                    if str(index.table.name) not in found:  # type: ignore[union-attr]
                        connection.execute(CreateIndex(index, if_not_exists=True))

    def create_tables_to_load(self) -> None:
        """Create what is missing, as ``create_tables``, before rows are loaded.

        Raises:
            ConfigError: if the table of interactions, items or users is a view.
        """
        self.create_tables()
        with self.connect() as connection:
            found = views(connection)
        for name in (INTERACTIONS.name, ITEMS.name, USERS.name):
            if name in found:
                raise ConfigError(
                    f"data: {name} of warehouse {self.name} is a view, and a view cannot be loaded into; allowed is "
                    "data = warehouse, which only reads it"
                )

    def counts(self) -> dict[str, int]:
        """Return the number of rows of every table by name."""
        with self.connect() as connection:
            return {
                table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
                for table in METADATA.sorted_tables
            }

    def content_fingerprint(self) -> str:
        """Return a hex sha256 of the content of interactions, items and users.

        It covers each table's row count and the sum of its row hashes, which were stored at ingestion.
        So it depends neither on the order of rows or of loading, nor on the database.
        """
        content = {}
        with self.connect() as connection:
            columns = (INTERACTIONS.c.event_id, ITEMS.c.row_hash, USERS.c.row_hash)
            for column in columns:
                statement = sa.select(sa.func.count(), sa.func.sum(column)).select_from(column.table)
                rows, total = connection.execute(statement).one()
                content[column.table.name] = [int(rows), str(int(total or 0))]
        return sha256_text(canonical_json(content))

    def latest_event_ms(self, until_ms: int | None = None) -> int | None:
        """Return the time of the latest event (not later than ``until_ms``), int ms UTC, or None without one."""
        statement = sa.select(sa.func.max(INTERACTIONS.c.event_time_ms))
        if until_ms is not None:
            statement = statement.where(INTERACTIONS.c.event_time_ms <= until_ms)
        with self.connect() as connection:
            latest = connection.execute(statement).scalar_one()
        return None if latest is None else int(latest)

    def as_of_ms(self, now_ms: int) -> int:
        """Return the as-of time of a run that sets none: just after the latest event before or at ``now_ms``.

        An event later than the clock would move every window to a time without events.
        """
        latest = self.latest_event_ms(until_ms=now_ms)
        return (now_ms if latest is None else latest) + 1

    @contextmanager
    def _translated(self, what: str, opening: bool = False) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, duckdb.Error, psycopg2.Error) as error:
            fault = _first_line(error)
            if not self.is_duckdb and is_out_of_space(error):
                raise OutOfSpaceError(f"warehouse {self.name} {what}: {fault}; make room there", "warehouse") from None
            if opening and any(text in fault for text in _PERMANENT):
                raise ConfigError(f"warehouse {self.name} {what}: {fault}; allowed is {_ALLOWED}") from None
            if isinstance(error, _MAY_PASS):
                raise TransientError(f"warehouse {self.name} {what}: {fault}") from None
            if _is_missing_table(error):
                raise DataError(f"warehouse {self.name} holds no data yet: {fault}") from None
            raise


def lock_loads(connection: Connection) -> None:
    """Keep other loads waiting until this transaction ends; DuckDB has one writing process anyway."""
    if connection.dialect.name != "duckdb":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOAD_LOCK)))


def views(connection: Connection) -> set[str]:
    """Return the names of views, and on PostgreSQL of materialised views and foreign tables."""
    if connection.dialect.name == "duckdb":
        return set(connection.execute(sa.text("SELECT view_name FROM duckdb_views() WHERE NOT internal")).scalars())
    seen: Any = sa.inspect(connection)  # the information schema leaves out materialised views
    return {*seen.get_view_names(), *seen.get_materialized_view_names(), *seen.get_foreign_table_names()}


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(f"warehouse URL {url!r} is not a database URL; allowed is {_ALLOWED}") from None
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg2")
    if parsed.drivername not in {"duckdb", "postgresql+psycopg2"}:
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigError(f"warehouse URL {shown!r}: {parsed.drivername!r} is not supported; allowed is {_ALLOWED}")
    if parsed.drivername == "duckdb" and not parsed.database:
        raise ConfigError(f"warehouse URL {url!r} names no file; allowed is {_ALLOWED}")
    return parsed


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "duckdb":
        return sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 10})
    path = Path(str(url.database))
    if str(path) != ":memory:":
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"warehouse folder {path.parent}: {error.strerror}") from None
    # Nothing is downloaded at run time: by default DuckDB would look for extensions.
    offline = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    return sa.create_engine(url, hide_parameters=True, connect_args={"config": offline})


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", error)).strip().splitlines()[0]


def _is_missing_table(error: Exception) -> bool:
    fault = getattr(error, "orig", error)
    if getattr(fault, "pgcode", None) == _MISSING_TABLE:
        return True
    return isinstance(fault, duckdb.CatalogException) and "does not exist" in str(fault)


def arrow_batches(connection: Connection, statement: sa.Select[Any], schema: Any, rows: int) -> Iterator[Any]:
    """Run a SELECT and yield its result as Arrow record batches of at most ``rows`` rows.

    Memory is bounded on both databases: DuckDB returns a streaming reader; PostgreSQL copies the
    result out as CSV, which Arrow parses as a stream.

    Args:
        connection: of the warehouse; it can run nothing else until the last batch is read.
        statement: SELECT with the columns of ``schema``, in the same order.
        schema: ``pa.Schema`` of the batches.
        rows: largest number of rows of a batch.
    """
    if connection.dialect.name == "duckdb":
        compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
        values = [compiled.params[name] for name in compiled.positiontup or ()]  # type: ignore[attr-defined]
        driver: Any = connection.connection.driver_connection
        for batch in driver.sql(str(compiled), params=values).to_arrow_reader(rows):
            yield pa.record_batch(batch.columns, names=schema.names).cast(schema)
        return
    yield from copy_batches(connection, statement, schema, rows)
