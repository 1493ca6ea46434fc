"""A recipe that keeps ``impression`` among its signals: every stage agrees with plain counting on what was touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import pipeline
from stages.candidate.data.examples import touch_matrix, training_examples
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS, PART_CANDIDATE, PART_EVALUATION, PART_RANKER, CandidateTable
from stages.evaluation.baselines import FirstTouches
from stages.evaluation.evaluate import EvaluationConfig, evaluate
from stages.features.build import ExamplesConfig, build_examples
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState
from stages.release.assemble import popular_list
from stages.settings import load_settings
from stages.sufficiency.sample import draw_past, known_users

ROOT = Path(__file__).resolve().parents[2]
RECIPE: dict[str, Any] = {
    "signals": ["impression", "click", "like", "watch", "purchase"],
    "requests": {"targets_per_request": 1, "max_requests_per_user": None},
}
WINDOW_MS = 7 * DAY_MS


@dataclass(frozen=True)
class World:
    """A snapshot and what plain Python counts in it: ``(time, part, active)`` of the first touch by (user, item)."""

    snapshot: Snapshot
    first: dict[tuple[int, int], tuple[int, int, bool]]
    clicks: list[tuple[int, int, int, int]]  # user, item, time, part

    def seen(self, user: int, time_ms: float) -> set[int]:
        return {item for (other, item), (time, _, _) in self.first.items() if other == user and time < time_ms}


@pytest.fixture(scope="module")
def make_world(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Any]) -> Callable[..., World]:
    environ = {
        "SLUICE_HOME": str(tmp_path_factory.mktemp("touches") / "home"),
        "SLUICE_CONFIGS": str(ROOT / "configs"),
    }

    def make(**overrides: Any) -> World:
        settings = load_settings(environ, data="synthetic", overrides={**tiny, "dataset": RECIPE, **overrides})
        snapshot = Snapshot(pipeline.run_all(settings, until="dataset")["dataset"].directory)
        return count(snapshot)

    return make


def count(snapshot: Snapshot) -> World:
    events = snapshot.events()
    first: dict[tuple[int, int], tuple[int, int, bool]] = {}
    clicks = []
    columns = (events.user_index, events.item_index, events.signal, events.event_time_ms, events.part, events.active)
    for user, item, signal, time, part, active in zip(*(column.tolist() for column in columns), strict=True):
        if snapshot.meta.signals[signal] != "impression":
            first.setdefault((user, item), (time, part, active))
        if snapshot.meta.signals[signal] == "click":
            clicks.append((user, item, time, part))
    return World(snapshot, first, clicks)


@pytest.fixture(scope="module")
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture(scope="module")
def retrieved(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One candidate for every request, and towers of nothing."""
    root = tmp_path_factory.mktemp("retrieved")
    requests = world.snapshot.requests()
    zeros = np.zeros(len(requests), dtype=np.int64)
    table = CandidateTable(
        request_id=requests.request_id,
        item_index=zeros,
        score=zeros.astype(np.float32),
        rank=zeros.astype(np.int32),
        source=zeros.astype(np.int8),
    )
    table.write(root / "candidates.parquet")
    np.save(root / "item_vectors.npy", np.zeros((world.snapshot.n_items(), 2), dtype=np.float32))
    return {"snapshot": world.snapshot.directory, "retrieve": root, "candidate": root}


def test_the_world_shows_much_more_than_is_touched(world: World) -> None:
    events = world.snapshot.events()
    pairs = set(zip(events.user_index.tolist(), events.item_index.tolist(), strict=True))
    assert 0 < 2 * len(world.first) < len(pairs)


def test_requests_ask_for_first_touches(world: World) -> None:
    requests, targets = world.snapshot.requests(), world.snapshot.targets()
    rows = targets.request_id
    columns = (requests.user_index[rows], targets.item_index, requests.request_time_ms[rows], requests.part[rows])
    found = Counter(zip(*(column.tolist() for column in columns), strict=True))
    wanted = set()
    for user, item, time, part in world.clicks:
        began, where, active = world.first[user, item]
        if where == part != PART_CANDIDATE and time < began + WINDOW_MS and (active or part == PART_EVALUATION):
            wanted.add((user, item, began, part))
    assert found == Counter(wanted)
    assert {part for *_, part in wanted} == {PART_RANKER, PART_EVALUATION}


