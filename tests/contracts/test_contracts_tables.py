"""Tables are checked when they are made, and survive a round trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.tables import CandidateTable, RequestTable, ScoredItems, row_groups
from tests.plain_ranking import rank_rows


def _candidates(request: list[int], item: list[int], score: list[float], source: int = SOURCE_TOWER) -> CandidateTable:
    request_id = np.array(request, dtype=np.int64)
    rank = np.array([sum(r == q for r in request[:i]) for i, q in enumerate(request)], dtype=np.int32)
    return CandidateTable(
        request_id,
        np.array(item, dtype=np.int64),
        np.array(score, dtype=np.float32),
        rank,
        np.full(len(item), source, dtype=np.int8),
    )


def test_wrong_type_and_length_are_refused_by_name() -> None:
    good = np.zeros(2, dtype=np.int64)
    with pytest.raises(DataError, match=r"RequestTable\.part must be a 1-D int8 array, found int64"):
        RequestTable(good, good, good, good)
    with pytest.raises(DataError, match="differ in length"):
        RequestTable(good, good, good, np.zeros(3, dtype=np.int8))


def test_parquet_round_trip_and_missing_column(tmp_path: Path) -> None:
    rows = _candidates([0, 0, 1], [5, 6, 5], [0.5, 0.25, 1.0])
    rows.write(tmp_path / "c.parquet")
    back = CandidateTable.read(tmp_path / "c.parquet")
    for name in CandidateTable.TYPES:
        assert np.array_equal(getattr(back, name), getattr(rows, name))
    pq.write_table(pa.table({"request_id": [1]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet"):
        CandidateTable.read(tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"e\.parquet is not a readable Parquet file"):
        CandidateTable.read(tmp_path / "e.parquet")


def test_row_groups_hold_the_rows_in_order(tmp_path: Path) -> None:
    rows = _candidates([0, 0, 1], [5, 6, 5], [0.5, 0.25, 1.0])
    rows.write(tmp_path / "c.parquet")
    pq.write_table(pq.read_table(tmp_path / "c.parquet"), tmp_path / "g.parquet", row_group_size=2)
    found = list(row_groups(tmp_path / "g.parquet", ["item_index", "source"]))
    assert [len(group["source"]) for group in found] == [2, 1]
    assert np.array_equal(np.concatenate([group["item_index"] for group in found]), rows.item_index)
    assert {name: values.dtype for name, values in found[0].items()} == {"item_index": np.int64, "source": np.int8}
    with pytest.raises(DataError, match=r"g\.parquet lacks columns \['part'\], found \['request_id'"):
        next(row_groups(tmp_path / "g.parquet", ["item_index", "part"]))
    (tmp_path / "e.parquet").write_bytes(b"not parquet")
    for name in ("e.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=rf"{name} is not a readable Parquet file"):
            next(row_groups(tmp_path / name, ["part"]))


@given(st.lists(st.floats(-5, 5, width=32), max_size=30), st.integers(0, 40))
def test_scored_items_sort_is_a_stable_descending_prefix(values: list[float], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    ids = np.arange(len(values))
    got = ScoredItems.sort(ids, scores, k)
    wanted = sorted(range(len(values)), key=lambda i: (-scores[i], i))[:k]
    assert got.ids.tolist() == wanted


def test_scored_items_refuse_duplicates_and_disorder() -> None:
    one = np.array([1, 1]), np.array([2.0, 1.0], dtype=np.float32)
    with pytest.raises(DataError, match="twice"):
        ScoredItems(*one)
    with pytest.raises(DataError, match="must not increase"):
        ScoredItems(np.array([1, 2]), np.array([1.0, 2.0], dtype=np.float32))


def test_rank_rows_sorts_each_request_and_keeps_popular_order() -> None:
    rows = _candidates([3, 3, 3, 7, 7], [1, 2, 3, 1, 2], [0.9, 0.8, 0.7, 0.5, 0.4])
    ranked = rank_rows(rows, np.array([0.0, 2.0, 2.0, -1.0, 5.0], dtype=np.float32), keep=2)
    assert ranked.request_id.tolist() == [3, 3, 7, 7]
    assert ranked.item_index.tolist() == [2, 3, 2, 1]
    assert ranked.rank.tolist() == [0, 1, 0, 1]
    popular = _candidates([3, 3], [1, 2], [0.9, 0.8], SOURCE_POPULAR)
    assert rank_rows(popular, np.array([0.0, 9.0], dtype=np.float32)).item_index.tolist() == [1, 2]


def test_rank_rows_drops_minus_infinity_before_counting_ranks() -> None:
    rows = _candidates([0, 0, 0], [1, 2, 3], [0.9, 0.8, 0.7])
    ranked = rank_rows(rows, np.array([-np.inf, 1.0, 2.0], dtype=np.float32))
    assert ranked.item_index.tolist() == [3, 2]
    assert ranked.rank.tolist() == [0, 1]
