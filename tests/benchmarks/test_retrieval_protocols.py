"""The cuts of the protocols, against slow readable versions and literal data."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.retrieval.data import Interactions, Split, number
from benchmarks.retrieval.static.protocols import PROTOCOLS, deal_by_item
from stages.contracts.errors import DataError


def rows_of(part: Interactions) -> list[tuple[int, int]]:
    return list(zip(part.user.tolist(), part.item.tolist(), strict=True))


def made(rows: int, seed: int = 0) -> Interactions:
    """Distinct pairs in random order, items of very different sizes."""
    rng = np.random.default_rng(seed)
    cells = rng.choice(40 * 15, rows, replace=False, p=np.tile(np.arange(1, 16), 40) / (40 * 120))
    return Interactions(cells // 15, cells % 15, rng.integers(0, 9, rows), 40, 15)


def slow_deal(rows: Interactions, seed: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """A literal reading of the rule in the documentation."""
    np.random.seed(seed)
    drawn = [(item, np.random.uniform(), user) for user, item in rows_of(rows)]
    train, test = set(), set()
    for item in set(rows.item.tolist()):
        mine = sorted(row for row in drawn if row[0] == item)
        for rank, (_, _, user) in enumerate(mine, start=1):
            (train if rank <= round(0.75 * len(mine)) else test).add((user, item))
    return train, test


@pytest.mark.parametrize("seed", [42, 1])
def test_dealing_by_item(seed: int) -> None:
    rows = made(200)
    split = deal_by_item(rows, seed)
    train, test = slow_deal(rows, seed)
    assert set(rows_of(split.train)) == train
    assert set(rows_of(split.test)) == test
    kept = [pair for pair in rows_of(rows) if pair in train]
    assert rows_of(split.train) == kept, "training rows keep the file's order"


def write_movielens(folder: Path, rows: Interactions) -> None:
    lines = [f"{u + 1}\t{i + 1}\t3\t{t}" for (u, i), t in zip(rows_of(rows), rows.time.tolist(), strict=True)]
    (folder / "u.data").write_text("\n".join(lines) + "\n")


def test_ml_100k_reads_and_cuts_validation_from_training(tmp_path: Path) -> None:
    rows = made(200)
    write_movielens(tmp_path, rows)
    split = PROTOCOLS["ml-100k"].read(tmp_path)
    test, again = split(42, False), split(42, False)
    names = dict(zip(number(rows.item)[0].tolist(), rows.item.tolist(), strict=True))
    people = dict(zip(number(rows.user)[0].tolist(), rows.user.tolist(), strict=True))
    assert {(people[u], names[i]) for u, i in rows_of(test.train)} == slow_deal(rows, 42)[0]
    assert rows_of(again.test) == rows_of(test.test) != rows_of(split(1, False).test)
    validation = split(42, True)
    assert sorted(rows_of(validation.train) + rows_of(validation.test)) == sorted(rows_of(test.train))
    assert 0.15 < len(validation.test) / len(test.train) < 0.35


def test_items_and_users_are_numbered_as_they_appear() -> None:
    first, second, values = number(np.array([7, 3, 7]), np.array([9, 3]))
    assert [first.tolist(), second.tolist(), values.tolist()] == [[0, 1, 0], [2, 1], [7, 3, 9]]


def test_given_files(tmp_path: Path) -> None:
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"5 10 11 12 13\n8 11\n\n"))
    (tmp_path / "test.txt").write_bytes(b"5 14\n8\n")
    split = PROTOCOLS["ml-1m-m1"].read(tmp_path)
    test = split(1, False)
    assert rows_of(test.train) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1)]
    assert rows_of(test.test) == [(0, 4)]
    assert test.train.matrix.toarray().tolist() == [[1, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    cuts = [split(seed, True) for seed in range(20)]
    for cut in cuts:
        assert sorted(rows_of(cut.train) + rows_of(cut.test)) == sorted(rows_of(test.train))
        assert [user for user, _ in rows_of(cut.test)] == [0], "a share of 1/6 of 4 and of 1, but never all"
    assert {rows_of(cut.test)[0] for cut in cuts} == {(0, 0), (0, 1), (0, 2), (0, 3)}


def last_two(split: Split) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    return sorted(rows_of(split.train)), sorted(rows_of(split.test))


def test_leave_last_out_by_position(tmp_path: Path) -> None:
    columns = {
        "user_id": [1, 1, 1, 1, 2, 3, 3],
        "movie_id": [50, 60, 70, 80, 50, 80, 60],
        "chrono_pos": [2, 0, -1, 1, 0, 1, 0],
    }
    pq.write_table(pa.table(columns), tmp_path / "interactions.parquet")
    split = PROTOCOLS["ml-1m-loo"].read(tmp_path)
    items = {50: 0, 60: 1, 80: 2}
    test = split(1, False)
    wanted = [(0, items[60]), (0, items[80]), (1, items[50]), (2, items[60])]
    assert last_two(test) == (wanted, [(0, items[50]), (2, items[80])])
    validation = split(1, True)
    wanted = [(0, items[60]), (2, items[60])]
    assert last_two(validation) == (wanted, [(0, items[80])]), "who has too little is trained on, not judged"


def test_leave_last_out_of_sequences(tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt").write_text("1 5 6 7 8\n2 8 5\n")
    split = PROTOCOLS["beauty"].read(tmp_path)(1, False)
    assert last_two(split) == ([(0, 0), (0, 1), (0, 2), (1, 3)], [(0, 3), (1, 0)])
    weights = split.train.recency_matrix(5.0).toarray()
    np.testing.assert_allclose(weights[0], [np.exp(-0.4), np.exp(-0.2), 1, 0], rtol=1e-6)


def test_rank_counts_what_came_later() -> None:
    rows = Interactions(np.array([0, 1, 0, 0]), np.arange(4), np.array([3, 0, 9, 3]), 2, 4)
    assert rows.rank_from_latest.tolist() == [2, 0, 0, 1]
    with pytest.raises(DataError, match="no order"):
        assert Interactions(rows.user, rows.item, None, 2, 4).rank_from_latest


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; allowed is u\.data"):
        PROTOCOLS["ml-100k"].read(tmp_path)
    (tmp_path / "u.data").write_text("1\t2\tx\t3\n")
    with pytest.raises(DataError, match=r"u\.data: .*allowed are rows of user, item"):
        PROTOCOLS["ml-100k"].read(tmp_path)
    (tmp_path / "Beauty.txt").write_text("1 a b\n")
    with pytest.raises(DataError, match=r"Beauty\.txt: .*whole numbers"):
        PROTOCOLS["beauty"].read(tmp_path)
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet: .*movie_id"):
        PROTOCOLS["ml-1m-loo"].read(tmp_path)
