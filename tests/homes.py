"""A finished run's home with items that were born after its training."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import duckdb

BORN = ("born-0", "born-1", "born-2")


def copy_of(home: Path, target: Path) -> dict[str, str]:
    """Copy a finished run's home, so that its releases and warehouse can be changed."""
    shutil.copytree(home, target, ignore=shutil.ignore_patterns("airflow"))
    with sqlite3.connect(target / "mlflow.db") as books:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            books.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(home), str(target)))
        for column in ("source", "storage_location"):
            books.execute(f"UPDATE model_versions SET {column} = replace({column}, ?, ?)", (str(home), str(target)))
    return {"SLUICE_HOME": str(target)}


def add_items(warehouse: Path) -> None:
    """Give the catalogue three items like the three most touched ones, under other titles."""
    with duckdb.connect(str(warehouse)) as connection:
        rows = connection.execute(
            "SELECT item_id, title, categories, duration_s FROM items JOIN "
            "(SELECT item_id, count(*) n FROM interactions GROUP BY item_id) USING (item_id) ORDER BY n DESC, item_id "
            "LIMIT 3"
        ).fetchall()
        (born_ms,) = connection.execute("SELECT max(event_time_ms) FROM interactions").fetchone() or (0,)
        for number, (name, (_, _, categories, duration)) in enumerate(zip(BORN, rows, strict=True)):
            connection.execute(
                "INSERT INTO items (item_id, title, categories, created_at_ms, duration_s, row_hash) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [name, f"Quite another title {number}", categories, born_ms - 1000, duration, number],
            )
