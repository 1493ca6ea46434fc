"""Loading MovieLens and generic files: identities, repetition, kills."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest, ingest_tables
from stages.warehouse.layouts.detect import detect
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns, UserColumns

NOW = 1_000_000_000_000
GENRES_OF_TOY_STORY = "0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0"
EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="time", value_column="score", signal="view")


def rows(warehouse: Warehouse, columns: str, table: str) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        found = connection.exec_driver_sql(f"SELECT {columns} FROM {table}").all()
    return sorted(tuple(row) for row in found)


def csv_source(
    path: Path, text: str | bytes, mapping: Any = EVENTS, name: str = "shop", **options: Any
) -> IngestSource:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return IngestSource(name=name, files=(FileSource(path=path, mapping=mapping),))


@pytest.fixture
def ml_100k(tmp_path: Path) -> Path:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("196\t1\t3\t881250949\n186\t267\t5\t891717742\n")
    unknown = "|".join(["1"] + ["0"] * 18)
    item = f"1|Toy Story (1995)|01-Jan-1995||http://x|{GENRES_OF_TOY_STORY}\n267|unknown||||{unknown}\n"
    cafe = f'3|Caf\xe9 "Noir" (1922)|04-Mar-1922||http://x|{"|".join(["0"] * 19)}\n'
    (folder / "u.item").write_bytes((item + cafe).encode("latin-1"))
    (folder / "u.user").write_text("196|49|M|writer|55105\n")
    return folder


def test_movielens_100k(warehouse: Warehouse, ml_100k: Path) -> None:
    report = ingest(warehouse, detect(ml_100k), now_ms=NOW)
    assert report.tables["interactions"] == dict(rows_read=2, rows_loaded=2, rows_duplicate=0, rows_quarantined=0)
    assert report.reasons == {}
    assert rows(warehouse, "user_id, item_id, signal, value, event_time_ms, source", "interactions") == [
        ("186", "267", "rating", 5.0, 891717742000, "movielens-100k"),
        ("196", "1", "rating", 3.0, 881250949000, "movielens-100k"),
    ]
    assert rows(warehouse, "item_id, title, categories, created_at_ms, duration_s", "items") == [
        ("1", "Toy Story (1995)", "Animation|Children's|Comedy", 788918400000, None),
        ("267", "unknown", "", None, None),
        ("3", 'Caf\xe9 "Noir" (1922)', "", -1509408000000, None),
    ]
    attributes = '{"age":"49","gender":"M","occupation":"writer","zip":"55105"}'
    assert rows(warehouse, "user_id, attributes", "users") == [("196", attributes)]
    assert warehouse.latest_event_ms() == 891717742000


def test_movielens_1m_gzipped_in_part(warehouse: Warehouse, tmp_path: Path) -> None:
    (tmp_path / "ratings.dat.gz").write_bytes(gzip.compress(b"1::1193::5::978300760\r\n1::661::3::978302109\r\n"))
    (tmp_path / "movies.dat").write_bytes("1193::Les Mis\xe9rables: 2 (1998)::Drama|War\n".encode("latin-1"))
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    report = ingest(warehouse, detect(tmp_path), now_ms=NOW)
    assert (report.rows_read, report.rows_loaded) == (4, 4)
    assert rows(warehouse, "title, categories", "items") == [("Les Mis\xe9rables: 2 (1998)", "Drama|War")]
    assert rows(warehouse, "item_id, value", "interactions") == [("1193", 5.0), ("661", 3.0)]


def test_detect_names_what_is_missing(ml_100k: Path, tmp_path: Path) -> None:
    (ml_100k / "u.user").unlink()
    with pytest.raises(DataError, match=r"u\.data was found but not u\.user; movielens-100k needs"):
        detect(ml_100k)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="found no file; allowed is a directory with"):
        detect(tmp_path / "other")
    with pytest.raises(DataError, match="found nothing"):
        detect(tmp_path / "absent")


def test_same_content_from_csv_jsonl_parquet_and_memory(duck: Warehouse, postgres: Warehouse, tmp_path: Path) -> None:
    users, items, times = ["u1", "u,2"], ["7", "8"], [1_500, 2_000]
    text = 'item,user,time,score\n7,u1,1970-01-01T00:00:01.5Z,0.5\n8,"u,2",1970-01-01T01:00:02+01:00,2\n'
    lines = '{"user":"u1","item":7,"time":1500000,"score":0.5}\n{"user":"u,2","item":8,"time":2e6,"score":"2"}\n'
    table = pa.table({"user": users, "item": [7, 8], "time": pa.array(times, pa.timestamp("ms")), "score": [0.5, 2]})
    pq.write_table(table, tmp_path / "e.parquet")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    sources = [csv_source(tmp_path / "e.csv", text, EVENTS.model_copy(update={"time_unit": "iso"}))]
    for name, unit in (("e.jsonl.gz", "us"), ("e.parquet", "s")):
        mapping = EVENTS.model_copy(update={"time_unit": unit})
        sources.append(IngestSource(name="shop", files=(FileSource(path=tmp_path / name, mapping=mapping),)))
    assert ingest(duck, sources[0]).rows_loaded == 2
    assert [ingest(duck, source).rows_duplicate for source in sources[1:]] == [2, 2]
    names = dict(user_id=users, item_id=items, signal=["view"] * 2, value=[0.5, 2.0], event_time_ms=times)
    empty_items = pa.table({n: [] for n in ("item_id", "title", "categories", "created_at_ms", "duration_s")})
    empty_users = pa.table({"user_id": [], "attributes": []})
    for each, expected in ((duck, 0), (postgres, 2)):
        report = ingest_tables(each, iter(pa.table(names).to_batches(1)), empty_items, empty_users, "shop")
        assert (report.rows_read, report.rows_loaded) == (2, expected)
    assert duck.content_fingerprint() == postgres.content_fingerprint()


def test_nothing_is_added_twice(warehouse: Warehouse, tmp_path: Path) -> None:
    head, line = "user,item,time,score\n", "u,i,5,1\n"
    first = csv_source(tmp_path / "a.csv", head + line + "u,j,6,1\n" + line)
    assert ingest(warehouse, first, chunk_rows=1).rows_loaded == 3
    before = warehouse.content_fingerprint()
    again = ingest(warehouse, first)
    assert (again.rows_loaded, again.rows_duplicate, again.files[0].known) == (0, 3, True)
    longer = csv_source(tmp_path / "b.csv", head + line + "new,i,9,1\nu,j,6,1.0\n" + line + line)
    report = ingest(warehouse, longer)
    assert (report.rows_read, report.rows_loaded, report.rows_duplicate) == (5, 2, 3)
    assert warehouse.content_fingerprint() != before
    assert warehouse.counts()["interactions"] == 5
    other = csv_source(tmp_path / "a.csv", head + line, name="other")
    assert ingest(warehouse, other).rows_loaded == 1


def test_ids_do_not_depend_on_chunks(duck: Warehouse, postgres: Warehouse, tmp_path: Path) -> None:
    lines = "".join(f"u{i % 3},i{i % 2},7,1\n" for i in range(60))
    source = csv_source(tmp_path / "a.csv", "user,item,time,score\n" + lines)
    assert ingest(duck, source, chunk_rows=1).rows_loaded == 60
    assert ingest(postgres, source).rows_loaded == 60
    assert duck.content_fingerprint() == postgres.content_fingerprint()


def test_catalogue_rows_are_replaced_when_they_change(warehouse: Warehouse, tmp_path: Path) -> None:
    mapping = ItemColumns(item_id="id", title="name", categories="tags", category_separator=";", duration="len")
    source = csv_source(tmp_path / "i.csv", "id,name,tags,len\na,Old,x; y|z ;x,3\nb,,,\n", mapping)
    assert ingest(warehouse, source).rows_loaded == 2
    assert rows(warehouse, "item_id, title, categories, duration_s", "items") == [
        ("a", "Old", "x|y/z", 3.0),
        ("b", "b", "", None),
    ]
    changed = csv_source(tmp_path / "i.csv", "id,name,tags,len\na,Older,,1\nb,,,\na,New,,1\n", mapping)
    report = ingest(warehouse, changed)
    assert (report.rows_loaded, report.rows_duplicate) == (1, 2)
    assert rows(warehouse, "item_id, title", "items") == [("a", "New"), ("b", "b")]


def test_user_attributes(warehouse: Warehouse, tmp_path: Path) -> None:
    mapping = UserColumns(user_id="id", attributes=("age", "town"), attributes_json="more")
    text = 'id,town,age,more\nx,Bern,,"{""z"": 1}"\ny,,31,\nz,,,[]\n'
    report = ingest(warehouse, csv_source(tmp_path / "u.csv", text, mapping))
    assert report.reasons == {"invalid_attributes": 1}
    assert rows(warehouse, "*", "users")[0][:2] == ("x", '{"town":"Bern","z":1}')
    assert rows(warehouse, "*", "users")[1][:2] == ("y", '{"age":"31"}')


def test_a_killed_load_is_completed(load_and_kill: Callable[..., str], tmp_path: Path) -> None:
    lines = ["bad,row,1" if i % 7 == 0 else f"u{i % 5},i{i % 4},{i // 50},1" for i in range(300)]
    source = csv_source(tmp_path / "e.csv", "user,item,time,score\n" + "\n".join(lines))
    url = load_and_kill(source, "quarantine", 3, 4)
    with Warehouse(url) as warehouse, Warehouse(f"duckdb:///{tmp_path / 'fresh.duckdb'}") as fresh:
        kept = warehouse.counts()
        assert 0 < kept["interactions"] < 257
        assert kept["ingest_log"] == 0
        report = ingest(warehouse, source)
        assert (report.rows_read, report.rows_loaded) == (300, 257 - kept["interactions"])
        assert (report.rows_duplicate, report.rows_quarantined) == (kept["interactions"], 43)
        ingest(fresh, source)
        assert warehouse.counts() == fresh.counts()
        assert warehouse.content_fingerprint() == fresh.content_fingerprint()
        assert rows(warehouse, "*", "quarantine") == rows(fresh, "*", "quarantine")
