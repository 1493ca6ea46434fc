"""Quality against window length on snapshots whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.files import write_json
from stages.contracts.snapshot import ALL_PARTS, Snapshot, SnapshotMeta, Task, TimeBorders
from stages.contracts.tables import DAY_MS, EventTable, RequestTable
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.quality import quality_by_window
from stages.sufficiency.words import quality_sentence

N_ITEMS, N_USERS, DAYS, GROUPS = 480, 200, 32, 24
END = 100 * DAY_MS


def make_snapshot(directory: Path, stable_days: float, split: str = "time", ask: int = N_USERS) -> Snapshot:
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


def test_an_old_taste_does_not_pay(tmp_path: Path) -> None:
    curve = quality_by_window(ReportConfig(), make_snapshot(tmp_path, stable_days=8))
    assert [round(window.days, 3) for window in curve.windows] == pytest.approx([1, 2, 4, 8, 16, 32], rel=0.01)
    assert [window.events for window in curve.windows] == sorted(window.events for window in curve.windows)
    best = max(curve.windows, key=lambda window: window.ndcg)
    assert best.days == pytest.approx(8, rel=0.01)
    assert best.loss is None
    assert curve.enough_days == pytest.approx(8, rel=0.01)
    assert curve.windows[-1].loss is not None and curve.windows[-1].loss.verdict == "gains"
    assert quality_sentence(curve).startswith(
        "More data stops paying at 8 of 32 days: what is older makes it clearly worse"
    )


def test_where_every_day_tells_something_more_data_pays(tmp_path: Path) -> None:
    curve = quality_by_window(ReportConfig(), make_snapshot(tmp_path, stable_days=DAYS))
    assert curve.enough_days == curve.windows[-1].days
    assert [window.ndcg for window in curve.windows[:4]] == sorted(window.ndcg for window in curve.windows[:4])
    assert quality_sentence(curve).startswith("More data still pays")


def test_too_little_to_measure_is_said(tmp_path: Path) -> None:
    few = quality_by_window(ReportConfig(), make_snapshot(tmp_path, stable_days=8, ask=7))
    assert few.windows == ()
    assert "7 requests" in quality_sentence(few) and "at least 20 are needed" in quality_sentence(few)
    dealt = quality_by_window(ReportConfig(), make_snapshot(tmp_path, stable_days=8, split="users"))
    assert "dealt by users" in quality_sentence(dealt)


def test_requests_and_users_are_sampled_down_to_the_limits(tmp_path: Path) -> None:
    snapshot = make_snapshot(tmp_path, stable_days=8)
    curve = quality_by_window(ReportConfig(max_requests=50, max_users=100), snapshot)
    assert curve.requests == 50
    assert curve.windows[-1].events < quality_by_window(ReportConfig(), snapshot).windows[-1].events


@pytest.mark.parametrize("fields", [{"thresholds": (3, 2)}, {"thresholds": ()}, {"windows_days": (7, 7)}, {"days": 0}])
def test_a_wrong_section_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ascending|at least 1|greater than or equal"):
        ReportConfig.model_validate(fields)
