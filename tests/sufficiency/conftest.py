"""A snapshot whose answer is known: tastes that changed so many days ago."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS, PART_RANKER
from tests.builders.snapshots import catalogue, event_table, request_table, write_snapshot

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
    # Each asks for the items of the own group that were not touched before.
    touched = set(zip(user.tolist(), item.tolist(), strict=True))
    targets = [(u, i) for u in asked.tolist() for i in range(int(group[u]), N_ITEMS, GROUPS) if (u, i) not in touched]
    request_id, wanted = zip(*targets, strict=True)
    write_snapshot(
        directory,
        (start, END, END + DAY_MS, END + 2 * DAY_MS),
        events=event_table(user, item, time),
        requests=request_table(asked, END + asked, PART_RANKER),
        targets={"request_id": request_id, "item_index": wanted},
        items=catalogue(N_ITEMS, title=[""] * N_ITEMS),
        split=split,
    )
    return Snapshot(directory)


@pytest.fixture
def make_snapshot(tmp_path: Path) -> Callable[..., Snapshot]:
    """Return a function of (stable_days, split, ask)."""
    return lambda stable_days, **options: _write(tmp_path, stable_days, **options)
