"""What is read a row group at a time is what reading everything at once would give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS, PART_CANDIDATE, PART_EVALUATION, PART_RANKER, EventTable, RequestTable
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.quality import quality_by_window
from stages.sufficiency.sample import draw_past, draw_requests, known_users

Make = Callable[..., Snapshot]
LATER = 1_000_000
"""A user of the later parts only, beyond all others."""


@pytest.fixture
def snapshot(make_snapshot: Make) -> Snapshot:
    """Return a snapshot with inactive rows, other parts, users who are not known, all in many row groups."""
    made = make_snapshot(stable_days=8)
    rng, events, requests = np.random.default_rng(1), made.events(), made.requests()
    part = np.where(events.event_time_ms >= made.meta.borders.candidate_end_ms - DAY_MS, PART_RANKER, PART_CANDIDATE)
    changed = {
        "part": part.astype(np.int8),
        "active": (rng.random(len(events)) < 0.9) & (events.user_index % 17 != 3),
        "user_index": np.where((part == PART_RANKER) & (rng.random(len(events)) < 0.1), LATER, events.user_index),
    }
    _rewrite(EventTable(**{**vars(events), **changed}), made.directory / "events.parquet")
    part = np.where(rng.random(len(requests)) < 0.3, PART_EVALUATION, PART_RANKER).astype(np.int8)
    user = np.where(rng.random(len(requests)) < 0.1, LATER, requests.user_index)
    _rewrite(RequestTable(**{**vars(requests), "part": part, "user_index": user}), made.directory / "requests.parquet")
    return made


def _rewrite(table: EventTable | RequestTable, path: Path) -> None:
    table.write(path)
    _regroup(path, len(table))


def _regroup(path: Path, rows: int) -> None:
    pq.write_table(pq.read_table(path), path, row_group_size=rows)


def _regroup_all(snapshot: Snapshot, rows: int) -> None:
    for name in ("events", "requests", "targets"):
        _regroup(snapshot.directory / f"{name}.parquet", rows)
    assert pq.read_metadata(snapshot.directory / "events.parquet").num_row_groups > 1


@pytest.mark.parametrize("limits", [{}, {"max_requests": 50, "max_users": 40}])
@pytest.mark.parametrize("rows", [1_000, 97, 1])
def test_the_curve_does_not_depend_on_row_groups(snapshot: Snapshot, limits: dict[str, int], rows: int) -> None:
    config = ReportConfig(halvings=2, **limits)
    whole = quality_by_window(config, snapshot)
    _regroup_all(snapshot, rows)
    assert quality_by_window(config, snapshot) == whole
    assert len(whole.windows) == 3


@pytest.mark.parametrize("limit", [20, 50, 10_000])
def test_the_sample_is_that_of_all_events_at_once(snapshot: Snapshot, limit: int) -> None:
    events, requests = snapshot.events(), snapshot.requests()
    taught = events.take((events.part == PART_CANDIDATE) & events.active)
    asked = np.flatnonzero((requests.part == PART_RANKER) & np.isin(requests.user_index, taught.user_index))
    assert len(asked) < (requests.part == PART_RANKER).sum(), "some who ask are not known"
    asked = asked[np.linspace(0, len(asked) - 1, min(limit, len(asked))).round().astype(int)]
    users = np.unique(taught.user_index)
    if len(users) > limit:
        users = users[np.linspace(0, len(users) - 1, limit).astype(int)]
        users = np.union1d(users, requests.user_index[asked])
    taught = taught.take(np.isin(taught.user_index, users))
    _regroup_all(snapshot, 89)

    known = known_users(snapshot)
    drawn = draw_requests(snapshot, known, limit)
    assert np.array_equal(drawn.request_id, requests.request_id[asked])
    assert np.array_equal(drawn.user_index, requests.user_index[asked])
    past = draw_past(snapshot, known, drawn.user_index, limit)
    assert np.array_equal(past.users, users)
    assert np.array_equal(past.users[past.user], taught.user_index)
    assert np.array_equal(past.item_index, taught.item_index)
    assert np.array_equal(past.event_time_ms, taught.event_time_ms)
    half = int(np.median(taught.event_time_ms))
    assert np.array_equal(past.since(half).item_index, taught.item_index[taught.event_time_ms >= half])


def test_targets_of_some_requests(snapshot: Snapshot) -> None:
    wanted, every = np.array([3, 60, 150]), snapshot.targets()
    _regroup_all(snapshot, 11)
    found, rows = snapshot.targets_of(wanted), np.isin(every.request_id, wanted)
    for name in ("request_id", "item_index", "relevance", "labels"):
        assert np.array_equal(getattr(found, name), getattr(every, name)[rows])
    assert 0 < rows.sum() < len(rows)
    assert snapshot.n_items() == len(snapshot.items())


def test_whole_tables_are_never_read(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("events", "requests", "targets", "items"):
        monkeypatch.setattr(Snapshot, name, lambda _: pytest.fail("reads a whole table"))
    assert quality_by_window(ReportConfig(halvings=1), snapshot).windows
