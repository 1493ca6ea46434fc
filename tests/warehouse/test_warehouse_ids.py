"""Ids keep every digit, in every format; what is not exact is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest
from stages.warehouse.mapping import FileSource, IngestSource, InteractionColumns, ItemColumns
from stages.warehouse.readers.exact import exact_ids, exact_text

EVENTS = InteractionColumns(user_id="user", item_id="item", event_time="at", event_id="key")
LISTS = InteractionColumns(user_id="user", item_id="item", event_time="at", item_separator="|")
ITEMS = ItemColumns(item_id="item", categories="kind")
BIG = 2**53
SNOWFLAKE = [1_780_000_000_000_000_000 + i for i in range(1000)]


def load(warehouse: Warehouse, path: Path, mapping: Any) -> None:
    ingest(warehouse, IngestSource(name="shop", files=(FileSource(path=path, mapping=mapping),)))


def write_parquet(path: Path, ids: Any, **columns: Any) -> Path:
    table = {"user": ids, "item": ids, "key": ids, "at": pa.array(range(len(ids)), pa.int64()), **columns}
    pq.write_table(pa.table(table), path)
    return path


def found(warehouse: Warehouse, column: str = "user_id", table: str = "interactions") -> list[str]:
    with warehouse.connect() as connection:
        return sorted(connection.exec_driver_sql(f"SELECT {column} FROM {table}").scalars())


def test_decimal_ids_keep_their_digits(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = pa.array([Decimal(number) for number in SNOWFLAKE], pa.decimal128(38, 0))
    load(warehouse, write_parquet(tmp_path / "e.parquet", ids), EVENTS)
    assert found(warehouse) == found(warehouse, "item_id") == [str(number) for number in SNOWFLAKE]


WHOLE = [
    (pa.array([Decimal("7.00"), Decimal("70.00")], pa.decimal128(10, 2)), ["7", "70"]),
    (pa.array([Decimal(f"1{'0' * 74}1")], pa.decimal256(76, 0)), [f"1{'0' * 74}1"]),
    (pa.array([2**63 + 1, 2**64 - 1], pa.uint64()), ["18446744073709551615", "9223372036854775809"]),
    (pa.array([7.0, -8.0, BIG - 1.0, None, float("nan")]), ["-8", "7", "9007199254740991"]),
    (pa.array([7.0, 2.0**24 - 1], pa.float32()), ["16777215", "7"]),
    (pa.array(np.array([7, 2047], np.float16)), ["2047", "7"]),
    (pa.array([Decimal(BIG + 1), Decimal(BIG)]).dictionary_encode(), ["9007199254740992", "9007199254740993"]),
    (pa.array(["7.0", "x"], pa.large_string()), ["7.0", "x"]),
    (pa.array([b"7", b"x"], pa.binary()), ["7", "x"]),
    (pa.nulls(2), []),
]


@pytest.mark.parametrize(("ids", "expected"), WHOLE, ids=[str(ids.type) for ids, _ in WHOLE])
def test_ids_of_every_type(duck: Warehouse, tmp_path: Path, ids: Any, expected: list[str]) -> None:
    load(duck, write_parquet(tmp_path / "e.parquet", ids), EVENTS)
    assert found(duck) == found(duck, "item_id") == expected


def test_decimals_without_and_with_a_scale() -> None:
    assert exact_ids(pa.array([Decimal("700"), None], pa.decimal128(5, -2)), "user_id", "u").to_pylist() == [
        "700",
        None,
    ]
    assert exact_ids(pa.array([Decimal("0"), Decimal("-0")], pa.decimal128(30, 9)), "user_id", "u")[0].as_py() == "0"
    assert exact_text(pa.array([0.5, 7.0, 1e17, None])).to_pylist() == ["0.5", "7", "1e+17", None]


INEXACT = [
    (pa.array([1.0, 7.5]), "7.5"),
    (pa.array([float(BIG)]), "9007199254740992.0"),
    (pa.array([1e17]), "1e+17"),
    (pa.array([float("inf")]), "inf"),
    (pa.array([2.0**24], pa.float32()), "16777216.0"),
    (pa.array([Decimal("7.50")], pa.decimal128(10, 2)), "7.50"),
    (pa.array([1e17]).dictionary_encode(), "1e+17"),
]


@pytest.mark.parametrize(("ids", "value"), INEXACT, ids=[f"{ids.type}-{value}" for ids, value in INEXACT])
@pytest.mark.parametrize("field", ["user_id", "item_id", "event_id"])
def test_an_inexact_number_is_no_id(tmp_path: Path, duck: Warehouse, ids: Any, value: str, field: str) -> None:
    column = getattr(EVENTS, field)
    good = pa.array(["a"] * len(ids))
    columns = {name: ids if name == column else good for name in ("user", "item", "key")}
    path = write_parquet(tmp_path / "e.parquet", good, **columns)
    with pytest.raises(DataError) as caught:
        load(duck, path, EVENTS)
    assert str(path) in str(caught.value)
    assert f"mapping.{field} = {column!r}: found {value} (" in str(caught.value)
    assert duck.counts()["interactions"] == 0


@pytest.mark.parametrize(("value", "shown"), [("7.5", "7.5"), ("9007199254740992.0", "9007199254740992.0")])
def test_an_inexact_json_number_is_no_id(duck: Warehouse, tmp_path: Path, value: str, shown: str) -> None:
    (tmp_path / "e.jsonl").write_text(f'{{"user": 1, "item": 2, "at": 3}}\n{{"user": {value}, "item": 2, "at": 3}}\n')
    mapping = EVENTS.model_copy(update={"event_id": None})
    with pytest.raises(DataError, match=rf"line 2: mapping\.user_id = 'user': found {shown}"):
        load(duck, tmp_path / "e.jsonl", mapping)


def test_json_numbers_are_exact(duck: Warehouse, tmp_path: Path) -> None:
    ids = ["9007199254740993", "7.0", "1e3", "18446744073709551617", '"7.00"']
    lines = [f'{{"user": {text}, "item": {text}, "at": {row}, "key": {text}}}' for row, text in enumerate(ids)]
    (tmp_path / "e.jsonl").write_text("\n".join(lines))
    load(duck, tmp_path / "e.jsonl", EVENTS)
    assert found(duck) == found(duck, "item_id") == sorted(["9007199254740993", "7", "1000", str(2**64 + 1), "7.00"])


LISTED = [
    pa.array([[SNOWFLAKE[0], SNOWFLAKE[1]], None, []], pa.list_(pa.int64())),
    pa.array([[Decimal(SNOWFLAKE[0]), Decimal(SNOWFLAKE[1])], None, []], pa.list_(pa.decimal128(38, 0))),
    pa.array([[Decimal(SNOWFLAKE[0]), Decimal(SNOWFLAKE[1])], None, []], pa.large_list(pa.decimal128(30, 4))),
]


@pytest.mark.parametrize("items", LISTED, ids=[str(items.type) for items in LISTED])
def test_ids_in_lists(duck: Warehouse, tmp_path: Path, items: Any) -> None:
    load(duck, write_parquet(tmp_path / "e.parquet", pa.array(["u", "v", "w"]), item=items), LISTS)
    assert found(duck, "item_id") == [str(SNOWFLAKE[0]), str(SNOWFLAKE[1])]


def test_an_inexact_id_in_a_list_is_refused(duck: Warehouse, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "e.parquet", pa.array(["u"]), item=pa.array([[1.0, 1e17]]))
    with pytest.raises(DataError, match=r"mapping\.item_id = 'item': found 1e\+17"):
        load(duck, path, LISTS)
    (tmp_path / "e.jsonl").write_text('{"user": "u", "item": [7.0, 1e17], "at": 3}')
    with pytest.raises(DataError, match=r"mapping\.item_id = 'item': found 1e\+17"):
        load(duck, tmp_path / "e.jsonl", LISTS)


def test_categories_and_context_are_exact(duck: Warehouse, tmp_path: Path) -> None:
    kinds = pa.array([Decimal(number) for number in SNOWFLAKE[:2]], pa.decimal128(38, 0))
    load(duck, write_parquet(tmp_path / "i.parquet", pa.array(["a", "b"]), kind=kinds), ITEMS)
    assert found(duck, "categories", "items") == [str(number) for number in SNOWFLAKE[:2]]
    mapping = EVENTS.model_copy(update={"context": ("author",)})
    load(duck, write_parquet(tmp_path / "e.parquet", pa.array(["a", "b"]), author=kinds), mapping)
    assert [json.loads(text)["author"] for text in found(duck, "context")] == [str(number) for number in SNOWFLAKE[:2]]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-(10**37), 10**37), min_size=1, max_size=8, unique=True))
def test_every_format_gives_the_same_digits(tmp_path: Path, ids: list[int]) -> None:
    mapping = EVENTS.model_copy(update={"event_id": None})
    decimals = pa.array([Decimal(number) for number in ids], pa.decimal128(38, 0))
    write_parquet(tmp_path / "decimal.parquet", decimals)
    write_parquet(tmp_path / "wide.parquet", decimals.cast(pa.decimal256(60, 9)))
    write_parquet(tmp_path / "text.parquet", decimals.cast(pa.string()))
    rows = list(enumerate(ids))
    (tmp_path / "e.csv").write_text("user,item,at\n" + "".join(f"{each},{each},{row}\n" for row, each in rows))
    (tmp_path / "e.jsonl").write_text("".join(json.dumps({"user": i, "item": i, "at": row}) + "\n" for row, i in rows))
    with Warehouse("duckdb:///:memory:") as warehouse:
        for path in sorted(tmp_path.iterdir()):
            load(warehouse, path, mapping)
        assert found(warehouse) == found(warehouse, "item_id") == sorted(map(str, ids))
