"""The text readers against Python's csv module, and the parsers against plain Python."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.warehouse.ingest.normalise import normalise
from stages.warehouse.ingest.parse import Faults, parse_number, parse_time
from stages.warehouse.ingest.row_ids import Occurrences, combine, hash_numbers, hash_strings
from stages.warehouse.mapping import FileSource, ItemColumns, UserColumns
from stages.warehouse.readers.chunk import Chunk
from stages.warehouse.readers.csv_file import read_csv
from stages.warehouse.readers.json_lines import split_objects
from stages.warehouse.readers.parquet_file import chunk_batches

NAMES = ("a", "b", "c")
CELL = st.text(
    st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]) | st.sampled_from('",\n'), max_size=6
)


def read(data: bytes, chunk_rows: int = 1000) -> list[Chunk]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(data)
        mapping = UserColumns(user_id="a", attributes=("b", "c"))
        file = FileSource(path=path, mapping=mapping, column_names=NAMES)
        return list(read_csv(file, chunk_rows, lambda n: None))


def cells(chunks: list[Chunk]) -> list[list[str]]:
    columns = [[value for chunk in chunks for value in chunk.columns[name].to_pylist()] for name in NAMES]
    return [list(row) for row in zip(*columns, strict=True)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(), max_size=3), min_size=1),
    st.sampled_from(["", " ", "\0", "\0\0 \0"]),
    st.booleans(),
)
def test_objects_in_a_row_are_told_apart(objects: list[dict[str, object]], between: str, ascii_only: bool) -> None:
    texts = [json.dumps(each, ensure_ascii=ascii_only) for each in objects]
    assert split_objects(between.join(texts)) == list(zip(texts, objects, strict=True))
    for end in ("x", "[1]", "{", "{}}"):
        line = between.join([*texts, end])
        # Whole or not at all, between NUL characters.
        kept = list(zip(texts, objects, strict=True)) if "\0" in between else []
        assert split_objects(line) == [*kept, (end if kept else line, None)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=12), st.sampled_from([1, 2, 1000]), st.booleans())
def test_what_csv_writes_is_read_back(rows: list[tuple[str, str, str]], chunk_rows: int, quote_all: bool) -> None:
    buffer = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerows(rows)
    chunks = read(buffer.getvalue().encode(), chunk_rows)
    assert cells(chunks) == [list(row) for row in rows]
    assert [chunk.rejects for chunk in chunks] == [[] for _ in chunks]
    starts = [0, *np.cumsum([sum(cell.count("\n") for cell in row) + 1 for row in rows])]
    numbers = [number for chunk in chunks for number in chunk.row_numbers.tolist()]
    assert numbers == [start + 1 for start in starts[:-1]]


def test_a_stray_quote_spoils_no_other_row() -> None:
    lines = ['1,5" disk,x', "2,plain,x", '3,"two\nlines",x', '4,"open,x', '5,7" disk,x', "6,last,x"]
    chunks = read("\n".join(lines).encode())
    assert [row[0] for row in cells(chunks)] == ["1", "2", "5", "6"]
    rejects = [reject for chunk in chunks for reject in chunk.rejects]
    assert "".join(reject.raw for reject in rejects) == '3,"twolines",x4,"open,x'

    many = '0,"open,x\n' + "".join(f"{row},plain,x\n" for row in range(1, 500))
    chunks = read(many.encode(), chunk_rows=10)
    assert [row[0] for row in cells(chunks)] == [str(row) for row in range(1, 500)]
    assert [(r.row_number, r.reason) for c in chunks for r in c.rejects] == [(1, "malformed_quotes")]


def test_byte_order_mark_and_windows_line_ends() -> None:
    assert cells(read(b'\xef\xbb\xbf1,2,3\r\n"4",5,6\r\n')) == [["1", "2", "3"], ["4", "5", "6"]]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=5))
def test_occurrences_count_over_chunks(chunks: list[list[int]]) -> None:
    seen: Counter[int] = Counter()
    with Occurrences() as occurrences:
        for chunk in chunks:
            expected = []
            for value in chunk:
                expected.append(seen[value])
                seen[value] += 1
            hashes = np.array(chunk, dtype=np.uint64) * np.uint64(2**61)
            assert occurrences.number(hashes).tolist() == expected


def test_hashes_are_stable_and_tell_columns_apart() -> None:
    a, b = pa.array(["x", None, "", "x"]), pa.array(["", "x", "x", None])
    hashed = combine([hash_strings(a), hash_strings(b)], 4).tolist()
    assert len(set(hashed)) == 4
    numbers = pa.array([0.0, -0.0, None, 1.0])
    assert len(set(hash_numbers(numbers).tolist())) == 3
    # Stored in warehouses: a change here would load every row a second time.
    golden = combine([hash_strings(pa.array(["user"])), hash_numbers(pa.array([7], pa.int64()))], 1)
    assert golden.view(np.int64).tolist() == [-6576685578989534609]


@pytest.mark.parametrize("extra", ["", "bad"])
def test_numbers_match_python(extra: str) -> None:
    texts = ["1", " 2.5 ", "-.5", "3.", "+1e3", "1e-400", "0", "12345678901234567890", "nan", "1e999", "1_0", "0x1"]
    faults = Faults(len(texts) + 1)
    column = pa.array([*texts, extra], pa.large_string())
    values = parse_number(column, "n", faults, required=False).to_pylist()
    assert values[:8] == [float(text) for text in texts[:8]]
    assert values[8:] == [None] * 5
    assert faults.good.tolist() == [True] * 8 + [False] * 4 + [extra == ""]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1)), min_size=1), st.sampled_from(["", "Z", "+02:00"])
)
def test_iso_times_match_python(moments: list[datetime], zone: str) -> None:
    texts = [moment.isoformat() + zone for moment in moments]
    parsed = [datetime.fromisoformat(text) for text in texts]
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    aware = [p if p.tzinfo else p.replace(tzinfo=UTC) for p in parsed]
    expected = [(moment - epoch) // timedelta(milliseconds=1) for moment in aware]
    for mixed in ([], ["2001-01-01T00:00:00+01:00"], ["2001-01-01"]):
        faults = Faults(len(texts) + len(mixed))
        column = pa.array([*texts, *mixed], pa.large_string())
        found = parse_time(column, "iso", "t", faults, required=True).to_pylist()
        assert found[: len(texts)] == expected
        assert faults.good.all()


def test_time_units() -> None:
    def times(values: list[object], unit: str, kind: pa.DataType) -> list[int | None]:
        return parse_time(pa.array(values, kind), unit, "t", Faults(len(values)), required=False).to_pylist()

    text = pa.large_string()
    assert times(["1.5", "-2", "", "253402300800"], "s", text) == [1500, -2000, None, None]
    assert times(["9223372036854775807", "7"], "s", text) == [None, 7000]
    assert times([1999, -1, None], "us", pa.int64()) == [1, -1, None]
    assert times([1.001, float("nan"), float("inf")], "s", pa.float64()) == [1001, None, None]
    assert times(["04-Mar-1922", "Mar-1922"], "%d-%b-%Y", text) == [-1_509_408_000_000, None]
    assert times([datetime(1970, 1, 2)], "s", pa.timestamp("ns")) == [86_400_000]


def test_arrow_types_become_plain_ones() -> None:
    batch = pa.record_batch(
        {
            "id": pa.array(["x", None]).dictionary_encode(),
            "tags": pa.array([["a", "b"], []], pa.list_(pa.string())),
            "born": pa.array([datetime(1970, 1, 2).date(), None], pa.date32()),
            "len": pa.array([Decimal("1.5"), None], pa.decimal128(4, 2)),
        }
    )
    mapping = ItemColumns(item_id="id", categories="tags", created_at="born", duration="len")
    (chunk,) = chunk_batches("memory", mapping, [batch])
    rows, rejects = normalise(chunk, mapping, None)
    assert rows.drop_columns(["row_hash", "text", "state"]).to_pylist() == [
        {"item_id": "x", "title": "x", "categories": "a|b", "created_at_ms": 86_400_000, "duration_s": 1.5}
    ]
    assert [(reject.row_number, reject.reason) for reject in rejects] == [(2, "missing_item_id")]
    assert json.loads(rejects[0].raw)["tags"] == []
