"""Labels of several signals, and watch time that short items do not win by being short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import DAY_MS, PART_CANDIDATE
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetStepConfig
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState
from tests.features.plain.replay import replay

N_USERS, N_ITEMS, DAYS = 120, 240, 20
TASKS = (
    Task(name="complete", signals=("watch",), min_value=0.6, relevance=1.0),
    Task(name="like", signals=("like",), relevance=2.0, weight=0.5),
    Task(name="purchase", signals=("purchase",), relevance=4.0),
)


def world(seed: int) -> tuple[list[Any], list[Any], np.ndarray, np.ndarray]:
    """Watch logs over a real spread of durations, in which duration says nothing about preference.

    Attention is drawn from the preference and ends where the item ends: short items are finished
    whatever people think of them.
    """
    rng = np.random.default_rng(seed)
    duration = np.exp(rng.normal(4.2, 1.0, N_ITEMS)).clip(5, 1_200)
    quality = rng.random(N_ITEMS)
    rows = []
    for user in range(N_USERS):
        for item in rng.choice(N_ITEMS, 60, replace=False):
            attention = np.exp(2.6 + 2.0 * quality[item] + 0.6 * rng.normal())
            time = int(rng.integers(1, DAYS * DAY_MS))
            watched = float(min(attention, duration[item]))
            rows.append((f"u{user:03d}", f"i{item:03d}", "watch", watched, time))
            if rng.random() < 0.1 * quality[item]:
                rows.append((f"u{user:03d}", f"i{item:03d}", "like", 1.0, time + 1_000))
            if rng.random() < 0.02:
                rows.append((f"u{user:03d}", f"i{item:03d}", "purchase", 1.0, time + 2_000))
    items = [(f"i{item:03d}", f"title {item}", "", 0, float(duration[item])) for item in range(N_ITEMS)]
    return rows, items, duration, quality


def snapshot_of(
    directory: Path, list_source: Callable[..., Any], rows: list[Any], items: list[Any], **changes: Any
) -> Snapshot:
    values = {
        "signals": ("watch", "like", "purchase"),
        "tasks": TASKS,
        "as_of_ms": DAYS * DAY_MS + 10_000,
        "activity": {"min_events": 1},
        "duplicates": {"method": "none"},
        "warehouse_fingerprint": "w",
    }
    directory.mkdir()
    build_snapshot(DatasetStepConfig.model_validate(values | changes), list_source(rows, items, 1_000), directory)
    return Snapshot(directory)


def served(snapshot: Snapshot, k: int = 40) -> np.ndarray:
    """The items with the best rate of ``complete``, as the feature ``item_rate_complete`` knows it."""
    meta, items = snapshot.meta, snapshot.items()
    state = FunnelState.empty(items, FeatureConfig(), meta.signals, meta.tasks)
    assert list(replay(snapshot.events(), snapshot.requests().take(np.zeros(0, dtype=np.int64)), state)) == []
    rate = (state.positives[0] + 1.0) / (state.touches + 2.0)
    names = items.item_id[np.argsort(-rate, kind="stable")[:k]]
    return np.array([int(name[1:]) for name in names])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_short_items_are_over_served_without_the_correction_and_not_with_it(
    tmp_path: Path, list_source: Callable[..., Any], seed: int
) -> None:
    rows, items, duration, quality = world(seed)
    short = duration < np.quantile(duration, 0.25)
    found = {
        name: served(snapshot_of(tmp_path / name, list_source, rows, items, values={"watch": {"method": name}}))
        for name in ("share", "duration_quantile")
    }
    shares = {name: short[chosen].mean() for name, chosen in found.items()}
    assert shares["share"] > 0.5, "a quarter of the items is that short"
    assert shares["duration_quantile"] < 0.3
    # And what is served is what people like: the best sixth of the items would have a mean of 0.92.
    assert quality[found["duration_quantile"]].mean() > 0.75 > quality[found["share"]].mean()


def test_rules_are_fitted_on_the_candidate_part_alone(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    rows, items, _, _ = world(3)
    split = {"ranker_days": 4, "evaluation_days": 4}
    changes: dict[str, Any] = {"values": {"watch": {"method": "duration_quantile"}}, "split": split}
    before = snapshot_of(tmp_path / "a", list_source, rows, items, **changes)
    border = before.meta.borders.candidate_end_ms
    altered = [(*row[:3], row[3] * 7 if row[4] >= border else row[3], row[4]) for row in rows]
    after = snapshot_of(tmp_path / "b", list_source, altered, items, **changes)
    assert before.meta.values == after.meta.values
    assert before.meta.fingerprint != after.meta.fingerprint
    first, second = before.events(), after.events()
    past = first.part == PART_CANDIDATE
    assert first.value[past].tolist() == second.value[past].tolist()
    assert first.value[~past].tolist() != second.value[~past].tolist()
    watched = first.signal == 0
    assert (first.value[watched] <= 1).all() and (first.value[~watched] == 1).all()


def test_every_signal_labels_its_task_with_its_weight(tmp_path: Path, list_source: Callable[..., Any]) -> None:
    rows, items, _, _ = world(4)
    changes = {"values": {"watch": {"method": "duration_quantile"}}}
    snapshot = snapshot_of(tmp_path / "s", list_source, rows, items, **changes)
    targets, requests, events = snapshot.targets(), snapshot.requests(), snapshot.events()
    done: dict[tuple[int, int, int], float] = {}
    for user, item, signal, value in zip(
        events.user_index, events.item_index, events.signal, events.value, strict=True
    ):
        done[user, item, signal] = max(value, done.get((user, item, signal), 0.0))
    users = requests.user_index[targets.request_id]
    for user, item, labels in zip(users, targets.item_index, targets.labels, strict=True):
        assert labels.tolist() == [
            float(done.get((user, item, 0), 0) >= np.float32(0.6)),
            float((user, item, 1) in done),
            float((user, item, 2) in done),
        ]
    assert targets.relevance.tolist() == (targets.labels @ np.array([1.0, 2.0, 4.0])).tolist()
    assert (targets.labels.sum(axis=0) > 10).all()


def test_a_rule_for_an_unknown_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values names signals \['listen'\]"):
        DatasetStepConfig.model_validate(
            {
                "signals": ("watch",),
                "tasks": (Task(name="complete", signals=("watch",), relevance=1.0),),
                "values": {"listen": {"method": "share"}},
                "as_of_ms": 1,
                "warehouse_fingerprint": "w",
            }
        )
