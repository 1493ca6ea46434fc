from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INGEST_LOG
from stages.warehouse.ingest.input_files import Stamp
from stages.warehouse.ingest.log import find_batch, find_untouched, move_stamp, reading_key, write_log
from stages.warehouse.ingest.report import FileReport
from stages.warehouse.mapping import FileSource, InteractionColumns, ItemColumns

PATH = Path("data/events.csv")
STAMP = Stamp(size_bytes=5_000_000_000, modified_ns=1_700_000_000_123_456_789, changed_ns=1_700_000_000_987_654_321)
REPORT = FileReport(
    file=str(PATH),
    table="interactions",
    batch_id="b1",
    rows_read=10,
    rows_loaded=6,
    rows_duplicate=1,
    rows_quarantined=3,
    reasons={"bad_time": 2, "missing_user_id": 1},
)
KNOWN = REPORT.model_copy(update={"rows_loaded": 0, "rows_duplicate": 7, "known": True})
"""What is found of REPORT: every row that was loaded is there already."""


def note(warehouse: Warehouse, report: FileReport = REPORT, stamp: Stamp | None = STAMP) -> None:
    with warehouse.begin() as connection:
        write_log(connection, report, "shop", "r1", stamp)


def by_batch(warehouse: Warehouse, batch_id: str = "b1", path: Path = PATH) -> FileReport | None:
    with warehouse.begin() as connection:
        return find_batch(connection, path, batch_id)


def untouched(warehouse: Warehouse, path: Path = PATH, reading: str = "r1", stamp: Stamp = STAMP) -> FileReport | None:
    with warehouse.begin() as connection:
        return find_untouched(connection, path, reading, stamp)


def rows(warehouse: Warehouse) -> list[Any]:
    with warehouse.begin() as connection:
        return list(connection.execute(sa.select(INGEST_LOG).order_by(INGEST_LOG.c.batch_id)))


def change(warehouse: Warehouse, **values: Any) -> None:
    with warehouse.begin() as connection:
        connection.execute(sa.update(INGEST_LOG).values(values))


def test_an_empty_log_knows_nothing(warehouse: Warehouse) -> None:
    assert (by_batch(warehouse), untouched(warehouse)) == (None, None)


def test_a_load_is_found_by_its_bytes_and_by_its_stamp(warehouse: Warehouse) -> None:
    note(warehouse)
    assert by_batch(warehouse) == untouched(warehouse) == KNOWN
    assert by_batch(warehouse, "b2") is None
    elsewhere = Path("copy.csv")
    assert by_batch(warehouse, path=elsewhere) == KNOWN.model_copy(update={"file": "copy.csv"})
    (row,) = rows(warehouse)
    assert (row.source, row.rows_loaded, row.rows_duplicate) == ("shop", 6, 1), "the log keeps what the load did"


@pytest.mark.parametrize(
    ("path", "reading", "stamp"),
    [
        (Path("data/events2.csv"), "r1", STAMP),
        (PATH, "r2", STAMP),
        *((PATH, "r1", replace(STAMP, **{name: getattr(STAMP, name) + 1})) for name in STAMP.__dataclass_fields__),
    ],
)
def test_a_file_that_differs_in_one_thing_was_touched(
    warehouse: Warehouse, path: Path, reading: str, stamp: Stamp
) -> None:
    note(warehouse)
    assert untouched(warehouse, path, reading, stamp) is None


def test_a_load_without_a_stamp_is_found_by_its_bytes_alone(warehouse: Warehouse) -> None:
    note(warehouse, stamp=None)
    assert by_batch(warehouse) == KNOWN
    assert untouched(warehouse) is None


def test_the_same_bytes_again_replace_their_row(warehouse: Warehouse) -> None:
    note(warehouse)
    again = REPORT.model_copy(update={"file": "copy.csv", "rows_loaded": 0, "rows_quarantined": 0, "reasons": {}})
    note(warehouse, again, None)
    (row,) = rows(warehouse)
    assert (row.file, row.rows_loaded, row.reasons, row.size_bytes) == ("copy.csv", 0, "{}", None)
    assert untouched(warehouse) is None, "the stamp of before is gone, too"
    note(warehouse, REPORT.model_copy(update={"batch_id": "b2"}))
    assert [row.batch_id for row in rows(warehouse)] == ["b1", "b2"]


