"""Opening a warehouse, and what it says when that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stages.contracts.errors import ConfigError, DataError, TransientError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import USERS
from stages.warehouse.database.upsert import add_rows
from stages.warehouse.selection.items import export_catalogue
from stages.warehouse.selection.selection import open_selection


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "sqlite://", "nonsense", "", "postgresql+asyncpg://h/d"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed is duckdb:///.* or postgresql\+psycopg2://") as caught:
        Warehouse(url)
    assert "secret" not in str(caught.value)


def test_duckdb_needs_a_file() -> None:
    with pytest.raises(ConfigError, match="names no file"):
        Warehouse("duckdb://")


def test_a_server_that_does_not_answer_is_transient() -> None:
    with pytest.raises(TransientError, match=r"could not be opened.*refused") as caught:
        Warehouse("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_missing_database_is_permanent(postgres_url: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Warehouse(postgres_url + "_nonesuch")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.duckdb").write_text("no database" * 1000)
    with pytest.raises(ConfigError, match="not a valid DuckDB database"):
        Warehouse(f"duckdb:///{tmp_path / 'x.duckdb'}")
    with pytest.raises(ConfigError, match=r"warehouse folder .*x\.duckdb"):
        Warehouse(f"duckdb:///{tmp_path / 'x.duckdb' / 'y.duckdb'}")


def test_a_locked_file_is_transient(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the" / "way.duckdb"
    with Warehouse(f"duckdb:///{path}") as warehouse, warehouse.connect():
        code = (
            "import sys; from stages.warehouse.database.engine import Warehouse; "
            "from stages.contracts.errors import TransientError\n"
            "try: Warehouse(sys.argv[1])\nexcept TransientError as error: print(error)"
        )
        command = [sys.executable, "-c", code, f"duckdb:///{path}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Could not set lock" in done.stdout


def test_an_empty_warehouse_says_so(tmp_path: Path, warehouse: Warehouse) -> None:
    assert set(warehouse.counts().values()) == {0}
    assert warehouse.latest_event_ms() is None
    fingerprint = warehouse.content_fingerprint()
    warehouse.create_tables()
    assert warehouse.content_fingerprint() == fingerprint
    with Warehouse(f"duckdb:///{tmp_path / 'bare.duckdb'}?memory_limit=300MB") as bare:
        for question in (bare.counts, bare.latest_event_ms, lambda: export_catalogue(bare)):
            with pytest.raises(DataError, match="holds no data yet"):
                question()
        with pytest.raises(DataError, match="holds no data yet"), open_selection(bare, ["click"], 0, 1) as selection:
            selection.contexts()


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory_limits"):
        Warehouse(f"duckdb:///{tmp_path / 'x.duckdb'}?memory_limits=1GB")


def test_a_warehouse_of_an_earlier_version_gets_the_new_columns(warehouse: Warehouse) -> None:
    added = [("interactions", "context"), ("items", "text"), ("items", "state")]
    added += [("interactions", "load_id"), ("items", "load_id")]
    with warehouse.begin() as connection:
        # As an earlier version left it, with rows in it.
        for table, column in added:
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.exec_driver_sql("INSERT INTO interactions VALUES (1, 'u', 'i', 'click', 1.0, 5, 's')")
        connection.exec_driver_sql("INSERT INTO items VALUES ('i', 'A title', 'news', 5, 2.0, 7)")
    warehouse.create_tables()
    warehouse.create_tables()
    with warehouse.connect() as connection:
        assert connection.exec_driver_sql("SELECT event_id, context, load_id FROM interactions").one() == (1, "", 0)
    (item,) = export_catalogue(warehouse).to_pylist()
    assert (item["item_id"], item["title"], item["state"]) == ("i", "A title", None)


def test_a_transaction_lets_go_of_the_rows_that_it_has_added(tmp_path: Path) -> None:
    """A large file is one transaction, and its rows must not stay in memory until the end."""
    size = 20_000
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as warehouse:
        warehouse.create_tables()
        with warehouse.begin() as connection:
            before = pa.total_allocated_bytes()
            for chunk in range(4):
                ids = pc.cast(pc.add(pa.array(range(size)), chunk * size), pa.string())
                rows = pa.table({"user_id": ids, "attributes": ids, "row_hash": pa.array(range(size))})
                rows = rows.append_column("load_id", pa.repeat(1, size))
                assert add_rows(connection, USERS, "user_id", rows) == size
                assert add_rows(connection, USERS, "user_id", rows) == 0
                held = rows.nbytes
                del ids, rows
            assert pa.total_allocated_bytes() - before < held
