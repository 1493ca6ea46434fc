"""Splits that deal user-item pairs, against their definition in plain Python, on both databases."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.contracts.errors import DataError
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetStepConfig, SplitConfig
from stages.dataset.splits import check_disjoint, deal_users
from stages.dataset.warehouse_source import WarehouseSource
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest_tables

EVENT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("signal", pa.string()),
        ("value", pa.float64()),
        ("event_time_ms", pa.int64()),
    ]
)
SPLITS: list[dict[str, Any]] = [
    {"method": "leave_last_out"},
    {"method": "leave_last_out", "last": 2, "before_last": 3},
    {"method": "user_ratio", "candidate_share": 0.5, "ranker_share": 0.25},
    {"method": "users", "user_shares": (0.4, 0.3, 0.3), "fold_in_share": 0.5},
    {"method": "given", "evaluation_signals": ("test",), "before_last": 2},
]
END = 2_000


def events(seed: int) -> pa.Table:
    """600 events of 25 users on 40 items at 30 moments: most share their time with others."""
    rng = np.random.default_rng(seed)
    size = 600
    return pa.table(
        {
            "user_id": [f"u{user}" for user in rng.integers(0, 25, size)],
            "item_id": [f"i{item}" for item in rng.zipf(1.3, size) % 40],
            "signal": rng.choice(["train", "view", "test"], size, p=[0.5, 0.3, 0.2]).tolist(),
            "value": np.ones(size),
            "event_time_ms": rng.integers(0, 30, size) * 50 + 100,
        },
        schema=EVENT_SCHEMA,
    )


def config_of(split: dict[str, Any], **changes: Any) -> DatasetStepConfig:
    values = {
        "signals": ("train", "view", "test"),
        "tasks": (Task(name="any", signals=("train", "view", "test"), relevance=1.0),),
        "as_of_ms": END,
        "activity": {"min_events": 1},
        "duplicates": {"method": "none"},
        "split": split,
        "requests": {"targets_per_request": 1, "max_requests_per_user": None},
        "warehouse_fingerprint": "w",
        "seed": 3,
    }
    return DatasetStepConfig.model_validate(values | changes)


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Warehouse]:
    if request.param == "postgresql":
        yield request.getfixturevalue("postgres_warehouse")
    else:
        with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as opened:
            yield opened


def load(warehouse: Warehouse, seed: int) -> list[tuple[str, str, str, int, int]]:
    """Load the events; return (user, item, signal, time, event id) by (time, event id)."""
    nobody = pa.table({"user_id": pa.array([], pa.string())})
    names = [f"i{item}" for item in range(40)]
    items = pa.table(
        {
            "item_id": names,
            "title": names,
            "categories": [""] * 40,
            "created_at_ms": pa.nulls(40, pa.int64()),
            "duration_s": pa.nulls(40, pa.float64()),
        }
    )
    ingest_tables(warehouse, events(seed), items, nobody, "made")
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT user_id, item_id, signal, event_time_ms, event_id FROM interactions "
            "ORDER BY event_time_ms, event_id"
        ).all()
    return [tuple(row) for row in rows]


def wanted_parts(rows: list[tuple[str, str, str, int, int]], split: dict[str, Any]) -> dict[tuple[str, str], int]:
    """The definition: walk each user's pairs in the order of their first events."""
    signals: dict[tuple[str, str], set[str]] = defaultdict(set)
    for user, item, signal, *_ in rows:
        signals[user, item].add(signal)
    by_user: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in signals:  # in the order of the first events
        by_user[pair[0]].append(pair)
    parts = {}
    for user, every in by_user.items():
        held = [pair for pair in every if signals[pair] == {"test"}] if split["method"] == "given" else []
        pairs = [pair for pair in every if pair not in held]
        n = len(pairs)
        if split["method"] == "leave_last_out":
            last, before = split.get("last", 1), split.get("before_last", 1)
            sizes = (n, 0, 0) if n <= last + before else (n - last - before, before, last)
        elif split["method"] == "user_ratio":
            first = math.ceil(n * 0.5)
            second = math.ceil(n * 0.75)
            sizes = (first, second - first, n - second)
        elif split["method"] == "users":
            lot = int.from_bytes(hashlib.sha256(f"3:{user}".encode()).digest()[:7], "big") / 2**56
            history = math.ceil(n * 0.5)
            sizes = (n, 0, 0) if lot < 0.4 else (history, n - history, 0) if lot < 0.7 else (history, 0, n - history)
        else:
            sizes = (n - 2, 2, 0) if n > 2 else (n, 0, 0)
        parts |= dict(zip(pairs, [0] * sizes[0] + [1] * sizes[1] + [2] * sizes[2], strict=True))
        parts |= dict.fromkeys(held, 2)
    return parts


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: f"{split['method']}-{len(split)}")
def test_pairs_go_where_the_definition_says(warehouse: Warehouse, tmp_path: Path, split: dict[str, Any]) -> None:
    rows = load(warehouse, seed=len(str(split)))
    directory = tmp_path / "snapshot"
    directory.mkdir()
    build_snapshot(config_of(split), WarehouseSource(warehouse), directory)
    snapshot = Snapshot(directory)
    table, users, items = snapshot.events(), snapshot.user_ids(), snapshot.items().item_id
    wanted = wanted_parts(rows, split)
    found = {}
    for user, item, part in zip(users[table.user_index], items[table.item_index], table.part, strict=True):
        assert found.setdefault((user, item), int(part)) == part, "a pair in two parts"
    assert found == wanted
    assert set(found.values()) == {0, 1, 2}
    assert (np.diff(table.event_time_ms) >= 0).all()

    # Nothing trains on the history of users who were dealt to a later part.
    later_users = {user for (user, _), part in wanted.items() if part > 0}
    trains = table.active & (table.part == PART_CANDIDATE)
    if split["method"] == "users":
        assert not set(users[table.user_index[trains]]) & later_users
    else:
        assert table.active.all()

    # Each later pair is asked for once, when the user's earlier pairs are known, ties included.
    requests, targets = snapshot.requests(), snapshot.targets()
    first: dict[tuple[str, str], int] = {}
    for number, (user, item) in enumerate(zip(users[table.user_index], items[table.item_index], strict=True)):
        first.setdefault((user, item), number)
    asked = users[requests.user_index[targets.request_id]], items[targets.item_index]
    assert sorted(zip(*asked, strict=True)) == sorted(pair for pair, part in wanted.items() if part > 0)
    for row, item in zip(targets.request_id, targets.item_index, strict=True):
        pair = users[requests.user_index[row]], items[item]
        assert requests.part[row] == wanted[pair]
        known = {
            items[other]
            for other in table.item_index[
                (table.user_index == requests.user_index[row]) & (table.event_time_ms < requests.request_time_ms[row])
            ]
        }
        before = {item for (user, item), number in first.items() if user == pair[0] and number < first[pair]}
        assert known == before
    assert snapshot.meta.split == split["method"]


