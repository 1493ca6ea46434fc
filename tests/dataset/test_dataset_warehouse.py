from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.steps import run_step
from stages.contracts.tables import DAY_MS
from stages.dataset.build import build_snapshot, snapshot_body
from stages.dataset.config import DatasetStepConfig
from stages.simulator import World, WorldConfig
from stages.simulator.sessions import event_batches
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest_tables
from tests.trees import sha256_tree

WORLD = World(WorldConfig(n_users=60, n_items=120, n_events=6_000, days=20, duplicate_share=0.1))

STATES = ("draft", "published", None)


def config_of(**changes: Any) -> DatasetStepConfig:
    values: dict[str, Any] = {
        "signals": ("click", "watch", "like"),
        "tasks": (
            Task(name="click", signals=("click",), relevance=1.0),
            Task(name="complete", signals=("watch",), min_value=0.7, relevance=0.5),
        ),
        "as_of_ms": WORLD.end_ms - DAY_MS,
        "activity": {"min_events": 6, "window_days": 10, "max_events": 400},
        "warehouse_fingerprint": "w",
    }
    return DatasetStepConfig.model_validate(values | changes)


def load(warehouse: Warehouse, seed: int | None = None) -> None:
    events, items, users = pa.Table.from_batches(list(event_batches(WORLD))), WORLD.items(), WORLD.users()
    items = items.slice(5)  # some items are known from events only
    states = dict(zip(items["item_id"].to_pylist(), STATES * len(items), strict=False))
    if seed is not None:
        rng = np.random.default_rng(seed)
        events, items, users = (table.take(rng.permutation(len(table))) for table in (events, items, users))
    ingest_tables(warehouse, events, items, users, "world")
    with warehouse.begin() as connection:
        for state in filter(None, STATES):
            ids = ", ".join(f"'{item}'" for item, own in states.items() if own == state)
            connection.exec_driver_sql(f"UPDATE items SET state = '{state}' WHERE item_id IN ({ids})")


@pytest.fixture(scope="module")
def duckdb_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with Warehouse(f"duckdb:///{tmp_path_factory.mktemp('dataset') / 'w.duckdb'}") as warehouse:
        load(warehouse)
        yield warehouse


def snapshot_of(warehouse: Warehouse, directory: Path, **changes: Any) -> Snapshot:
    directory.mkdir()
    snapshot_body(warehouse)(config_of(**changes), {}, directory)
    return Snapshot(directory)


POLICIES: dict[str, Any] = {
    "activity": {
        "min_events": 7,
        "max_events": 300,
        "window_days": 8,
        "signals": ("click", "impression", "purchase"),
        "weights": {"impression": 0.125, "purchase": 5},
    },
    "items": {"min_support": 3, "active_within_days": 6, "max_age_days": 40, "states": ("published",)},
    "repeats": {"click": "last", "watch": "sum", "like": "max"},
    "split": {"ranker_days": 4, "evaluation_days": 4},
    "history_days": 15,
}


