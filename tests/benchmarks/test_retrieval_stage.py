"""The product's candidate stage on a protocol's rows: its snapshot, its answers, what it learns from; settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.product_steps import workplace
from benchmarks.retrieval.registry import RECIPES, REPLAYED, STATIC, configure, read_recipe, recipe_path
from benchmarks.retrieval.replay.protocols import REPLAYS
from benchmarks.retrieval.static.protocols import PROTOCOLS
from benchmarks.retrieval.static.stage import (
    LearnedMixture,
    Quotas,
    TwoTower,
    held_out,
    in_time_order,
    rows_to_answer,
    rows_to_learn_from,
)
from stages.candidate.config import CandidateConfig
from stages.candidate.data.examples import training_examples
from stages.candidate.generators.files import read_summary
from stages.candidate.onnx_towers import UserTower
from stages.candidate.retrieval import fit_mixture as fitting
from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig
from stages.features.history import Moment, tower_inputs
from stages.features.state import History

SMALL = CandidateConfig(
    model={"dimension": 8, "category_dimension": 4, "hidden": (8,)},
    training={"epochs": 1, "batch_size": 64},
    distributed={"device": "cpu"},
)
FEATURES = FeatureConfig(history_length=4)


def made_rows() -> Interactions:
    """Users 0 to 28 in a time order of their own; user 29 and item 8 have no row."""
    rng = np.random.default_rng(2)
    user, item = np.nonzero(rng.random((29, 8)) < 0.5)
    return Interactions(user, item, rng.permutation(len(user)) // 3, 30, 9)


@pytest.fixture
def rows() -> Interactions:
    return made_rows()


def latest(rows: Interactions, user: int, length: int) -> list[int]:
    mine = np.flatnonzero(rows.user == user)
    order = sorted(mine.tolist(), key=lambda row: (rows.time[row], row), reverse=True)
    return rows.item[order].tolist()[:length]


def test_all_users_ask_a_second_after_their_latest_row(rows: Interactions, tmp_path: Path) -> None:
    made = rows_to_answer(rows)
    made.write(tmp_path, "f" * 64)
    snapshot = Snapshot(tmp_path)
    requests = snapshot.requests()
    assert requests.user_index.tolist() == list(range(30)) and (requests.part == 2).all()
    assert len(snapshot.targets().request_id) == 0
    assert (len(snapshot.items()), len(snapshot.user_ids())) == (9, 30)
    examples = training_examples(snapshot.events(), snapshot.meta, FEATURES)
    assert len(examples) == len(rows)
    ends = np.flatnonzero(np.append(np.diff(examples.users) != 0, True)) + 1
    for user, end in zip(examples.users[ends - 1].tolist(), ends.tolist(), strict=True):
        start = int(examples.start[end - 1])
        assert examples.items[start:end][::-1].tolist() == latest(rows, user, 9)
        mine = np.sort(rows.time[rows.user == user])
        ages = int(requests.request_time_ms[user]) - examples.times_ms[start:end]
        assert ages.tolist() == ((mine[-1] - mine + 1) * 1000).tolist()
    borders = snapshot.meta.borders
    assert snapshot.events().event_time_ms.max() < borders.candidate_end_ms <= requests.request_time_ms.min()


def test_rows_without_times_keep_the_order_of_the_file(rows: Interactions) -> None:
    user, item, time_ms, moment_ms = in_time_order(dataclasses.replace(rows, time=None))
    for one in range(29):
        assert item[user == one].tolist() == rows.item[rows.user == one].tolist()
        assert (moment_ms - time_ms[user == one]).tolist() == [
            1000 * place for place in range((user == one).sum(), 0, -1)
        ]


def test_held_out_rows_are_the_targets_of_requests_and_no_events(rows: Interactions, tmp_path: Path) -> None:
    cut = held_out(rows, "share", 3)
    assert 0.15 < len(cut.test) / len(rows) < 0.25
    made = rows_to_learn_from(cut, 3)
    made.write(tmp_path, "f" * 64)
    snapshot = Snapshot(tmp_path)
    requests, targets, events = snapshot.requests(), snapshot.targets(), snapshot.events()
    assert (requests.part == 1).all() and (np.diff(requests.user_index) < 0).any(), "in random order"
    asked = {(int(requests.user_index[r]), int(i)) for r, i in zip(targets.request_id, targets.item_index, strict=True)}
    assert asked == set(zip(cut.test.user.tolist(), cut.test.item.tolist(), strict=True))
    assert not asked & set(zip(events.user_index.tolist(), events.item_index.tolist(), strict=True))
    assert len(asked) + len(events) == len(rows)
    last = held_out(rows, "last", 3)
    assert [latest(rows, user, 1)[0] for user in last.test.user.tolist()] == last.test.item.tolist()


@pytest.fixture(scope="module")
def trained_once(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Interactions, Any]:
    """The real steps on real rows, once."""
    from tests.candidate.one_rank import in_this_process

    rows, work = made_rows(), tmp_path_factory.mktemp("work")
    with workplace(work), in_this_process():
        return work, rows, TwoTower(candidate=SMALL, features=FEATURES, candidate_k=5).fit(rows, 5)


def finished(work: Path, step: str) -> list[Path]:
    return sorted((work / step).glob("[0-9a-f]*"))


def test_answers_are_the_nearest_items_of_what_the_step_exported(trained_once: tuple[Path, Interactions, Any]) -> None:
    """The same settings, rows and seed find the finished steps again; a user without rows gets what is popular."""
    work, rows, scorer = trained_once
    with workplace(work):
        again = TwoTower(candidate=SMALL, features=FEATURES, candidate_k=5).fit(rows, 5)
    np.testing.assert_array_equal(again(np.arange(30)), scorer(np.arange(30)))
    (directory,) = finished(work, "train_candidate")
    tower, vectors = UserTower(directory / "user_tower.onnx"), np.load(directory / "item_vectors.npy")
    for user in (3, 8):
        newest = np.array(latest(rows, user, 4))
        times = np.sort(rows.time[rows.user == user])[::-1][: len(newest)] * 1000
        history = History(newest, times, np.zeros(len(newest), np.int16), np.ones(len(newest), np.float32))
        asked = Moment(int(times[0]) + 1000, -1, ())
        products = (tower.embed(tower_inputs([history], [asked], FEATURES, 9)) @ vectors.T).reshape(-1, 9).max(axis=0)
        products[latest(rows, user, 9)] = -np.inf
        (found,) = scorer(np.array([user]))
        wanted = min(5, 9 - len(latest(rows, user, 9)))
        assert np.isfinite(found).sum() == wanted
        assert np.argsort(-found, kind="stable")[:wanted].tolist() == np.argsort(-products)[:wanted].tolist()
    (popular,) = scorer(np.array([29]))
    counts = np.bincount(rows.item, minlength=9)
    assert counts[np.argsort(-popular)[:5]].tolist() == sorted(counts, reverse=True)[:5]


def test_what_is_learned_on_held_out_rows_is_taken_over_for_all_rows(
    trained_once: tuple[Path, Interactions, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.candidate.one_rank import in_this_process

    work, rows, _ = trained_once
    monkeypatch.setattr(fitting, "choose", lambda *_: fitting.Choice(True, "asked for"))
    settings = {
        "two_tower": {"candidate": SMALL.model_dump(), "features": FEATURES.model_dump(), "candidate_k": 5},
        "sources": {"names": ["tower", "item_knn"], "quotas": "learned", "mixture": {"epochs": 1}},
    }
    before = finished(work, "train_sources")
    with workplace(work), in_this_process():
        scorer = LearnedMixture(**settings).fit(rows, 5)
    (first, second) = sorted(set(finished(work, "train_sources")) - set(before), key=lambda path: path.stat().st_mtime)
    learned, taken = (read_summary(each / "sources", 9) for each in (first, second))
    assert (learned.config.learned_from, taken.config.learned_from) == (None, str(first))
    assert (learned.mixture, learned.quotas) == (taken.mixture, taken.quotas) and taken.mixture is not None
    assert learned.files["item_knn_weights.npy"] != taken.files["item_knn_weights.npy"]
    assert len(finished(work, "train_candidate")) == 2, "one on some rows, and the one on all rows was there already"
    found = scorer(np.arange(29))
    assert not np.isfinite(found[rows.matrix[:29].nonzero()]).any()


def test_the_kind_of_mixture_is_that_of_the_model() -> None:
    for kind, model in (("quotas", Quotas), ("learned", LearnedMixture)):
        assert model().sources.mixture.kind == kind and model().sources.blends
        assert model(sources={"names": ["tower", "ease"], "mixture": {"pool": 300}}).sources.mixture.pool == 300
        assert model(sources=Quotas().sources).sources.mixture.kind == kind


def test_settings_reach_into_parts() -> None:
    chosen = configure(
        STATIC,
        ["quotas", "ease"],
        {
            "two_tower": {"candidate": {"model": {"hidden": [8]}, "training": {"epochs": 3}}, "candidate_k": 50},
            "quotas": {"sources": {"names": ["tower", "ease"]}},
        },
        [
            "two_tower.candidate.training.epochs=5",
            "quotas.sources.ease.regularisation=3",
            "two_tower.candidate.model.hidden=[]",
        ],
    )
    assert list(chosen) == ["two_tower", "quotas", "ease"]
    assert chosen["quotas"].two_tower == chosen["two_tower"]
    tower = chosen["two_tower"]
    assert (tower.candidate.training.epochs, tower.candidate.model.hidden, tower.candidate_k) == (5, (), 50)
    assert chosen["quotas"].sources.model_extra["ease"].regularisation == 3
    with pytest.raises(ConfigError, match=r"--set two_tower: candidate\.training\.epoch: unknown key"):
        configure(STATIC, ["two_tower"], {}, ["two_tower.candidate.training.epoch=5"])
    with pytest.raises(ConfigError, match=r"sources\.trend: unknown key"):
        configure(STATIC, ["quotas"], {}, ["quotas.sources.trend=5"])


@pytest.mark.parametrize("protocol", ["m1", "amazoncds-m1"])
def test_protocols_of_the_same_files_share_a_recipe(protocol: str) -> None:
    own = RECIPES / f"{protocol}.yaml"
    expected = own if own.is_file() else RECIPES / "ml-1m-m1.yaml"
    assert recipe_path(None, protocol) == expected
    assert "two_tower" in read_recipe(None, protocol, STATIC)
    assert recipe_path(Path("mine.yaml"), protocol) == Path("mine.yaml")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_of_a_protocol_and_its_models(path: Path) -> None:
    known = REPLAYED if path.stem in REPLAYS else STATIC
    assert path.stem in {*PROTOCOLS, *REPLAYS}
    settings = read_recipe(None, path.stem, known)
    assert settings == read_recipe(path, "another", known)
    found = configure(known, list(settings), settings, [])
    written = yaml.safe_load(path.read_text())
    for name, section in written["two_tower"]["candidate"].items():
        for key, value in section.items():
            got = getattr(getattr(found["two_tower"].candidate, name), key)
            assert (list(got) if isinstance(got, tuple) else got) == value
    for name in ("quotas", "learned_mixture"):
        assert found[name].sources.names == tuple(written[name]["sources"]["names"])
        assert found[name].sources.learns


def test_recipes_name_known_models(tmp_path: Path) -> None:
    assert read_recipe(None, "nothing", STATIC) == {}
    (tmp_path / "odd.yaml").write_text("three_tower: {}\n")
    with pytest.raises(ConfigError, match=r"odd\.yaml: three_tower: allowed are settings of popularity"):
        read_recipe(tmp_path / "odd.yaml", "ml-100k", STATIC)
