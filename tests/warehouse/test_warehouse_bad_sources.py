"""Faults that sources really have: concatenated files, skewed clocks, wrong types, broken text, nothing at all."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns

NOW = 1_000_000_000_000
EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="time", value_column="score")
HEAD = "user,item,time,score\n"


def source(path: Path, data: bytes | str, mapping: Any = EVENTS, name: str = "shop", **options: Any) -> IngestSource:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return IngestSource(name=name, files=(FileSource(path=path, mapping=mapping, **options),))


def quarantine(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        query = "SELECT file, row_number, reason, raw FROM quarantine ORDER BY file, row_number, quarantine_id"
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_a_row_that_is_put_aside_names_its_file_row_and_reason(warehouse: Warehouse, tmp_path: Path) -> None:
    parts = tmp_path / "part-2.csv", tmp_path / "part-10.csv"
    parts[0].write_bytes(HEAD.encode() + b"u,i,1,1\nu,caf\xe9,2,1\nu,caf\xc3\xa9,3,1\n")
    parts[1].write_text(HEAD + "u,i,4,much\n")
    files = (FileSource(path=tmp_path / "part-*.csv", mapping=EVENTS),)
    report = ingest(warehouse, IngestSource(name="shop", files=files), now_ms=NOW)
    assert [(Path(file.file).name, file.rows_loaded, file.reasons) for file in report.files] == [
        ("part-2.csv", 2, {"undecodable": 1}),
        ("part-10.csv", 0, {"invalid_value": 1}),
    ]
    assert quarantine(warehouse) == [
        (str(parts[1]), 2, "invalid_value", "u,i,4,much"),
        (str(parts[0]), 3, "undecodable", "u,caf\\xe9,2,1"),
    ]


def test_headers_that_concatenation_left(duck: Warehouse, tmp_path: Path) -> None:
    data = f'{HEAD}u,i,1,1\r\n{HEAD}u,"two\n{HEAD}lines",2,1\nu,i,3,1\n\n{HEAD}'
    quoted = '"user","item","time","score"'
    for name, text in (("a.csv", data), ("b.csv", f'{quoted}\r\nu,i,1,1\r\n{quoted}\r\n"u",i,7,1\r\nu,i,8,1')):
        report = ingest(duck, source(tmp_path / name, text), now_ms=NOW, chunk_rows=2)
        assert report.rows_read == report.rows_loaded + report.rows_duplicate + report.rows_quarantined
        assert report.rows_loaded + report.rows_duplicate == 3
    found = [(Path(file).name, row, reason) for file, row, reason, _ in quarantine(duck)]
    assert found == [(file, row, "repeated_header") for file, row in (("a.csv", 3), ("a.csv", 9), ("b.csv", 3))]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "us\xe9r,item,time,score\nu,i,1,1\n".encode("latin-1"), r"line 1, where the column names .* undecod"),
        ("a.csv", (HEAD + "u,i,1,1\n").encode("utf-16"), r"line 1, where the column names should be, is undecodable"),
        ("a.csv", b"user,item,time,score,user\n", r"mapping\.user_id = 'user' names more than one column"),
        (
            "a.csv.gz",
            gzip.compress(b"user,it", mtime=0)[:-9],
            r"line 1, where the column names should be, is truncated_gzip",
        ),
    ],
)
def test_a_header_that_cannot_be_trusted(duck: Warehouse, tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest(duck, source(tmp_path / name, data), now_ms=NOW)
    assert sum(duck.counts().values()) == 0


def test_two_columns_of_one_name_in_parquet(duck: Warehouse, tmp_path: Path) -> None:
    columns = [pa.array(["u"]), pa.array(["i"]), pa.array([5]), pa.array([1.0]), pa.array([6])]
    table = pa.Table.from_arrays(columns, names=["user", "item", "time", "score", "time"])
    pq.write_table(table, tmp_path / "a.parquet")
    file = FileSource(path=tmp_path / "a.parquet", mapping=EVENTS)
    with pytest.raises(DataError, match=r"mapping\.event_time = 'time' names more than one column"):
        ingest(duck, IngestSource(name="shop", files=(file,)), now_ms=NOW)


def test_wrong_types_and_numbers_that_are_none(warehouse: Warehouse, tmp_path: Path) -> None:
    mapping = EVENTS.model_copy(update={"non_negative": True})
    good = [(f"u{row}", "i", str(row), 1.0) for row in range(1000)]
    bad = {
        7: (("u", "i", "seven", 1.0), "invalid_event_time"),
        500: (("u", "i", "5", float("nan")), "not_finite_value"),
        501: (("u", "i", "5", float("-inf")), "not_finite_value"),
        502: (("u", "i", "5", -0.5), "negative_value"),
        999: (("u", None, "5", 1.0), "missing_item_id"),
    }
    rows = [bad[row][0] if row in bad else good[row] for row in range(1000)]
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, names=["user", "item", "time", "score"]), tmp_path / "a.parquet")
    files = (FileSource(path=tmp_path / "a.parquet", mapping=mapping),)
    report = ingest(warehouse, IngestSource(name="shop", files=files), now_ms=NOW, chunk_rows=300)
    assert (report.rows_read, report.rows_loaded) == (1000, 995)
    assert [(row, reason) for _, row, reason, _ in quarantine(warehouse)] == [
        (row + 1, reason) for row, (_, reason) in bad.items()
    ]


def test_clocks_that_run_ahead(warehouse: Warehouse, tmp_path: Path) -> None:
    mapping = EVENTS.model_copy(update={"max_skew_s": 60.0})
    file = source(tmp_path / "a.csv", HEAD + "u,i,100,1\nu,i,160,1\nu,i,161,1\n", mapping)
    first = ingest(warehouse, file, now_ms=100_000)
    assert (first.rows_loaded, first.reasons) == (2, {"in_future": 1})
    assert warehouse.latest_event_ms() == 160_000
    second = ingest(warehouse, file, now_ms=101_000)
    assert (second.rows_loaded, second.rows_duplicate, second.reasons) == (1, 2, {})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", HEAD.encode()),
        ("a.csv.gz", gzip.compress(HEAD.encode(), mtime=0)),
        ("a.jsonl", b""),
        ("a.jsonl.gz", gzip.compress(b"\n\n", mtime=0)),
        ("a.parquet", None),
    ],
)
def test_nothing_in_the_file(duck: Warehouse, tmp_path: Path, name: str, data: bytes | None) -> None:
    if data is None:
        empty = pa.table({"user": pa.array([], pa.string()), "item": [], "time": pa.array([], pa.int64()), "score": []})
        pq.write_table(empty, tmp_path / name)
        data = (tmp_path / name).read_bytes()
    report = ingest(duck, source(tmp_path / name, data), now_ms=NOW)
    assert (report.rows_read, report.rows_loaded, report.reasons) == (0, 0, {})
    assert duck.latest_event_ms() is None


def test_patterns_and_mappings_that_match_nothing(duck: Warehouse, tmp_path: Path) -> None:
    files = (FileSource(path=tmp_path / "*.csv", mapping=EVENTS),)
    with pytest.raises(DataError, match=r"\*\.csv: no file matches, one is needed for table interactions"):
        ingest(duck, IngestSource(name="shop", files=files))
    nested = EVENTS.model_copy(update={"item_id": "item.id"})
    with pytest.raises(DataError, match=r"mapping\.item_id = 'item\.id' is not a column; the file has"):
        ingest(duck, source(tmp_path / "a.jsonl", '{"user":1,"item":{"name":2},"time":3,"score":4}\n', nested))
    for wrong, message in (
        ({"context": ("a", "b"), "context_names": ("c",)}, "as many different names as context"),
        ({"outcomes": {"1": ("click",)}}, "item_separator is needed"),
        ({"item_separator": " ", "outcomes": {"1": ()}}, "each outcome needs at least one signal"),
    ):
        with pytest.raises(ValidationError, match=message):
            InteractionColumns(user_id="u", item_id="i", event_time="t", **wrong)


def test_nested_fields_of_json_lines(duck: Warehouse, tmp_path: Path) -> None:
    mapping = EVENTS.model_copy(
        update={
            "user_id": "who.id",
            "item_id": "what.ref.id",
            "context": ("who.os", "at"),
            "context_names": ("os", "at"),
        }
    )
    lines = [
        '{"who":{"id":7,"os":"linux"},"what":{"ref":{"id":"x"}},"time":1,"score":1,"at":"web","body":"\\ud800"}',
        '{"who":{"id":8},"what":{"ref":{"id":"y"}},"what.ref.id":"z","time":2,"score":1}',
        '{"who":"me","what":{"ref":{"id":"x"}},"time":3,"score":1}',
        '{"who":{"id":9},"what":{"ref":["x"]},"time":4,"score":1}',
    ]
    report = ingest(duck, source(tmp_path / "a.jsonl", "\n".join(lines), mapping), now_ms=NOW)
    with duck.connect() as connection:
        found = connection.exec_driver_sql("SELECT user_id, item_id, context FROM interactions").all()
    assert sorted(map(tuple, found)) == [("7", "x", '{"at":"web","os":"linux"}'), ("8", "z", "")]
    assert report.reasons == {"missing_user_id": 1, "missing_item_id": 1}


def test_several_columns_of_categories(duck: Warehouse, tmp_path: Path) -> None:
    mapping = ItemColumns(
        item_id="id", categories=("top", "more"), category_separator=";", ignored_categories=("none",)
    )
    text = "id,top,more\na,x;y,y;z\nb,none,\nc,,z\nd, none ;w,\n"
    assert ingest(duck, source(tmp_path / "i.csv", text, mapping)).rows_loaded == 4
    with duck.connect() as connection:
        found = connection.exec_driver_sql("SELECT item_id, categories FROM items ORDER BY item_id").all()
    assert list(map(tuple, found)) == [("a", "x|y|z"), ("b", ""), ("c", "z"), ("d", "w")]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_totals_add_up_whatever_the_bytes(duck: Warehouse, tmp_path: Path, data: st.DataObject) -> None:
    line = st.sampled_from([b"u,i,1,1", b"u,i,2,x", HEAD.encode().strip(), b'u,"i', b"", b"\xff", b"u,i,1,1\0"])
    noise = st.binary(max_size=12) | line
    body = b"\n".join(data.draw(st.lists(noise, max_size=12)))
    kind = data.draw(st.sampled_from([".csv", ".csv.gz", ".txt"]))
    packed = gzip.compress(HEAD.encode() + body) if kind == ".csv.gz" else HEAD.encode() + body
    if kind == ".csv.gz":
        packed = packed[: data.draw(st.integers(60, 60 + len(packed)))]
    before = duck.counts()
    name = f"s{before['ingest_log']}"
    report = ingest(duck, source(tmp_path / f"{name}{kind}", packed, name=name), now_ms=NOW, chunk_rows=1)
    after = duck.counts()
    assert report.rows_read == report.rows_loaded + report.rows_duplicate + report.rows_quarantined
    assert sum(report.reasons.values()) == report.rows_quarantined == after["quarantine"] - before["quarantine"]
    assert report.rows_loaded == after["interactions"] - before["interactions"]
