from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from stages.warehouse.database.engine import Warehouse
from stages.warehouse.mapping import IngestSource

SERVER = {"host": "127.0.0.1", "port": 5432, "user": "postgres", "connect_timeout": 5}


def _administer(statement: str) -> None:
    connection = psycopg2.connect(dbname="postgres", **SERVER)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    name = f"sluice_warehouse_{uuid.uuid4().hex[:12]}"
    # A locale that sorts unlike bytes, so that an order by text in SQL would show.
    statement = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
    try:
        _administer(statement)
    except psycopg2.OperationalError as error:
        if os.environ.get("SLUICE_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"PostgreSQL on 127.0.0.1:5432 is not reachable: {error}")
    yield f"postgresql+psycopg2://postgres@127.0.0.1:5432/{name}"
    _administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse(f"duckdb:///{tmp_path / 'warehouse.duckdb'}") as warehouse:
        warehouse.create_tables()
        yield warehouse


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Warehouse]:
    with Warehouse(postgres_url) as warehouse:
        warehouse.create_tables()
        yield warehouse
    connection = psycopg2.connect(postgres_url.replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    finally:
        connection.close()


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse(request: pytest.FixtureRequest) -> Warehouse:
    return request.getfixturevalue("duck" if request.param == "duckdb" else "postgres")


KILLED = """
import os, signal, sys
import stages.warehouse.ingest.ingest as module
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.mapping import IngestSource
url, source, table, nth, chunk_rows = sys.argv[1:]
calls, real = [], module.add_rows
def add_rows(connection, into, key, rows):
    added = real(connection, into, key, rows)
    calls.append(into.name)
    if calls.count(table) == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    return added
module.add_rows = add_rows
module.ingest(Warehouse(url), IngestSource.model_validate_json(source), chunk_rows=int(chunk_rows))
"""


@pytest.fixture(params=["duckdb", "postgresql"])
def load_and_kill(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., str]:
    """Load a source in another process that is killed as it adds to a table; return the warehouse's URL."""
    if request.param == "duckdb":
        url = f"duckdb:///{tmp_path / 'killed.duckdb'}"
    else:
        url = request.getfixturevalue("postgres").url.render_as_string(hide_password=False)

    def run(source: IngestSource, table: str, nth: int, chunk_rows: int) -> str:
        command = [sys.executable, "-c", KILLED, url, source.model_dump_json(), table, str(nth), str(chunk_rows)]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, timeout=120, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        return url

    return run
