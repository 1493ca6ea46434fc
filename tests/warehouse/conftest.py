from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.warehouse.database.engine import Warehouse
from stages.warehouse.mapping import IngestSource
from tests.builders.postgres import empty, postgres_database


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_database("warehouse") as url:
        yield url


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
    empty(postgres_url)


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