@pytest.mark.parametrize("changes", [{}, POLICIES], ids=["defaults", "every policy"])
def test_the_warehouse_answers_like_plain_lists(
    duckdb_warehouse: Warehouse, tmp_path: Path, list_source: Callable[..., Any], changes: dict[str, Any]
) -> None:
    found = snapshot_of(duckdb_warehouse, tmp_path / "found", **changes)
    rows = [tuple(row.values()) for batch in event_batches(WORLD) for row in batch.to_pylist()]
    items = [tuple(row.values()) for row in WORLD.items().slice(5).to_pylist()]
    (tmp_path / "wanted").mkdir()
    states = {row[0]: state for number, row in enumerate(items) if (state := STATES[number % 3])}
    build_snapshot(config_of(**changes), list_source(rows, items, 1_000, states), tmp_path / "wanted")
    wanted = Snapshot(tmp_path / "wanted")
    assert found.meta.counts == wanted.meta.counts
    assert found.meta.borders == wanted.meta.borders
    assert found.aliases() == wanted.aliases()
    exact = WORLD.duplicates("exact")
    assert set(found.aliases()) == {item for item in exact if min(item, exact[item]) >= "i0000005"}
    events, expected = found.events(), wanted.events()
    # The order of rows at one time is the warehouse's own, so compare them as sets.
    columns = ("event_time_ms", "user_index", "item_index", "signal", "value", "part", "active")
    assert found.items().eligible.tolist() == wanted.items().eligible.tolist()
    assert len(set(found.items().eligible.tolist())) >= (6 if changes else 1)
    for table in (events, expected):
        assert np.all(np.diff(table.event_time_ms) >= 0)
    keys = [
        sorted(zip(*(getattr(table, name).tolist() for name in columns), strict=True)) for table in (events, expected)
    ]
    assert keys[0] == keys[1]
    assert len(events) > 500 and 0 < events.active.mean() < 1
    assert found.requests().request_time_ms.tolist() == wanted.requests().request_time_ms.tolist()
    assert found.targets().item_index.tolist() == wanted.targets().item_index.tolist()


def test_planted_inactive_users_are_not_active_later(duckdb_warehouse: Warehouse, tmp_path: Path) -> None:
    snapshot = snapshot_of(duckdb_warehouse, tmp_path / "s")
    events = snapshot.events()
    inactive = np.isin(snapshot.user_ids(), WORLD.inactive_users())
    assert inactive.any() and not np.any(inactive[events.user_index[events.active & (events.part > 0)]])


def test_another_order_of_loading_gives_the_same_fingerprint(duckdb_warehouse: Warehouse, tmp_path: Path) -> None:
    with Warehouse(f"duckdb:///{tmp_path / 'shuffled.duckdb'}") as shuffled:
        load(shuffled, seed=1)
        second = snapshot_of(shuffled, tmp_path / "second")
    first = snapshot_of(duckdb_warehouse, tmp_path / "first")
    assert first.meta == second.meta
    assert sha256_tree(tmp_path / "first") == sha256_tree(tmp_path / "second")


def test_postgresql_gives_the_same_fingerprint(
    duckdb_warehouse: Warehouse, postgres_warehouse: Warehouse, tmp_path: Path
) -> None:
    load(postgres_warehouse, seed=2)
    first = snapshot_of(duckdb_warehouse, tmp_path / "first")
    second = snapshot_of(postgres_warehouse, tmp_path / "second")
    assert first.meta == second.meta
    third = snapshot_of(duckdb_warehouse, tmp_path / "third", **POLICIES, duplicates={"method": "none"})
    snapshot_of(postgres_warehouse, tmp_path / "fourth", **POLICIES, duplicates={"method": "none"})
    assert sha256_tree(tmp_path / "third") == sha256_tree(tmp_path / "fourth")
    assert third.meta.fingerprint != first.meta.fingerprint


def test_a_second_run_is_reused_and_a_failed_one_leaves_nothing(duckdb_warehouse: Warehouse, tmp_path: Path) -> None:
    body = snapshot_body(duckdb_warehouse)
    first = run_step("dataset", "1", body, config_of(), {}, tmp_path)
    again = run_step("dataset", "1", body, config_of(), {}, tmp_path)
    assert again.reused and again.path == first.path and not first.reused
    assert first.info["fingerprint"] == Snapshot(first.directory).meta.fingerprint
    with pytest.raises(EmptyDatasetError, match="min_events = 100000"):
        run_step("dataset", "1", body, config_of(activity={"min_events": 100_000}), {}, tmp_path)
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == [first.directory.name]


def test_a_warehouse_without_tables_says_so(tmp_path: Path) -> None:
    with (
        Warehouse(f"duckdb:///{tmp_path / 'empty.duckdb'}") as warehouse,
        pytest.raises(DataError, match="no data yet"),
    ):
        snapshot_of(warehouse, tmp_path / "s")