@pytest.mark.parametrize("split", [{"method": "time"}, *SPLITS], ids=lambda split: f"{split['method']}-{len(split)}")
def test_a_cap_on_all_requests_holds_for_every_split(tmp_path: Path, split: dict[str, Any]) -> None:
    caps = {"max_ranker_requests": 5, "max_evaluation_requests": 3}
    found = []
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        load(duck, seed=3)
        for name, added in (("every", {}), ("capped", caps)):
            config = config_of(split)
            requests = config.requests.model_copy(update=added)
            (tmp_path / name).mkdir()
            build_snapshot(config.model_copy(update={"requests": requests}), WarehouseSource(duck), tmp_path / name)
            found.append(Snapshot(tmp_path / name))
    every, capped = (set(asked(snapshot)) for snapshot in found)
    assert capped < every
    assert np.bincount(found[1].requests().part).tolist() == [0, 5, 3]


def asked(snapshot: Snapshot) -> list[tuple[int, int]]:
    """Return the (user, item) of every target."""
    requests, targets = snapshot.requests(), snapshot.targets()
    pairs = requests.user_index[targets.request_id].tolist(), targets.item_index.tolist()
    return list(zip(*pairs, strict=True))


def test_both_databases_give_one_fingerprint(postgres_warehouse: Warehouse, tmp_path: Path) -> None:
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        for number, split in enumerate(SPLITS):
            prints = []
            for name, opened in (("duck", duck), ("postgres", postgres_warehouse)):
                if number == 0:
                    load(opened, seed=1)
                directory = tmp_path / f"{name}{number}"
                directory.mkdir()
                build_snapshot(config_of(split), WarehouseSource(opened), directory)
                prints.append(Snapshot(directory).meta.fingerprint)
            assert prints[0] == prints[1]


