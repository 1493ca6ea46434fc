"""Times that cannot be stop an ingestion before anything is stored, with the unit that would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.errors import DataError
from stages.contracts.tables import DAY_MS
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.ingest.report import IngestReport
from stages.warehouse.ingest.times import moment
from stages.warehouse.layouts.detect import detect
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns

EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="at")
NOW = 1_767_225_600_000  # 2026-01-01
START_S = 1_700_000_000  # 2023-11-14T22:13:20Z
SECONDS = [START_S + day * 86_400 for day in range(40)]
FACTORS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def write(path: Path, times: list[Any], users: int = 3) -> Path:
    rows = "".join(f"u{row % users},i{row % 7},{time}\n" for row, time in enumerate(times))
    path.write_text("user,item,at\n" + rows)
    return path


def load(warehouse: Warehouse, *paths: Path, **options: Any) -> IngestReport:
    files = tuple(FileSource(path=path, mapping=EVENTS.model_copy(update=options)) for path in paths)
    return ingest(warehouse, IngestSource(name="shop", files=files), now_ms=NOW, check_times=True, chunk_rows=10)


def is_empty(warehouse: Warehouse) -> bool:
    return not any(warehouse.counts().values())


@pytest.mark.parametrize("unit", FACTORS)
@pytest.mark.parametrize("read", FACTORS)
def test_every_pair_of_units(duck: Warehouse, tmp_path: Path, unit: str, read: str) -> None:
    path = write(tmp_path / "e.csv", [second * FACTORS[unit] for second in SECONDS])
    if unit == read:
        assert load(duck, path, time_unit=read).rows_loaded == 40
        return
    with pytest.raises(DataError) as caught:
        load(duck, path, time_unit=read)
    message = str(caught.value)
    assert f"{path}: the times of 40 rows, read as time_unit = {read!r}, are " in message
    assert f"As {unit} they would span 2023-11-14T22:13:20Z to 2023-12-23T22:13:20Z: set time_unit: {unit}." in message
    assert "--allow-times" in message
    assert is_empty(duck)
    options = {"time_unit": unit}
    assert load(duck, path, **options).rows_loaded == 40


def test_nothing_is_stored_on_either_database(warehouse: Warehouse, tmp_path: Path) -> None:
    path, items = write(tmp_path / "e.csv", [*SECONDS, "soon"]), tmp_path / "i.csv"
    items.write_text("item\ni1\n")
    catalogue = FileSource(path=items, mapping=ItemColumns(item_id="item"))
    for allow in (False, True):
        mapping = EVENTS.model_copy(update={"time_unit": "ms", "allow_times": allow})
        source = IngestSource(name="shop", files=(catalogue, FileSource(path=path, mapping=mapping)))
        if not allow:
            with pytest.raises(DataError, match="1970-01-20T16:13:20Z to 1970-01-20T17:09:29Z, which ends before 1990"):
                ingest(warehouse, source, now_ms=NOW, check_times=True, chunk_rows=10)
            assert is_empty(warehouse)
            continue
        report = ingest(warehouse, source, now_ms=NOW, check_times=True, chunk_rows=10)
        assert (report.rows_loaded, report.reasons) == (41, {"invalid_event_time": 1})
        source = IngestSource(name="shop", files=(catalogue, FileSource(path=path, mapping=EVENTS)))
        assert ingest(warehouse, source, now_ms=NOW, check_times=True).files[1].rows_removed == 40


def test_other_numbers(duck: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which begins in the future"):
        load(duck, write(tmp_path / "a.csv", [NOW // 1000 + day * 86_400 for day in range(5, 9)]))
    with pytest.raises(DataError, match=r"which ends before 1990; nothing of it was stored\. No unit puts them"):
        load(duck, write(tmp_path / "b.csv", [1, 2, 3]))
    with pytest.raises(DataError, match="As days they would span 2023-11-14T00:00:00Z to 2023-11-17"):
        load(duck, write(tmp_path / "c.csv", [19675, 19676, 19678]))
    with pytest.raises(DataError, match=r"with 0 of 41 times between 1990 and now.*As ms"):
        load(duck, write(tmp_path / "d.csv", [0, *(1000 * second for second in SECONDS)]))
    with pytest.raises(DataError, match=r"read as time_unit = 'iso', are numbers; .*set time_unit: s"):
        load(duck, write(tmp_path / "e.csv", SECONDS), time_unit="iso")
    assert is_empty(duck)
    assert load(duck, write(tmp_path / "f.csv", [0, *SECONDS, NOW])).rows_loaded == 41


def test_timestamps_made_of_the_wrong_unit(duck: Warehouse, tmp_path: Path) -> None:
    table = {"user": ["u"] * 40, "item": ["i"] * 40, "at": pa.array(SECONDS, pa.timestamp("ns"))}
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="As s they would span 2023-11-14T22:13:20Z"):
        load(duck, tmp_path / "e.parquet")


def test_one_part_of_a_folder_in_another_unit(duck: Warehouse, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.csv", SECONDS), write(tmp_path / "b.csv", [1000 * second for second in SECONDS])
    with pytest.raises(DataError, match=r"b\.csv: .*As ms they would span"):
        load(duck, good, bad)
    assert duck.counts()["interactions"] == 40


def test_many_users_within_an_hour(warehouse: Warehouse, tmp_path: Path) -> None:
    hour = [START_S + 9 * row for row in range(400)]
    paths = [write(tmp_path / f"{n}.csv", hour[200 * n : 200 * n + 200], users=20) for n in (0, 1)]
    with pytest.raises(DataError, match=r"shop: 400 events of 20 users, 2023-11-14T22:13:20Z to .*within an hour"):
        load(warehouse, *paths)
    assert is_empty(warehouse)
    assert load(warehouse, write(tmp_path / "few.csv", [time + 1 for time in hour], users=19)).rows_loaded == 400
    # An hour that follows another one of the same source.
    hours = [*paths, write(tmp_path / "2.csv", [START_S + 86_400], users=1)]
    assert load(warehouse, *hours).rows_loaded == 401
    assert load(warehouse, write(tmp_path / "3.csv", [time + 90_000 for time in hour], users=30)).rows_loaded == 400


def test_a_part_of_tomorrow_waits(duck: Warehouse, tmp_path: Path) -> None:
    today, ahead = write(tmp_path / "a.csv", SECONDS), write(tmp_path / "b.csv", [NOW // 1000 + 3600])
    assert load(duck, today, ahead).reasons == {"in_future": 1}
    with pytest.raises(DataError, match="which begins in the future"), Warehouse("duckdb:///:memory:") as other:
        load(other, ahead)


def test_lists_without_times_are_not_judged(duck: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"{user} 1 2 3 4 5 6\n" for user in range(40)))
    (tmp_path / "test.txt").write_text("0 7\n")
    assert ingest(duck, detect(tmp_path), now_ms=NOW, check_times=True).rows_loaded == 241


@pytest.mark.parametrize(
    ("time_ms", "shown"),
    [(0, "1970-01-01T00:00:00Z"), (-DAY_MS, "1969-12-31T00:00:00Z"), (1.7e18, "the year 53,872,")],
)
def test_moments(time_ms: float, shown: str) -> None:
    assert moment(time_ms).startswith(shown)
