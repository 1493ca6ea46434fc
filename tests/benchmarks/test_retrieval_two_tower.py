"""From a protocol's rows to the product's snapshot and back to scores; the blend; settings from recipes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.retrieval import product_towers as towers
from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.product_towers import TouchHistories, Trained, in_time_order, shuffled, train_towers
from benchmarks.retrieval.registry import RECIPES, REPLAYED, STATIC, configure, read_recipe, recipe_path
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.protocols import REPLAYS
from benchmarks.retrieval.replay.two_tower import ReplayTwoTower
from benchmarks.retrieval.static import two_tower
from benchmarks.retrieval.static.judge import judge
from benchmarks.retrieval.static.protocols import PROTOCOLS
from benchmarks.retrieval.static.two_tower import Blend, TwoTower, blended, standardised
from stages.candidate.config import CandidateConfig
from stages.candidate.data.examples import first_touches, training_examples
from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig
from stages.features.history import TowerInputs

SMALL = CandidateConfig(
    model={"dimension": 8, "category_dimension": 4, "hidden": (8,)},
    training={"epochs": 1, "batch_size": 64},
    distributed={"device": "cpu"},
)
FEATURES = FeatureConfig(history_length=4)


@pytest.fixture
def rows() -> Interactions:
    """Users 0 to 28 in a time order of their own; user 29 and item 8 have no row."""
    rng = np.random.default_rng(2)
    user, item = np.nonzero(rng.random((29, 8)) < 0.5)
    return Interactions(user, item, rng.permutation(len(user)) // 3, 30, 9)


def latest(rows: Interactions, user: int, length: int) -> list[int]:
    mine = np.flatnonzero(rows.user == user)
    order = sorted(mine.tolist(), key=lambda row: (rows.time[row], row), reverse=True)
    return rows.item[order].tolist()[:length]


class Reading:
    """A tower that returns what it reads."""

    def embed(self, inputs: TowerInputs) -> np.ndarray:
        return np.concatenate([inputs.items, inputs.ages], axis=1).astype(np.float32)


def test_rows_become_a_snapshot_that_the_product_reads(rows: Interactions, tmp_path: Path) -> None:
    user, item, time_ms = in_time_order(rows)
    towers.write_snapshot(tmp_path, towers.event_table(user, item, time_ms), rows.users, rows.items, "f" * 64)
    snapshot = Snapshot(tmp_path)
    assert len(snapshot.requests()) == 0
    assert len(snapshot.targets().request_id) == 0
    assert (len(snapshot.items()), len(snapshot.user_ids())) == (9, 30)
    examples = training_examples(snapshot.events(), snapshot.meta, FEATURES)
    assert len(examples) == len(rows)
    ends = np.flatnonzero(np.append(np.diff(examples.users) != 0, True)) + 1
    for user, end in zip(examples.users[ends - 1].tolist(), ends.tolist(), strict=True):
        start = int(examples.start[end - 1])
        assert examples.items[start:end][::-1].tolist() == latest(rows, user, 9)


def test_rows_without_times_keep_the_order_of_the_file(rows: Interactions) -> None:
    user, item, time_ms = in_time_order(dataclasses.replace(rows, time=None))
    assert user.tolist() == rows.user.tolist()
    assert item.tolist() == rows.item.tolist()
    assert time_ms.tolist() == [1000 * place for place in range(len(rows))]


def test_histories_are_those_of_the_product(rows: Interactions) -> None:
    """Against the examples' own window, a second after the latest touch."""
    ordered = in_time_order(rows)
    histories = TouchHistories(*ordered, 4, 9)
    start, end = histories.before(np.arange(30), len(rows))
    found = histories.inputs(start, end, None)
    examples = first_touches(towers.event_table(*ordered))
    last = np.flatnonzero(np.append(np.diff(examples.users) != 0, True))
    asked = examples.times_ms[last] + 1000
    wanted = examples.window(examples.start[last], last + 1, asked, last, 4, 9)
    known = examples.users[last]
    for name in ("items", "signals", "ages", "context"):
        np.testing.assert_array_equal(getattr(found, name)[known], getattr(wanted, name))
    assert found.items[29].tolist() == [9] * 4
    assert (found.users == -1).all()