def test_a_known_file_may_move(warehouse: Warehouse) -> None:
    note(warehouse)
    moved, newer = Path("archive/events.csv"), replace(STAMP, changed_ns=STAMP.changed_ns + 5)
    with warehouse.begin() as connection:
        move_stamp(connection, "b1", moved, None)
        move_stamp(connection, "another", moved, newer)
    assert untouched(warehouse) == KNOWN, "no stamp, or another file's, changes nothing"
    with warehouse.begin() as connection:
        move_stamp(connection, "b1", moved, newer)
    assert untouched(warehouse) is None
    assert untouched(warehouse, moved, stamp=newer) == KNOWN.model_copy(update={"file": str(moved)})
    assert len(rows(warehouse)) == 1


def test_a_file_with_events_of_the_future_is_read_again(warehouse: Warehouse) -> None:
    note(warehouse, REPORT.model_copy(update={"reasons": {"bad_time": 2, "in_future": 1}}))
    assert (by_batch(warehouse), untouched(warehouse)) == (None, None)


def test_a_row_of_an_earlier_version_without_reasons(warehouse: Warehouse) -> None:
    """Which rows were quarantined is not known, unless none was."""
    note(warehouse)
    change(warehouse, reasons=None, source=None)
    assert by_batch(warehouse) is None
    change(warehouse, rows_quarantined=0)
    found = by_batch(warehouse)
    assert found is not None
    assert (found.reasons, found.rows_duplicate) == ({}, 10)


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "null", '{"bad_time": "2"}', '{"bad_time": -1}', '{"bad_time": true}']
)
def test_a_damaged_row_is_named_with_what_to_do(duck: Warehouse, damaged: str) -> None:
    note(duck)
    change(duck, reasons=damaged)
    if not damaged:  # as where nothing is written
        assert by_batch(duck) == KNOWN.model_copy(update={"reasons": {}})
        return
    for find in (by_batch, untouched):
        with pytest.raises(DataError, match=r"data/events\.csv: ingest_log\.reasons = .*set it to null") as caught:
            find(duck)
        assert repr(damaged) in str(caught.value)
    change(duck, reasons=None)
    assert by_batch(duck) is None


def test_a_load_that_is_rolled_back_leaves_no_row(warehouse: Warehouse) -> None:
    def interrupted() -> None:
        with warehouse.begin() as connection:
            write_log(connection, REPORT, "shop", "r1", STAMP)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert rows(warehouse) == []


def test_two_writers_of_the_same_bytes_leave_one_row(postgres: Warehouse) -> None:
    """The second waits for the first, and is the last: no row twice, none lost, no error."""
    done, failed = threading.Event(), []
    second = REPORT.model_copy(update={"file": "second.csv", "rows_loaded": 0})

    def write() -> None:
        try:
            note(postgres, second)
        except DataError as error:
            failed.append(error)
        done.set()

    with postgres.begin() as connection:
        write_log(connection, REPORT, "shop", "r1", STAMP)
        other = threading.Thread(target=write)
        other.start()
        assert not done.wait(0.2), "it waits"
    other.join(60)
    assert (done.is_set(), failed) == (True, [])
    assert [(row.file, row.rows_loaded) for row in rows(postgres)] == [("second.csv", 0)]


EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="time", signal="click")


def file_source(path: str = "data/events.csv", mapping: Any = EVENTS, **options: Any) -> FileSource:
    return FileSource(path=Path(path), mapping=mapping, **options)


def test_a_reading_is_of_the_source_and_the_mapping_and_not_of_the_path() -> None:
    key = reading_key("shop", file_source())
    assert key == reading_key("shop", file_source("elsewhere/other.csv"))
    assert key == reading_key("shop", file_source(delimiter=",", quote='"')), "what is meant, not what is written"
    later = EVENTS.model_copy(update={"allow_times": True})
    assert key == reading_key("shop", file_source(mapping=later)), "judging times reads nothing else"


def test_whatever_reads_other_rows_is_another_reading() -> None:
    items = ItemColumns(item_id="item", title="title")
    keys = {
        reading_key("shop", file_source()),
        reading_key("another", file_source()),
        reading_key("shop", file_source("data/events.jsonl")),
        reading_key("shop", file_source(mapping=items)),
        reading_key("shop", file_source(mapping=EVENTS.model_copy(update={"time_unit": "ms"}))),
        reading_key("shop", file_source(delimiter=";")),
        reading_key("shop", file_source(quote=None)),
        reading_key("shop", file_source(encoding="latin-1")),
        reading_key("shop", file_source(column_names=("user", "item", "time"))),
    }
    assert len(keys) == 9


def test_readings_are_stored_and_stay_the_same() -> None:
    """In warehouses: a change here would read every file a second time."""
    assert reading_key("shop", file_source()) == "85b886a2b921cfdf5dbd5e21479880bb36be9836e5f2ae77b423649d9faf3af7"
