"""A snapshot whose answer is known: tastes that changed so many days ago."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.files import write_json
from stages.contracts.snapshot import ALL_PARTS, Snapshot, SnapshotMeta, Task, TimeBorders
from stages.contracts.tables import DAY_MS, EventTable, RequestTable

N_ITEMS, N_USERS, DAYS, GROUPS = 480, 200, 32, 24
END = 100 * DAY_MS


def _write(directory: Path, stable_days: float, split: str = "time", ask: int = N_USERS) -> Snapshot:
    """Users like one group of items; before the last ``stable_days`` each liked another one."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, GROUPS, N_USERS)
    start = END - DAYS * DAY_MS
    size = 3_000
    user, time = rng.integers(0, N_USERS, size), np.sort(rng.integers(start, END, size))
    stable = time >= END - stable_days * DAY_MS
    liked = np.where(stable, group[user], rng.permutation(group)[user])
    own = rng.integers(0, N_ITEMS // GROUPS, size) * GROUPS + liked
    item = np.where(
        (time >= END - stable_days * DAY_MS) & (rng.random(size) < 0.9), own, rng.integers(0, N_ITEMS, size)
    )
    asked = np.arange(ask)
    EventTable(
        user_index=user,
        item_index=item,
        event_time_ms=time,
        signal=np.zeros(size, np.int16),
        value=np.ones(size, np.float32),
        part=np.zeros(size, np.int8),
        active=np.ones(size, np.bool_),
    ).write(directory / "events.parquet")
    RequestTable(
        request_id=np.arange(ask),
        user_index=asked,
        request_time_ms=END + asked,
        part=np.ones(ask, np.int8),
    ).write(directory / "requests.parquet")
    # Each asks for the items of the own group that were not touched before.
    touched = set(zip(user.tolist(), item.tolist(), strict=True))
    targets = [(u, i) for u in asked.tolist() for i in range(int(group[u]), N_ITEMS, GROUPS) if (u, i) not in touched]
    request_id, wanted = (np.array(column, dtype=np.int64) for column in zip(*targets, strict=True))
    ones = np.ones(len(wanted), np.float32)
    columns = {"request_id": request_id, "item_index": wanted, "relevance": ones, "task_click": ones}
    pq.write_table(pa.table(columns), directory / "targets.parquet")
    items: dict[str, Any] = {
        "item_index": np.arange(N_ITEMS),
        "item_id": [f"i{number}" for number in range(N_ITEMS)],
        "title": [""] * N_ITEMS,
        "categories": pa.array([[]] * N_ITEMS, pa.list_(pa.int32())),
        "created_at_ms": np.zeros(N_ITEMS, np.int64),
        "duration_s": np.full(N_ITEMS, np.nan, np.float32),
        "eligible": np.full(N_ITEMS, ALL_PARTS, np.int8),
    }
    pq.write_table(pa.table(items), directory / "items.parquet")
    meta = SnapshotMeta(
        signals=("click",),
        categories=(),
        tasks=(Task(name="click", signals=("click",), relevance=1.0),),
        borders=TimeBorders(
            start_ms=start, candidate_end_ms=END, ranker_end_ms=END + DAY_MS, as_of_ms=END + 2 * DAY_MS
        ),
        split=split,
        counts={},
        fingerprint="0",
    )
    write_json(directory / "snapshot.json", meta.model_dump(mode="json"))
    return Snapshot(directory)


@pytest.fixture
def make_snapshot(tmp_path: Path) -> Callable[..., Snapshot]:
    """Return a function of (stable_days, split, ask)."""
    return lambda stable_days, **options: _write(tmp_path, stable_days, **options)
