"""What requests depend on is read back from ``events.parquet``, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.contracts.tables import PART_CANDIDATE, PART_RANKER, EventTable
from stages.dataset.events import read_for_requests

SIZE = 4_000


def written(path: Path, n_users: int, n_items: int, later: float) -> EventTable:
    rng = np.random.default_rng(0)
    part = np.sort(np.where(rng.random(SIZE) < later, rng.integers(1, 3, SIZE), PART_CANDIDATE)).astype(np.int8)
    events = EventTable(
        user_index=rng.integers(0, n_users, SIZE),
        item_index=rng.integers(0, n_items, SIZE),
        event_time_ms=np.sort(rng.integers(0, 1 << 40, SIZE)),
        signal=rng.integers(0, 3, SIZE).astype(np.int16),
        value=rng.random(SIZE).astype(np.float32),
        part=part,
        active=rng.random(SIZE) < 0.8,
    )
    events.write(path)
    pq.write_table(pq.read_table(path), path, row_group_size=300)
    return events


@pytest.mark.parametrize(
    ("n_users", "n_items", "later"),
    [(50, 40, 0.1), (50, 1 << 10, 0.3), (1 << 20, 1 << 20, 0.5), (300_000_000, 3_000_000_000, 0.5), (9, 9, 0.0)],
)
def test_the_later_parts_and_earlier_rows_of_their_pairs(
    tmp_path: Path, n_users: int, n_items: int, later: float
) -> None:
    events = written(tmp_path / "events.parquet", n_users, n_items, later)
    pairs = list(zip(events.user_index.tolist(), events.item_index.tolist(), strict=True))
    after = {pair for pair, part in zip(pairs, events.part, strict=True) if part >= PART_RANKER}
    wanted = [row for row, pair in enumerate(pairs) if pair in after]
    found = read_for_requests(tmp_path / "events.parquet", n_items)
    for name in EventTable.TYPES:
        assert np.array_equal(getattr(found, name), getattr(events, name)[wanted])
    earlier = (found.part == PART_CANDIDATE).sum()
    assert (earlier > 0) == (n_users == 50)
    assert earlier < (events.part == PART_CANDIDATE).sum()
