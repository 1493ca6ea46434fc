"""Bad files and bad rows: one clear error, or the quarantine; the totals always add up."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.contracts.errors import ConfigError, DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns

NOW = 1_000_000_000_000
EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="time", value_column="score")
HEAD = "user,item,time,score\n"


def source(path: Path, data: bytes | str, mapping: Any = EVENTS, **options: Any) -> IngestSource:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return IngestSource(name="shop", files=(FileSource(path=path, mapping=mapping, **options),))


def quarantine(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    with warehouse.connect() as connection:
        query = "SELECT row_number, reason, raw FROM quarantine ORDER BY row_number, quarantine_id"
        return [tuple(row) for row in connection.exec_driver_sql(query)]


BAD_LINES: list[tuple[bytes, str]] = [
    (b"u,i,5", "field_count"),
    (b"u,i,5,1,9", "field_count"),
    (b",i,5,1", "missing_user_id"),
    (b"u,  ,5,1", "missing_item_id"),
    (b"u,i,,1", "missing_event_time"),
    (b"u,i,soon,1", "invalid_event_time"),
    (b"u,i,99999999999999999999,1", "invalid_event_time"),
    (b"u,i,-1,1", "before_1970"),
    (b"u,i,1000000001,1", "in_future"),
    (b"u,i,5,", "missing_value"),
    (b"u,i,5,ten", "invalid_value"),
    (b"u,i,5,0x10", "invalid_value"),
    (b"u,i,5,NaN", "not_finite_value"),
    (b"u,i,5,-inf", "not_finite_value"),
    (b"u,i,5,1e999", "not_finite_value"),
    (b"u,caf\xe9,5,1", "undecodable"),
    (b"u,i\x00,5,1", "nul_character_in_item_id"),
    (b'u,"i"x,5,1', "malformed_quotes"),
    (b"u," + b"i" * 1025 + b",5,1", "item_id_too_long"),
]


def test_bad_rows_are_put_aside_once_with_their_reason(warehouse: Warehouse, tmp_path: Path) -> None:
    lines = [b"good%d,i, 7 , 1.5 " % row for row in range(len(BAD_LINES))]
    mixed = b"".join(good + b"\n" + bad + b"\r\n\n" for good, (bad, _) in zip(lines, BAD_LINES, strict=True))
    report = ingest(warehouse, source(tmp_path / "a.csv", HEAD.encode() + mixed), now_ms=NOW, chunk_rows=2)
    n = len(BAD_LINES)
    assert (report.rows_read, report.rows_loaded, report.rows_duplicate, report.rows_quarantined) == (2 * n, n, 0, n)
    expected = []
    for row, (bad, reason) in enumerate(BAD_LINES):
        raw = bad.decode(errors="backslashreplace").replace("\0", "\\x00")
        expected.append((3 + 3 * row, reason, raw))
    assert quarantine(warehouse) == expected
    reasons = [reason for _, reason in BAD_LINES]
    assert report.reasons == {reason: reasons.count(reason) for reason in reasons}
    assert report.tables["interactions"]["rows_quarantined"] == n

    again = ingest(warehouse, source(tmp_path / "a.csv", HEAD.encode() + mixed), now_ms=NOW)
    assert (again.rows_loaded, again.rows_duplicate, again.rows_quarantined) == (0, n, n)
    longer = ingest(warehouse, source(tmp_path / "b.csv", HEAD.encode() + mixed + b"u,i,x,1\n"), now_ms=NOW)
    assert longer.rows_quarantined == n + 1
    assert len(quarantine(warehouse)) == n + 1


def test_a_future_event_loads_when_its_time_has_come(warehouse: Warehouse, tmp_path: Path) -> None:
    file = source(tmp_path / "a.csv", HEAD + "u,i,100,1\n")
    assert ingest(warehouse, file, now_ms=99_999).reasons == {"in_future": 1}
    assert ingest(warehouse, file, now_ms=100_000).rows_loaded == 1


def test_bad_items_are_put_aside(warehouse: Warehouse, tmp_path: Path) -> None:
    mapping = ItemColumns(
        item_id="id", title="t", created_at="born", time_unit="iso", duration="len", category_flags=("new",)
    )
    good = "a,A,1922-03-04,,1\nb,B,,2.5,\nc,C,2090-01-01T00:00:00+01:00,0,0\n"
    bad = "d,D,yesterday,1,0\ne,E,,-1,0\nf,F,,long,0\n,G,,,0\nh,H,,inf,0\ni,I,,1,7\n"
    report = ingest(warehouse, source(tmp_path / "i.csv", "id,t,born,len,new\n" + good + bad, mapping), now_ms=0)
    assert report.rows_loaded == 3
    assert [reason for _, reason, _ in quarantine(warehouse)] == [
        "invalid_created_at",
        "negative_duration",
        "invalid_duration",
        "missing_item_id",
        "not_finite_duration",
        "invalid_flag_new",
    ]


def test_bad_json_lines(warehouse: Warehouse, tmp_path: Path) -> None:
    good = '{"user":"u","item":3,"time":5,"score":1}\n\n'
    bad = ['{"user":"u"', "[1]", '{"user":"\\ud800","item":1,"time":5,"score":1}', '{"user":"u","time":5,"score":1}']
    bad += ['{"user":"u","item":"a\\u0000","time":5,"score":1}', '{"user":"u","item":1,"time":5,"score":NaN}']
    report = ingest(warehouse, source(tmp_path / "a.jsonl", good + "\n".join(bad)), now_ms=NOW)
    assert report.rows_loaded == 1
    reasons = ["malformed_json"] * 3 + ["missing_item_id", "nul_character_in_item_id", "not_finite_value"]
    assert quarantine(warehouse) == [(3 + row, reasons[row], bad[row]) for row in range(6)]


def test_bad_parquet_rows(warehouse: Warehouse, tmp_path: Path) -> None:
    table = pa.table(
        {
            "user": pa.array([b"u", b"\xff", None, b"u"], pa.binary()),
            "item": pa.array([1.0, 2.0, 3.0, float("nan")], pa.float64()),
            "time": pa.array([5, 5, 5, 5], pa.int32()),
            "score": pa.array([1, 1, 1, 1], pa.int8()),
            "ignored": ["x"] * 4,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    file = FileSource(path=tmp_path / "a.parquet", mapping=EVENTS)
    report = ingest(warehouse, IngestSource(name="shop", files=(file,)), now_ms=NOW)
    assert (report.rows_read, report.rows_loaded) == (4, 1)
    found = [(row, reason) for row, reason, _ in quarantine(warehouse)]
    assert found == [(2, "undecodable"), (3, "missing_user_id"), (4, "missing_item_id")]


@pytest.mark.parametrize("cut", [4, 200, 1500])
def test_a_truncated_gzip_keeps_what_was_read(warehouse: Warehouse, tmp_path: Path, cut: int) -> None:
    text = HEAD + "".join(f"u{row},i{row * 7919 % 1000},{row},1\n" for row in range(400))
    whole = gzip.compress(text.encode())
    report = ingest(warehouse, source(tmp_path / "a.csv.gz", whole[:-cut]), now_ms=NOW, chunk_rows=50)
    (number, reason, raw), *others = quarantine(warehouse)
    assert (reason, others) == ("truncated_gzip", [])
    assert text.split("\n")[number - 1].startswith(raw)
    assert report.rows_read == report.rows_loaded + 1 == number - 1
    assert (report.rows_loaded == 400) == (cut == 4)
    full = ingest(warehouse, source(tmp_path / "a.csv.gz", whole), now_ms=NOW)
    assert (full.rows_read, full.rows_loaded) == (400, 400 - report.rows_loaded)


def test_a_corrupt_gzip_keeps_what_was_read(duck: Warehouse, tmp_path: Path) -> None:
    members = gzip.compress((HEAD + "u,i,1,1\n").encode()) + gzip.compress(b"u,i,2,1\n") + b"\0\0"
    report = ingest(duck, source(tmp_path / "a.csv.gz", members), now_ms=NOW)
    assert (report.rows_loaded, report.reasons) == (2, {})
    report = ingest(duck, source(tmp_path / "a.csv.gz", members + b"noise"), now_ms=NOW)
    assert (report.rows_duplicate, report.reasons) == (2, {"corrupt_gzip": 1})


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("a.csv.gz", b"user,item", {}, r"a\.csv\.gz: named \.gz, but it is not gzip"),
        ("a.csv", b"user,item,when\n", {}, r"mapping\.event_time = 'time' is not a column; mapping\.value_column"),
        ("a.csv", b"user,item,time,score,time\n", {}, r"mapping\.event_time = 'time' names more than one column"),
        ("a.csv", b"", {}, r"a\.csv: empty, a first line with column names is needed"),
        ("a.csv", b'user,"item\n', {}, r"a\.csv: the first line is not a list of column names"),
        ("a.csv", b"u,i\n", {"column_names": ("user", "item")}, r"the file has columns user, item"),
        ("a.jsonl", b'{"user":1,"item":2,"time":3}\n', {}, r"mapping\.value_column = 'score' is not a column"),
        ("a.parquet", b"PAR1 not really", {}, r"a\.parquet is not a readable Parquet file"),
    ],
)
def test_unreadable_files(
    duck: Warehouse, tmp_path: Path, name: str, data: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ingest(duck, source(tmp_path / name, data, **options), now_ms=NOW)
    assert sum(duck.counts().values()) == 0


def test_missing_files_and_unknown_formats(duck: Warehouse, tmp_path: Path) -> None:
    for path, found in ((tmp_path / "none.csv", "nothing"), (tmp_path, "a directory")):
        file = FileSource(path=path, mapping=EVENTS, format="csv")
        with pytest.raises(DataError, match=f"found {found}, a file is needed for table interactions"):
            ingest(duck, IngestSource(name="x", files=(file,)))
    with pytest.raises(ConfigError, match="format is not known from the name"):
        ingest(duck, source(tmp_path / "a.xlsx", b""))


def test_wrong_mappings_are_refused() -> None:
    with pytest.raises(ValidationError, match="time_unit = 'hours': allowed are s, ms, us, iso"):
        InteractionColumns(user_id="u", item_id="i", event_time="t", time_unit="hours")
    with pytest.raises(ValidationError, match="needs quote = null"):
        FileSource(path=Path("a.csv"), mapping=EVENTS, delimiter="::")