def test_repeats_leave_one_row_a_pair_and_signal(tmp_path: Path) -> None:
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        rows = load(duck, seed=5)
        (tmp_path / "s").mkdir()
        config = config_of({"method": "leave_last_out"}, repeats={"train": "sum", "view": "last"})
        build_snapshot(config, WarehouseSource(duck), tmp_path / "s")
        table = Snapshot(tmp_path / "s").events()
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for user, item, signal, *_ in rows:
        sums[user, item] += signal == "train"
    keys = list(zip(table.user_index, table.item_index, table.signal, strict=True))
    assert len(set(keys)) == len(keys) == len({row[:3] for row in rows})
    assert sorted(table.value[table.signal == 0]) == sorted(number for number in sums.values() if number)


def test_a_given_pair_in_both_files_stays_in_training_and_is_counted(tmp_path: Path) -> None:
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        rows = load(duck, seed=6)
        (tmp_path / "s").mkdir()
        build_snapshot(config_of(SPLITS[-1]), WarehouseSource(duck), tmp_path / "s")
        counts = Snapshot(tmp_path / "s").meta.counts
    kinds: dict[tuple[str, str], set[bool]] = defaultdict(set)
    for user, item, signal, *_ in rows:
        kinds[user, item].add(signal == "test")
    assert counts["pairs_in_both_given_parts"] == sum(len(found) == 2 for found in kinds.values()) > 0


def test_a_user_keeps_the_lot_when_others_come() -> None:
    ids = [f"user {number}" for number in range(20_000)]
    parts = deal_users(ids, (0.8, 0.1, 0.1), seed=0)
    assert np.bincount(parts) / len(ids) == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert deal_users(ids[::-7], (0.8, 0.1, 0.1), seed=0).tolist() == parts[::-7].tolist()
    assert deal_users(ids, (0.8, 0.1, 0.1), seed=1).tolist() != parts.tolist()


@pytest.mark.parametrize("method", ["time", "leave_last_out"])
def test_a_pair_in_two_parts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Move one row of a held-out pair into an earlier part and look again."""
    from stages.dataset import build

    def corrupted(table: Any, contents: Any) -> None:
        check_disjoint(table, contents)
        request = np.flatnonzero(contents.requests.part[contents.targets.request_id] == PART_EVALUATION)[0]
        user = contents.requests.user_index[contents.targets.request_id[request]]
        row = np.flatnonzero((table.user_index == user) & (table.item_index == contents.targets.item_index[request]))[0]
        rows = np.append(np.arange(len(table)), row)
        part = table.part[rows]
        part[-1] = PART_RANKER
        doubled = table.take(rows)
        object.__setattr__(doubled, "part", part)
        with pytest.raises(DataError, match=r"1 user-item pairs are in the ranker and in the evaluation part, such as"):
            check_disjoint(doubled, contents)
        raise DataError("looked")

    monkeypatch.setattr(build, "check_disjoint", corrupted)
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        load(duck, seed=7)
        (tmp_path / "s").mkdir()
        with pytest.raises(DataError, match="looked"):
            build_snapshot(config_of({"method": method}), WarehouseSource(duck), tmp_path / "s")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"method": "leave_last_out", "ranker_share": 0.1}, "takes .'last', 'before_last'., found .'ranker_share'."),
        ({"method": "given"}, "needs them"),
        ({"evaluation_signals": ("test",)}, "no other takes them"),
        ({"method": "users", "user_shares": (0.8, 0.1, 0.2)}, "add up to 1"),
        ({"method": "random"}, "leave_last_out"),
    ],
)
def test_wrong_splits_are_refused(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitConfig.model_validate(split)


def test_an_unknown_signal_and_an_empty_part_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split.evaluation_signals names \['holdout'\]"):
        config_of({"method": "given", "evaluation_signals": ("holdout",)})
    with Warehouse(f"duckdb:///{tmp_path / 'w.duckdb'}") as duck:
        load(duck, seed=8)
        (tmp_path / "s").mkdir()
        with pytest.raises(DataError, match="leaves the ranker part without events"):
            build_snapshot(config_of({"method": "leave_last_out", "last": 900}), WarehouseSource(duck), tmp_path / "s")