def test_histories_stop_before_the_place_that_is_asked_for() -> None:
    user, item = np.array([0, 1, 0, 0, 1, 0]), np.array([3, 3, 4, 3, 5, 6])
    histories = TouchHistories(user, item, np.array([0, 1, 2, 4, 7, 9]) * 1000, 3, 7)
    start, end = histories.before(np.array([0, 0, 1, 0, 2]), np.array([0, 3, 4, 5, 6]))
    inputs = histories.inputs(start, end, np.array([0, 4, 7, 9, 9]) * 1000)
    assert inputs.items.tolist() == [[7, 7, 7], [4, 3, 7], [3, 7, 7], [4, 3, 7], [7, 7, 7]], (
        "3 counts where it came first"
    )
    assert inputs.ages.tolist() == [[0, 0, 0], [2, 4, 0], [6, 0, 0], [7, 9, 0], [0, 0, 0]]


def test_random_orders_are_users_of_their_own(rows: Interactions) -> None:
    found = shuffled(rows, 3, 1)
    assert found.users == 90
    orders = []
    for copy in range(3):
        mine = [latest(found, user + 30 * copy, 9) for user in range(30)]
        assert [sorted(each) for each in mine] == [sorted(rows.item[rows.user == user].tolist()) for user in range(30)]
        orders.append(mine)
    assert orders[0] != orders[1] != orders[2]
    assert latest(shuffled(rows, 3, 1), 4, 9) == orders[0][4]
    assert [latest(shuffled(rows, 1, 2), user, 9) for user in range(30)] != orders[0]


def test_the_best_taste_counts() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    trained = Trained(Reading(), vectors)
    single = trained.scores(np.array([[2, 3]], dtype=np.float32))
    assert single.tolist() == [[2, 3, -2]]
    assert trained.scores(np.array([[[2, 3], [-5, 0]]], dtype=np.float32)).tolist() == [[2, 3, 5]]


@pytest.fixture(scope="module")
def trained_once(one_rank: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Interactions, Trained]:
    """The real step on real rows, once."""
    from tests.candidate.one_rank import in_this_process

    rng = np.random.default_rng(2)
    user, item = np.nonzero(rng.random((29, 8)) < 0.5)
    rows, work = Interactions(user, item, rng.permutation(len(user)), 30, 9), tmp_path_factory.mktemp("work")
    with towers.workplace(work), in_this_process():
        return work, rows, train_towers(rows, SMALL.changed(training={"seed": 5}), FEATURES)


def test_scores_are_products_of_what_the_step_exported(trained_once: tuple[Path, Interactions, Trained]) -> None:
    """The same settings, rows and seed find the finished step again; a user without rows gets what is popular."""
    work, rows, trained = trained_once
    with towers.workplace(work):
        scorer = TwoTower(candidate=SMALL, features=FEATURES).fit(rows, 5)
    assert len(list((work / "train_candidate").glob("[0-9a-f]*"))) == 1
    (directory,) = (work / "train_candidate").glob("[0-9a-f]*")
    vectors = np.load(directory / "item_vectors.npy")
    items = np.full((1, 4), 9, dtype=np.int64)
    newest = latest(rows, 3, 4)
    items[0, : len(newest)] = newest
    histories = TouchHistories(*in_time_order(rows), 4, 9)
    inputs = histories.inputs(*histories.before(np.array([3]), len(rows)), None)
    assert inputs.items.tolist() == items.tolist()
    np.testing.assert_allclose(scorer(np.array([8, 3]))[1], trained.tower.embed(inputs)[0] @ vectors.T, atol=1e-6)
    assert scorer(np.array([29]))[0].tolist() == np.bincount(rows.item, minlength=9).tolist()


def test_standardised_scores() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 5.0, 5.0]])
    found = standardised(scores)
    np.testing.assert_allclose(found[0], (scores[0] - scores[0].mean()) / scores[0].std(), rtol=1e-6)
    assert found[1].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(blended(scores, -3 * scores, 0.25), 0.75 * found, atol=1e-6)


@pytest.mark.parametrize(("sign", "best"), [(1.0, "closed form"), (-1.0, "tower")])
def test_a_blend_chooses_the_weight_on_rows_of_training(
    monkeypatch: pytest.MonkeyPatch, sign: float, best: str
) -> None:
    """The closed form knows each user's last training item, or the contrary; the tower knows nothing."""
    rows = Interactions(np.repeat(np.arange(40), 5), np.tile(np.arange(200) % 23, 1), np.arange(200), 40, 23)
    last = {user: latest(rows, user, 1)[0] for user in range(40)}
    asked: list[int] = []

    def knowing(train: Interactions, seed: int):
        asked.append(len(train))

        def score(users: np.ndarray) -> np.ndarray:
            scores = np.zeros((len(users), 23), dtype=np.float32)
            scores[np.arange(len(users)), [last[user] for user in users.tolist()]] = sign
            return scores

        return score

    def random(train: Interactions, seed: int):
        table = np.random.default_rng(0).normal(size=(40, 23)).astype(np.float32)
        return lambda users: table[users]

    monkeypatch.setattr(two_tower.BlendEase, "fit", lambda self, train, seed: knowing(train, seed))
    monkeypatch.setattr(TwoTower, "fit", lambda self, train, seed: random(train, seed))
    blend = Blend()
    weight = blend._chosen(rows, 1)
    assert asked == [160]
    assert (weight >= 1.0) if best == "closed form" else (weight == 0.0)
    chosen, fixed = blend.fit(rows, 1), Blend(weight=weight).fit(rows, 1)
    np.testing.assert_array_equal(chosen(np.arange(9)), fixed(np.arange(9)))
    split = Split(two_tower.held_out(rows, "last", 1).train, two_tower.held_out(rows, "last", 1).test)
    scores = {one: judge(Blend(weight=one).fit(split.train, 1), split, 10)["ndcg"].mean() for one in (0.0, weight, 3.0)}
    assert max(scores.values()) == scores[weight]


