"""A file that is loaded again, with other content or another mapping, replaces what it gave before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.ingest.report import IngestReport
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns, UserColumns

EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="at", value_column="v", time_unit="iso")
ITEMS = ItemColumns(item_id="id", title="name")
HEAD = "user,item,at,v\n"
DAY_1 = "u1,i1,2024-01-01,1\nu2,i2,2024-01-02,999\nu3,i3,2024-01-03,1\n,bad,2024-01-04,1\n"
DAY_2 = "u1,i1,2024-01-01,1\nu2,i2,2024-01-02,1\n"


def load(warehouse: Warehouse, path: Path | Sequence[Path], mapping: Any = EVENTS, **options: Any) -> IngestReport:
    paths = [path] if isinstance(path, Path) else path
    files = tuple(FileSource(path=each, mapping=mapping) for each in paths)
    return ingest(warehouse, IngestSource(name="shop", files=files), **options)


def write(path: Path, rows: str, head: str = HEAD) -> Path:
    path.write_text(head + rows)
    return path


def select(warehouse: Warehouse, query: str) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        return sorted(tuple(row) for row in connection.exec_driver_sql(query).all())


def values(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return select(warehouse, "SELECT user_id, value FROM interactions")


def test_another_mapping_replaces(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "u1,i1,03/04/2024,1\nu2,i2,05/06/2024,1\nu3,i3,07/08/2024,1\n")
    wrong, right = (EVENTS.model_copy(update={"time_unit": unit}) for unit in ("%m/%d/%Y", "%d/%m/%Y"))
    assert load(warehouse, path, wrong).rows_replaced == 0
    report = load(warehouse, path, right, chunk_rows=2)
    assert (report.rows_loaded, report.files[0].rows_replaced, report.files[0].rows_removed) == (3, 3, 3)
    with Warehouse(f"duckdb:///{tmp_path / 'fresh.duckdb'}") as fresh:
        load(fresh, path, right)
        assert warehouse.content_fingerprint() == fresh.content_fingerprint()
    again = load(warehouse, path, right)
    assert (again.rows_loaded, again.rows_replaced, again.files[0].known) == (0, 0, True)


def test_other_content_under_the_same_path_replaces(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_1)
    first = load(warehouse, path)
    assert first.reasons == {"missing_user_id": 1}
    report = load(warehouse, write(path, DAY_2), chunk_rows=1)
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0)]
    counts = (report.rows_loaded, report.rows_duplicate, report.files[0].rows_replaced, report.files[0].rows_removed)
    assert counts == (1, 1, 3, 2)
    assert select(warehouse, "SELECT raw FROM quarantine") == []
    assert select(warehouse, "SELECT rows_read, rows_quarantined FROM ingest_log") == [(2, 0)]
    back = load(warehouse, write(path, DAY_1))
    assert (back.files[0].rows_replaced, warehouse.counts()["interactions"]) == (2, 3)
    assert select(warehouse, "SELECT raw, row_number FROM quarantine") == [(",bad,2024-01-04,1", 5)]


def test_a_row_that_moves_is_put_aside_where_it_is_now(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_1)
    load(warehouse, path)
    load(warehouse, write(path, ",bad,2024-01-04,1\n" + DAY_2))
    assert select(warehouse, "SELECT raw, row_number FROM quarantine") == [(",bad,2024-01-04,1", 2)]


def test_a_row_of_two_files_stays_with_the_other_one(warehouse: Warehouse, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", DAY_1), write(tmp_path / "b.csv", DAY_1 + "u9,i9,2024-02-01,1\n")
    load(warehouse, [first, second])
    report = load(warehouse, [write(first, DAY_2), second])
    assert (report.files[0].rows_replaced, report.files[0].rows_removed) == (3, 0)
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0), ("u2", 999.0), ("u3", 1.0), ("u9", 1.0)]
    assert warehouse.counts()["quarantine"] == 1
    load(warehouse, [first, write(second, DAY_2)])
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0)]
    assert warehouse.counts()["quarantine"] == 0
    load(warehouse, write(first, "u8,i8,2024-02-02,1\n"))
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0), ("u8", 1.0)]


def test_two_files_with_the_same_bytes(warehouse: Warehouse, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.csv", DAY_1), write(tmp_path / "b.csv", DAY_1)
    assert load(warehouse, [first, second]).rows_loaded == 3
    load(warehouse, write(second, DAY_2))
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0), ("u2", 999.0), ("u3", 1.0)]
    load(warehouse, write(first, DAY_2))
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0)]
    load(warehouse, [write(first, DAY_1), second])
    load(warehouse, write(second, DAY_1))
    assert values(warehouse) == [("u1", 1.0), ("u2", 999.0), ("u3", 1.0)]


def test_a_renamed_file_takes_its_rows_along(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", DAY_1)
    load(warehouse, path)
    moved = path.rename(tmp_path / "b.csv")
    assert load(warehouse, moved).rows_loaded == 0
    load(warehouse, write(moved, DAY_2))
    assert values(warehouse) == [("u1", 1.0), ("u2", 1.0)]


def test_one_part_of_a_folder_changes(warehouse: Warehouse, tmp_path: Path) -> None:
    parts = [write(tmp_path / f"part-{n}.csv", f"u{n},i{n},2024-01-0{n},1\n" * 2) for n in (1, 2, 3)]
    load(warehouse, tmp_path / "part-*.csv")
    write(parts[1], "u2,i2,2024-01-02,5\n")
    report = load(warehouse, tmp_path / "part-*.csv")
    assert [(file.known, file.rows_replaced) for file in report.files] == [(True, 0), (False, 2), (True, 0)]
    assert values(warehouse) == [("u1", 1.0), ("u1", 1.0), ("u2", 5.0), ("u3", 1.0), ("u3", 1.0)]


def test_a_file_may_be_read_in_two_ways_at_once(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_2)
    views, buys = (EVENTS.model_copy(update={"signal": name}) for name in ("view", "buy"))

    def load_both(*mappings: Any) -> IngestReport:
        files = tuple(FileSource(path=path, mapping=mapping) for mapping in (*mappings, ItemColumns(item_id="item")))
        return ingest(warehouse, IngestSource(name="shop", files=files))

    assert load_both(views, buys).tables["interactions"]["rows_loaded"] == 4
    assert load_both(views, buys).rows_replaced == 0
    load_both(views, buys.model_copy(update={"signal": "sale"}))
    assert select(warehouse, "SELECT DISTINCT signal FROM interactions") == [("sale",), ("view",)]
    assert load_both(views).files[0].rows_removed == 2
    assert select(warehouse, "SELECT DISTINCT signal FROM interactions") == [("view",)]
    assert warehouse.counts()["items"] == 2


def test_a_longer_log_is_only_added_to(duck: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_2)
    load(duck, path)
    numbers = select(duck, "SELECT load_id FROM interactions")
    report = load(duck, write(path, DAY_2 + "u4,i4,2024-01-05,1\n"))
    assert (report.rows_loaded, report.files[0].rows_removed) == (1, 0)
    assert select(duck, "SELECT load_id FROM interactions")[:2] == numbers


def test_items_of_a_wrong_mapping_go_and_discontinued_ones_stay(warehouse: Warehouse, tmp_path: Path) -> None:
    head, path, other = "id,sku,name\n", tmp_path / "i.csv", tmp_path / "j.csv"
    load(warehouse, write(other, "a,x,A\n", head), ITEMS)
    load(warehouse, write(path, "a,s1,Apple\nb,s2,Bread\n", head), ItemColumns(item_id="sku", title="name"))
    load(warehouse, path, ITEMS)
    assert select(warehouse, "SELECT item_id, title FROM items") == [("a", "Apple"), ("b", "Bread")]
    load(warehouse, write(path, "c,s3,Cake\n", head), ITEMS)
    assert select(warehouse, "SELECT item_id FROM items") == [("a",), ("b",), ("c",)]
    load(warehouse, path, ItemColumns(item_id="sku", title="name"))
    assert select(warehouse, "SELECT item_id FROM items") == [("a",), ("s3",)]
    users = tmp_path / "u.csv"
    load(warehouse, write(users, "1,one,\n", head), UserColumns(user_id="sku"))
    load(warehouse, users, UserColumns(user_id="id"))
    assert select(warehouse, "SELECT user_id FROM users") == [("1",)]


KILLED = """
import os, signal, sys
import stages.warehouse.ingest.ingest as module
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.mapping import IngestSource
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, sys.argv[3], killed)
module.ingest(Warehouse(sys.argv[1]), IngestSource.model_validate_json(sys.argv[2]), chunk_rows=1)
"""


@pytest.mark.parametrize("step", ["release", "write_log"])
@pytest.mark.parametrize("database", ["duckdb", "postgresql"])
def test_a_killed_replacement_leaves_the_old_state(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, step: str
) -> None:
    url = f"duckdb:///{tmp_path / 'killed.duckdb'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres").url.render_as_string(hide_password=False)
    path = write(tmp_path / "e.csv", DAY_1)
    with Warehouse(url) as warehouse:
        load(warehouse, path)
        before = warehouse.content_fingerprint(), warehouse.counts()
    source = IngestSource(name="shop", files=(FileSource(path=write(path, DAY_2), mapping=EVENTS),))
    command = [sys.executable, "-c", KILLED, url, source.model_dump_json(), step]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with Warehouse(url) as warehouse:
        assert (warehouse.content_fingerprint(), warehouse.counts()) == before
        load(warehouse, path)
        assert values(warehouse) == [("u1", 1.0), ("u2", 1.0)]


def test_a_fault_in_the_new_content_leaves_the_old_state(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_1)
    load(warehouse, path)
    with pytest.raises(DataError, match="not a column"):
        load(warehouse, write(path, "u1,1\n", "user,v\n"))
    assert warehouse.counts()["interactions"] == 3


def test_a_warehouse_of_an_earlier_version_is_not_doubled(warehouse: Warehouse, tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", DAY_1)
    load(warehouse, path)
    with warehouse.begin() as connection:
        # As an earlier version left it: rows without a load, and none noted.
        for statement in ("UPDATE interactions SET load_id = 0", "DELETE FROM file_loads"):
            connection.exec_driver_sql(statement)
    assert load(warehouse, path).files[0].known
    for content, mapping in ((DAY_2, EVENTS), (DAY_1, EVENTS.model_copy(update={"signal": "view"}))):
        with pytest.raises(DataError, match=r"e\.csv: was loaded before.*docs/runbook\.md"):
            load(warehouse, write(path, content), mapping)
        assert warehouse.counts()["interactions"] == 3
    assert load(warehouse, write(tmp_path / "new.csv", DAY_2)).rows_loaded == 1
