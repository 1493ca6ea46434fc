"""A warehouse that somebody else fills: views in place of our tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from stages.contracts.errors import ConfigError
from stages.warehouse.database.column_check import column_faults
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest, ingest_tables
from stages.warehouse.mapping import IngestSource
from stages.warehouse.selection.selection import open_selection

EVENTS = [("u0", "i0", 0.5, 10), ("u0", "i1", 0.25, 20), ("u1", "i0", 1.0, 20), ("u0", "i0", 2.0, 30)]
THEIRS = {
    "interactions": """SELECT CAST(event_id AS BIGINT) AS event_id, CAST(user_id AS VARCHAR(40)) AS user_id, item_id,
        signal, CAST(value AS DECIMAL(10, 2)) AS value, event_time_ms, context FROM their_interactions""",
    "items": "SELECT * FROM their_items",
    "users": "SELECT * FROM their_users",
}


def load(warehouse: Warehouse) -> None:
    user, item, value, time = map(list, zip(*EVENTS, strict=True))
    events = {"user_id": user, "item_id": item, "signal": ["click"] * len(user), "value": value, "event_time_ms": time}
    items = {
        "item_id": ["i0", "i1"],
        "title": ["Zero", "One"],
        "categories": ["A", ""],
        "created_at_ms": pa.array([5, None], pa.int64()),
        "duration_s": pa.array([1.5, None], pa.float64()),
    }
    users = {"user_id": ["u0"], "attributes": ["{}"]}
    ingest_tables(warehouse, pa.table(events), pa.table(items), pa.table(users), "theirs")


def put_views(warehouse: Warehouse, kind: str = "VIEW") -> None:
    with warehouse.begin() as connection:
        for name, query in THEIRS.items():
            connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO their_{name}")
            connection.exec_driver_sql(f"CREATE {kind} {name} AS {query}")


def read(warehouse: Warehouse) -> list[tuple[int, ...]]:
    with open_selection(warehouse, ["click"], 0, 100) as selection:
        ids = pa.array(["i0", "i1"])
        contexts = pa.table({"context": pa.array([], pa.string()), "context_index": pa.array([], pa.int32())})
        selection.code(pa.table({"item_id": ids, "canonical_id": ids}), pa.array([], pa.string()), contexts)
        selection.place(ids, pa.array(["u0", "u1"]))
        table = pa.Table.from_batches(list(selection.events([100], {"click": "last"})))
    return list(zip(*table.to_pydict().values(), strict=True))


def check_that_a_run_reads(warehouse: Warehouse, replace: Callable[[Warehouse], None]) -> None:
    load(warehouse)
    fingerprint, rows = warehouse.content_fingerprint(), read(warehouse)
    assert len(rows) == 3
    replace(warehouse)
    warehouse.create_tables()
    warehouse.create_tables()
    assert column_faults(warehouse) == ()
    assert warehouse.content_fingerprint() == fingerprint
    assert read(warehouse) == rows


def test_a_run_reads_views_in_place_of_the_tables(warehouse: Warehouse) -> None:
    check_that_a_run_reads(warehouse, put_views)


def test_a_run_reads_materialised_views(postgres: Warehouse) -> None:
    check_that_a_run_reads(postgres, lambda warehouse: put_views(warehouse, "MATERIALIZED VIEW"))


def test_a_run_reads_foreign_tables(postgres: Warehouse) -> None:
    """The tables as another server would show them."""
    where = f"host '{postgres.url.host}', port '{postgres.url.port}', dbname '{postgres.url.database}'"
    moves = ["CREATE SCHEMA theirs", *(f"ALTER TABLE {name} SET SCHEMA theirs" for name in THEIRS)]
    imports = [
        "CREATE EXTENSION postgres_fdw",
        f"CREATE SERVER there FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({where})",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER there OPTIONS (user 'postgres', password_required 'false')",
        f"IMPORT FOREIGN SCHEMA theirs LIMIT TO ({', '.join(THEIRS)}) FROM SERVER there INTO public",
    ]

    def replace(warehouse: Warehouse) -> None:
        for statements in (moves, imports):  # a server sees what is committed
            with warehouse.begin() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)

    try:
        check_that_a_run_reads(postgres, replace)
    finally:
        with postgres.begin() as connection:
            connection.exec_driver_sql("DROP EXTENSION IF EXISTS postgres_fdw CASCADE")
            connection.exec_driver_sql("DROP SCHEMA IF EXISTS theirs CASCADE")


def test_nothing_is_loaded_into_a_view(warehouse: Warehouse, tmp_path: Path) -> None:
    load(warehouse)
    put_views(warehouse)
    before = warehouse.counts()
    with pytest.raises(ConfigError, match=r"data: interactions of warehouse .* is a view.*allowed is data = warehouse"):
        load(warehouse)
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,event_time_ms\nu7,i7,7\n")
    mapping = {"table": "interactions", "user_id": "user_id", "item_id": "item_id", "event_time": "event_time_ms"}
    entry = {"path": str(path), "mapping": {**mapping, "time_unit": "ms", "signal": "click"}}
    with pytest.raises(ConfigError, match="is a view"):
        ingest(warehouse, IngestSource.model_validate({"name": "more", "files": [entry]}), now_ms=100)
    assert warehouse.counts() == before