def test_what_a_blend_holds_out(rows: Interactions) -> None:
    cut = two_tower.held_out(rows, "share", 3)
    assert 0.15 < len(cut.test) / len(rows) < 0.25
    assert len(cut.train) + len(cut.test) == len(rows)
    last = two_tower.held_out(rows, "last", 3)
    assert [latest(rows, user, 1)[0] for user in last.test.user.tolist()] == last.test.item.tolist()
    with pytest.raises(ValueError, match="metric = 'auc': allowed are ndcg, recall"):
        Blend(metric="auc")


def test_a_replay_embeds_the_history_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items 0 to 3 are known from training; an event sees those of its user before it and none of its own block's."""
    log = Log(
        np.array([0, 1, 0, 1, 0, 2, 0, 0]),
        np.array([0, 1, 2, 3, 1, 4, 4, 3]),
        np.array([0, 1, 2, 3, 5, 6, 7, 9]) * 1000,
    )
    seen: list[Interactions] = []

    def reading(rows: Interactions, candidate: CandidateConfig, features: FeatureConfig) -> Trained:
        seen.append(rows)
        return Trained(Reading(), np.eye(4, 6, dtype=np.float32))  # the four first numbers of what it reads

    monkeypatch.setattr("benchmarks.retrieval.replay.two_tower.train_towers", reading)
    model = ReplayTwoTower(features=FeatureConfig(history_length=3))
    walk = model.prepare(log, 4)
    assert (seen[0].users, seen[0].items, len(seen[0])) == (2, 4, 4)
    pool = walk(slice(4, 8))
    assert pool.items.tolist() == [0, 1, 2, 3]
    # Three items, newest first, then the newest one's age.
    assert pool.scores.tolist() == [[2, 0, 4, 3], [1, 1, 1, 1], [1, 2, 0, 2], [1, 2, 0, 4]]


def test_settings_reach_into_parts() -> None:
    chosen = configure(
        STATIC,
        ["blend", "ease"],
        {
            "two_tower": {"candidate": {"model": {"hidden": [8]}, "training": {"epochs": 3}}, "orders": 1},
            "blend": {"weight": 0.5},
        },
        ["two_tower.candidate.training.epochs=5", "blend.ease.decay=3", "two_tower.candidate.model.hidden=[]"],
    )
    assert list(chosen) == ["two_tower", "blend", "ease"]
    assert chosen["blend"].two_tower == chosen["two_tower"]
    tower = chosen["two_tower"]
    assert (tower.candidate.training.epochs, tower.candidate.model.hidden, tower.orders) == (5, (), 1)
    assert (chosen["blend"].ease.decay, chosen["blend"].weight) == (3, 0.5)
    with pytest.raises(ConfigError, match=r"--set two_tower: candidate\.training\.epoch: unknown key"):
        configure(STATIC, ["two_tower"], {}, ["two_tower.candidate.training.epoch=5"])


def test_rows_are_not_held_out_of_one_of_several_orders() -> None:
    stopping = {"training": {"early_stopping": {"hold_out": "random"}}}
    with pytest.raises(ValueError, match=r"orders = 2 with candidate.training.early_stopping: what is held out of one"):
        TwoTower(orders=2, candidate=CandidateConfig(**stopping))
    assert TwoTower(candidate=CandidateConfig(**stopping)).orders == 0


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


def test_recipes_name_known_models(tmp_path: Path) -> None:
    assert read_recipe(None, "nothing", STATIC) == {}
    (tmp_path / "odd.yaml").write_text("three_tower: {}\n")
    with pytest.raises(ConfigError, match=r"odd\.yaml: three_tower: allowed are settings of popularity"):
        read_recipe(tmp_path / "odd.yaml", "ml-100k", STATIC)
