"""Known layouts: what becomes of each file, on small files in the published form."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.layouts.detect import LAYOUTS, detect, find_layout

NOW = 1_700_000_000_000
GLOBO = "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
GLOBO += "click_deviceGroup,click_os,click_country,click_region,click_referrer_type\n"
CONTEXTS = (
    '{"country":"1","device_group":"3","environment":"4","os":"2","referrer_type":"1","region":"21"}',
    '{"country":"1","device_group":"1","environment":"4","referrer_type":"2","region":"13"}',
)
EVENTS = "user_id, item_id, signal, value, event_time_ms"


def select(warehouse: Warehouse, columns: str, table: str = "interactions") -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        return sorted(tuple(row) for row in connection.exec_driver_sql(f"SELECT {columns} FROM {table}"))


def test_movielens_25m(duck: Warehouse, tmp_path: Path) -> None:
    movies = (
        'movieId,title,genres\r\n1,Toy Story (1995),Animation|Children\r\n11,"American President, The (1995)",Drama\r\n'
    )
    movies += '131,"Sch\xf6n ""2"" (2010)",(no genres listed)\r\n'
    (tmp_path / "movies.csv").write_text(movies, encoding="utf-8", newline="")
    ratings = "userId,movieId,rating,timestamp\n1,1,3.5,1147880044\n1,11,0.5,1147868817\n2,131,5.0,1147868828\n"
    (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress(ratings.encode()))
    (tmp_path / "tags.csv").write_text('userId,movieId,tag,timestamp\n3,1,"fun, for all",1439472355\n')
    (tmp_path / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n")
    report = ingest(duck, detect(tmp_path), now_ms=NOW)
    assert (report.rows_loaded, report.reasons) == (7, {})
    assert select(duck, EVENTS) == [
        ("1", "1", "rating", 3.5, 1147880044000),
        ("1", "11", "rating", 0.5, 1147868817000),
        ("2", "131", "rating", 5.0, 1147868828000),
        ("3", "1", "tag", 1.0, 1439472355000),
    ]
    assert select(duck, "item_id, title, categories", "items") == [
        ("1", "Toy Story (1995)", "Animation|Children"),
        ("11", "American President, The (1995)", "Drama"),
        ("131", 'Sch\xf6n "2" (2010)', ""),
    ]


def test_globo_is_the_same_from_parquet_and_from_its_hours(
    duck: Warehouse, postgres: Warehouse, tmp_path: Path
) -> None:
    times = [datetime(2017, 10, 1, 3, 0, 0, 26000), datetime(2017, 10, 1, 3, 0, 1, 702000)]
    names = ("environment", "device_group", "os", "country", "region", "referrer_type")
    table = pa.table(
        {
            "user_id": [59, 79],
            "session_id": [1, 2],
            "session_start": pa.array(times, pa.timestamp("us")),
            "article_id": [234853, 159359],
            "clicked_at": pa.array(times, pa.timestamp("us")),
            **dict(zip(names, ([4, 4], [3, 1], [2, None], [1, 1], [21, 13], [1, 2]), strict=True)),
        }
    )
    clicks = tmp_path / "clicks.parquet"
    pq.write_table(table, clicks)
    hours = tmp_path / "hours"
    hours.mkdir()
    (hours / "clicks_hour_000.csv").write_text(GLOBO + "59,1,1506826800026,2,234853,1506826800026,4,3,2,1,21,1\n")
    (hours / "clicks_hour_001.csv").write_text(GLOBO + "79,2,1506826801702,9,159359,1506826801702,4,1,,1,13,2\n")
    for warehouse, path in ((duck, clicks), (postgres, hours)):
        assert ingest(warehouse, detect(path), now_ms=NOW).rows_loaded == 2
        assert select(warehouse, f"{EVENTS}, context") == [
            ("59", "234853", "click", 1.0, 1506826800026, CONTEXTS[0]),
            ("79", "159359", "click", 1.0, 1506826801702, CONTEXTS[1]),
        ]
    assert duck.content_fingerprint() == postgres.content_fingerprint()
    assert ingest(duck, detect(tmp_path), now_ms=NOW).rows_duplicate == 2
    assert ingest(duck, detect(hours), now_ms=NOW).rows_duplicate == 2
    (hours / "clicks_hour_002.csv").write_text(GLOBO + "8,3,1506830400000,1,5,1506830400000,4,1,2,1,13,2\n")
    later = ingest(duck, detect(hours), now_ms=NOW)
    assert [file.known for file in later.files] == [True, True, False]


def write_mind(folder: Path) -> Path:
    folder.mkdir()
    news = 'N1\tsports\tsports_golf\tA "quoted" title\tAn abstract\thttps://x\t[]\t[]\nN2\tnews\tnews\tB\t\thttps://y\t[]\t[]\n'
    (folder / "news.tsv.gz").write_bytes(gzip.compress(news.encode()))
    rows = [
        "1\tU1\t11/12/2019 2:14:46 PM\tN7 N8\tN1-1 N2-0 N1-0",
        "2\tU2\t11/13/2019 12:00:00 AM\t\tN2-1",
        "3\tU1\t11/13/2019 12:00:01 PM\tN1\tN2-1 N2 -0 N3-0 N4-2 N5-x-0",
        "4\t\t11/13/2019 12:00:01 PM\tN1\tN2-1 N3-0",
        "5\tU1\t13/13/2019 12:00:01 PM\tN1\tN2-1 N3-0",
        "6\tU1\t11/13/2019 12:00:01 PM\tN1\t",
    ]
    (folder / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    return folder


MIND_REASONS = {
    "unknown_outcome": 2,
    "missing_item_id": 2,
    "missing_user_id": 1,
    "invalid_event_time": 1,
}


def test_an_impression_becomes_an_event_a_candidate(warehouse: Warehouse, tmp_path: Path) -> None:
    source = detect(write_mind(tmp_path / "mind"))
    report = ingest(warehouse, source, now_ms=NOW)
    assert report.reasons == MIND_REASONS
    assert report.tables["interactions"] == dict(rows_read=16, rows_loaded=10, rows_duplicate=0, rows_quarantined=6)
    start = 1573568086000
    day = 1573603200000
    assert select(warehouse, EVENTS) == [
        ("U1", "N1", "click", 1.0, start),
        ("U1", "N1", "impression", 1.0, start),
        ("U1", "N1", "impression", 1.0, start),
        ("U1", "N2", "click", 1.0, day + 43_201_000),
        ("U1", "N2", "impression", 1.0, start),
        ("U1", "N2", "impression", 1.0, day + 43_201_000),
        ("U1", "N3", "impression", 1.0, day + 43_201_000),
        ("U1", "N5-x", "impression", 1.0, day + 43_201_000),
        ("U2", "N2", "click", 1.0, day),
        ("U2", "N2", "impression", 1.0, day),
    ]
    half = select(warehouse, "reason, raw", "quarantine WHERE row_number = 3")
    raw = '{"event_time_ms":1573646401000,"item":"%s","user_id":"U1"}'
    bad = [("missing_item_id", "-0"), ("unknown_outcome", "N2"), ("unknown_outcome", "N4-2")]
    assert half == [(reason, raw % entry) for reason, entry in bad]
    assert select(warehouse, "item_id, title, categories, text", "items") == [
        ("N1", 'A "quoted" title', "sports|sports_golf", "An abstract"),
        ("N2", "B", "news", None),
    ]
    # The catalogue has no fault: only what is not known yet is read again.
    assert ingest(warehouse, source, now_ms=NOW).rows_loaded == 0


def test_a_killed_load_of_impressions_is_completed(load_and_kill: Callable[..., str], tmp_path: Path) -> None:
    folder = write_mind(tmp_path / "mind")
    # A line a chunk: killed in the third, which is half good.
    url = load_and_kill(detect(folder), "interactions", 3, 1)
    with Warehouse(url) as warehouse, Warehouse(f"duckdb:///{tmp_path / 'fresh.duckdb'}") as fresh:
        kept = warehouse.counts()
        assert kept["interactions"] == 6
        report = ingest(warehouse, detect(folder), now_ms=NOW)
        assert report.tables["interactions"]["rows_loaded"] == 10 - kept["interactions"]
        assert report.reasons == MIND_REASONS
        ingest(fresh, detect(folder), now_ms=NOW)
        assert warehouse.counts() == fresh.counts()
        assert warehouse.content_fingerprint() == fresh.content_fingerprint()


def test_training_and_held_out_lists(duck: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"0 5 3\n1 5\n\n2\n"))
    (tmp_path / "test.txt").write_text("0 9 \n1  8\t7\r\n")
    report = ingest(duck, detect(tmp_path), now_ms=NOW, chunk_rows=1)
    assert report.reasons == {"no_items": 1}
    assert (report.rows_read, report.rows_loaded) == (7, 6)
    day = 86_400_000
    assert select(duck, EVENTS) == [
        ("0", "3", "train", 1.0, 1),
        ("0", "5", "train", 1.0, 0),
        ("0", "9", "test", 1.0, day),
        ("1", "5", "train", 1.0, 0),
        ("1", "7", "test", 1.0, day + 1),
        ("1", "8", "test", 1.0, day),
    ]
    assert select(duck, "row_number, raw", "quarantine") == [(4, "2")]


def test_one_list_in_time_order(duck: Warehouse, tmp_path: Path) -> None:
    path = tmp_path / "Beauty.txt.gz"
    path.write_bytes(gzip.compress(b"1 4 2 4\n2 4\n"))
    for place in (path, tmp_path):
        assert detect(place).name == "item-lists"
    ingest(duck, detect(path), now_ms=NOW)
    assert select(duck, "user_id, item_id, signal, event_time_ms") == [
        ("1", "2", "interaction", 1),
        ("1", "4", "interaction", 0),
        ("1", "4", "interaction", 2),
        ("2", "4", "interaction", 0),
    ]


def test_what_is_missing_or_not_known(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("1 2 3\n")
    with pytest.raises(DataError, match=r"train\.txt was found but not test\.txt"):
        detect(tmp_path)
    for name, text in (
        ("notes.txt", "some notes\n"),
        ("x.parquet", "PAR1"),
        ("2015-1-1-15.json", "{}\n"),
        ("e.txt", ""),
    ):
        (tmp_path / name).write_text(text)
        assert find_layout(tmp_path / name) is None
    with pytest.raises(DataError, match=r"a file of another kind; .*hours such as 2015-01-01-15\.json\.gz"):
        detect(tmp_path / "notes.txt")
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.csv").touch()
    with pytest.raises(DataError, match=r"ratings\.csv was found but not movies\.csv; movielens-25m needs"):
        detect(tmp_path / "ml")


def test_each_layout_has_a_recipe_that_is_valid() -> None:
    from stages.contracts.config import parse_config, read_yaml
    from stages.recipe import Recipe

    folder = Path(__file__).resolve().parents[2] / "configs"
    for layout in LAYOUTS:
        path = folder / layout.recipe
        assert parse_config(Recipe, read_yaml(path), str(path)).dataset.tasks