def test_the_ledger_and_its_baselines_count_touches(world: World, retrieved: dict[str, Path], tmp_path: Path) -> None:
    evaluate(EvaluationConfig(stages=(), candidate_k=20), retrieved, tmp_path)
    slices = {entry["name"]: entry["requests"] for entry in read_json(tmp_path / "ledger.json")["slices"]}
    requests, meta = world.snapshot.requests(), world.snapshot.meta
    asked = requests.take(requests.part == PART_EVALUATION)
    keys = list(zip(asked.user_index.tolist(), asked.request_time_ms.tolist(), strict=True))
    seen = [world.seen(user, time) for user, time in keys]
    trained = {user for (user, _), (_, part, _) in world.first.items() if part != PART_EVALUATION}
    wanted = {
        "warm users": sum(user in trained for user, _ in keys),
        "history 0": sum(not items for items in seen),
        "history 6-20": sum(6 <= len(items) <= 20 for items in seen),
        "history >20": sum(len(items) > 20 for items in seen),
    }
    assert {name: slices[name] for name in wanted} == wanted
    touches = FirstTouches(world.snapshot.events(), meta.touching)
    assert [set(touches.touched(user, time).tolist()) for user, time in keys] == seen


def test_the_popular_list_counts_touches(world: World) -> None:
    names = world.snapshot.items().item_id
    wanted = Counter(str(names[item]) for _, item in world.first)
    found = {entry["item_id"]: entry["score"] for entry in popular_list(world.snapshot, len(names), None)}
    assert {name: score for name, score in found.items() if score} == wanted


def test_the_state_has_seen_what_was_touched(world: World, retrieved: dict[str, Path], tmp_path: Path) -> None:
    build_examples(ExamplesConfig(), retrieved, tmp_path)
    meta, items = world.snapshot.meta, world.snapshot.items()
    state = FunnelState.load(tmp_path / "state", items, FeatureConfig(), meta.signals, meta.tasks, meta.context)
    for user in range(world.snapshot.n_users()):
        assert set(state.touched(user).tolist()) == world.seen(user, float("inf"))
    counts = Counter(item for _, item in world.first)
    assert state.touches.tolist() == [counts[item] for item in range(len(items))]


def test_training_and_the_report_learn_from_touches(world: World) -> None:
    snapshot = world.snapshot
    n_items = snapshot.n_items()
    wanted = {pair for pair, (_, part, active) in world.first.items() if part == PART_CANDIDATE and active}
    examples = training_examples(snapshot.events(), snapshot.meta, FeatureConfig())
    assert set(zip(examples.users.tolist(), examples.items.tolist(), strict=True)) == wanted
    assert touch_matrix(examples, n_items).nnz == len(wanted)
    known = known_users(snapshot)
    past = draw_past(snapshot, known, np.zeros(0, dtype=np.int64), len(known))
    assert set(zip(past.users[past.user].tolist(), past.item_index.tolist(), strict=True)) == wanted


def test_a_recipe_that_names_other_exposures_is_followed(make_world: Callable[..., World]) -> None:
    """Where nothing is an exposure, an impression is the first touch; the snapshot says so and has another hash."""
    chosen, usual = make_world(features={"exposure_signals": []}).snapshot, make_world().snapshot
    assert (chosen.meta.exposure_signals, usual.meta.exposure_signals) == ((), ("impression",))
    assert chosen.meta.touching.all() and chosen.meta.fingerprint != usual.meta.fingerprint
    names = chosen.items().item_id
    pairs = set(zip(chosen.events().user_index.tolist(), chosen.events().item_index.tolist(), strict=True))
    assert sum(entry["score"] for entry in popular_list(chosen, len(names), None)) == len(pairs)
