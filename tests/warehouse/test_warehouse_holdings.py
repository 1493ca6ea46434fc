"""What a warehouse holds is known by source, on both databases, also of loads that were killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INGEST_LOG, INTERACTIONS, ITEMS, USERS
from stages.warehouse.ingest.holdings import UNKNOWN, held_sources
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.layouts.detect import table_mappings
from stages.warehouse.mapping import FileSource, IngestSource

EVENTS = "user_id,item_id,event_time_ms,signal,value\n" + "".join(f"u{i},x,{i + 1},click,1\n" for i in range(40))


def source(folder: Path, name: str, table: str, text: str) -> IngestSource:
    path = folder / f"{name}-{table}.csv"
    path.write_text(text)
    return IngestSource(name=name, files=(FileSource(path=path, mapping=table_mappings()[table]),))


def test_sources_are_known_by_their_events_or_their_files(warehouse: Warehouse, tmp_path: Path) -> None:
    assert held_sources(warehouse) == ()
    ingest(warehouse, source(tmp_path, "shop", "items", "item_id,title,categories,created_at_ms,duration_s\nx,X,,,\n"))
    assert held_sources(warehouse) == ("shop",), "a catalogue has no events"
    ingest(warehouse, source(tmp_path, "log", "interactions", EVENTS))
    assert held_sources(warehouse) == ("log", "shop")
    with warehouse.begin() as connection:
        connection.execute(sa.update(INTERACTIONS).values(source=""))
        connection.execute(sa.update(INGEST_LOG).values(source=None))
    assert held_sources(warehouse) == (UNKNOWN,), "the log of an earlier version names no source"


def test_rows_without_events_or_a_log_are_others(warehouse: Warehouse) -> None:
    rows = {
        ITEMS: {"item_id": "i", "title": "", "categories": "", "row_hash": 1},
        USERS: {"user_id": "u", "attributes": "{}", "row_hash": 1},
    }
    for table, row in rows.items():
        with warehouse.begin() as connection:
            connection.execute(sa.insert(table).values(row))
        assert held_sources(warehouse) == (UNKNOWN,)
        with warehouse.begin() as connection:
            connection.execute(sa.delete(table))
    with warehouse.begin() as connection:
        connection.execute(sa.text("ALTER TABLE interactions RENAME TO theirs"))
        connection.execute(sa.text("CREATE TABLE interactions AS SELECT event_id, user_id FROM theirs"))
    assert held_sources(warehouse) == (UNKNOWN,)


def test_a_load_that_was_killed_shows(load_and_kill: Callable[..., str], tmp_path: Path) -> None:
    url = load_and_kill(source(tmp_path, "log", "interactions", EVENTS), "interactions", 3, 10)
    with Warehouse(url) as warehouse:
        assert held_sources(warehouse) == ("log",)
        assert warehouse.counts()["ingest_log"] == 0
