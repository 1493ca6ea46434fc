"""The list for users without history: the best of those that the state can answer with, by measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import NewcomersConfig, SourcesConfig, TrainSourcesConfig
from stages.candidate.generators.files import read_summary
from stages.candidate.generators.newcomers import newcomer_lists, popular_half_life
from stages.candidate.generators.trending import Trending
from stages.candidate.retrieval.choose_newcomers import choose_newcomers
from stages.candidate.retrieval.fit_generators import train_sources
from stages.contracts.errors import ReleaseError
from stages.contracts.newcomers import NewcomerList
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS, EventTable
from stages.features.config import FeatureConfig, TrendingConfig

HOUR = DAY_MS // 24
N_ITEMS, N_OLD = 40, 12
START, CANDIDATE_END, RANKER_END, AS_OF = 0, 20 * DAY_MS, 24 * DAY_MS, 28 * DAY_MS
FEATURES = FeatureConfig(half_lives_days=(1.0, 7.0, 30.0))


@pytest.fixture(scope="module")
def fashions(snapshot_writer, event_table, request_table, tmp_path_factory) -> Path:
    """Each day has its own fashion: most of its touches are of five items. Old items were touched by everybody."""
    rng = np.random.default_rng(4)
    rows, asked, targets = [], [], []
    for user in range(200):
        rows += [(user, item, item * HOUR) for item in range(N_OLD)]
    for user in range(200, 500):
        first_ms = int(rng.integers(10 * DAY_MS, AS_OF - HOUR))
        fashion = N_OLD + first_ms // DAY_MS % 7 * 4
        items = fashion + rng.permutation(4)[:3]
        rows += [(user, int(item), first_ms + place * HOUR // 4) for place, item in enumerate(items)]
        if first_ms >= CANDIDATE_END:
            asked.append((first_ms, user, int(items[0])))
    asked.sort()
    user, item, time_ms = np.array(sorted(rows, key=lambda row: (row[2], row[0]))).T
    part = (time_ms >= CANDIDATE_END).astype(int) + (time_ms >= RANKER_END)
    times, users, wanted = np.array(asked).T
    requests = request_table(
        request_id=np.arange(len(asked)),
        user_index=users,
        request_time_ms=times,
        part=(1 + (times >= RANKER_END)).astype(np.int8),
    )
    targets = np.arange(len(asked)), wanted
    directory = tmp_path_factory.mktemp("fashions")
    events = event_table(user, item, time_ms, part)
    snapshot_writer(directory, events, requests, targets, np.zeros(N_ITEMS, np.int64), [[0]] * N_ITEMS)
    return directory


def config_of(**newcomers: object) -> TrainSourcesConfig:
    sources = SourcesConfig(newcomers=NewcomersConfig(**newcomers))
    return TrainSourcesConfig(sources=sources, candidate_k=20, features=FEATURES)


def plain_ndcg(directory: Path, half_life_days: float | None, part: int) -> float:
    """Count all touches before each request anew."""
    snapshot = Snapshot(directory)
    events, requests, targets = snapshot.events(), snapshot.requests(), snapshot.targets()
    gains = []
    for row in np.flatnonzero(requests.part == part):
        time_ms = requests.request_time_ms[row]
        before = events.event_time_ms < time_ms
        weights = np.ones(int(before.sum()))
        if half_life_days is not None:
            weights = 2.0 ** ((events.event_time_ms[before] - time_ms) / (half_life_days * DAY_MS))
        scores = np.bincount(events.item_index[before], weights, minlength=N_ITEMS).astype(np.float32)
        order = np.lexsort((np.arange(N_ITEMS), -scores))[:10].tolist()
        wanted = int(targets.item_index[targets.request_id == row][0])
        gains.append(1 / np.log2(order.index(wanted) + 2) if wanted in order else 0.0)
    return float(np.mean(gains))


def test_the_best_list_by_measurement_is_chosen(fashions: Path) -> None:
    chosen = choose_newcomers(config_of(), Snapshot(fashions), None)
    assert (chosen.name, chosen.half_life_days, chosen.generator) == ("half_life_1d", 1.0, None)
    assert chosen.measured_on == "no_history" and chosen.requests >= 50
    days = {"half_life_30d": 30.0, "half_life_7d": 7.0, "half_life_1d": 1.0, "all_time": None}
    assert list(chosen.measured) == list(days)
    for name, half_life in days.items():
        assert chosen.measured[name] == pytest.approx(plain_ndcg(fashions, half_life, 1), abs=1e-9), name
    assert f"NDCG@10 {chosen.measured['half_life_1d']:.4f}" in chosen.reason and "all_time" in chosen.reason


def test_nothing_of_the_evaluation_period_is_read(fashions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = choose_newcomers(config_of(), Snapshot(fashions), None)
    events = Snapshot(fashions).events()
    cut = events.take(events.event_time_ms < RANKER_END)
    monkeypatch.setattr(Snapshot, "events", lambda self: EventTable(**vars(cut)))
    assert choose_newcomers(config_of(), Snapshot(fashions), None) == before


def test_where_few_are_without_history_all_requests_are_measured_and_below_that_none(fashions: Path) -> None:
    everybody = choose_newcomers(config_of(max_requests=20), Snapshot(fashions), None)
    assert (everybody.requests, everybody.measured_on) == (20, "no_history")
    none = choose_newcomers(config_of(min_requests=10_000), Snapshot(fashions), None)
    assert (none.name, none.measured_on, none.requests) == ("half_life_30d", "none", 0)
    assert "not measured" in none.reason
    named = choose_newcomers(config_of(list="all_time"), Snapshot(fashions), None)
    assert (named.name, named.half_life_days, named.measured) == ("all_time", None, {})


def test_a_list_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"sources\.newcomers\.list = 'half_life_2d': allowed are measured, "):
        config_of(list="half_life_2d")
    with pytest.raises(ReleaseError, match=r"newcomers\.half_life_days = 2\.0, the state counts \[1\.0, 7\.0, 30\.0\]"):
        popular_half_life(NewcomerList(name="half_life_2d", half_life_days=2.0), FEATURES)
    assert [popular_half_life(each, FEATURES) for each in newcomer_lists(FEATURES, ()).values()] == [2, 1, 0, None]
    assert popular_half_life(None, FEATURES) == 2


def test_in_the_planted_world_four_newcomers_are_too_few(planted: Path, trained: Path, indexed: Path, tmp_path) -> None:
    features = FeatureConfig(history_length=8, history_decay=4.0, half_lives_days=(1e-5, 1e-4))
    sources = SourcesConfig(
        names=("tower", "trending"), trending=TrendingConfig(windows_minutes=(0.01, 0.05), weights=(1.0, 0.5))
    )
    inputs = {"snapshot": planted, "candidate": trained, "index": indexed}
    config = TrainSourcesConfig(sources=sources, candidate_k=8, features=features)
    metrics, info = train_sources(config, inputs, tmp_path)
    chosen = read_summary(tmp_path / "sources", 60).newcomers
    assert chosen is not None and (chosen.measured_on, chosen.requests) == ("all", 160)
    assert set(chosen.measured) == {"trending", "half_life_0.0001d", "half_life_1e-05d", "all_time"}
    assert chosen.measured[chosen.name] == max(chosen.measured.values())
    assert {f"newcomers_ndcg_{name}": value for name, value in chosen.measured.items()}.items() <= metrics.items()
    assert info["newcomers"] == chosen.name
    blend = Blend.load(tmp_path / "sources", 60)
    assert blend is not None and blend.newcomer_generators == ("trending",)
    assert [each.name for each in blend._answering(chosen)] == [chosen.generator] * (chosen.generator is not None)
    assert isinstance(blend._answering(None)[0], Trending)
