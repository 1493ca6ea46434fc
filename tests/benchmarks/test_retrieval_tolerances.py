"""Small versions of the benchmark keep giving the figures that are written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.retrieval import tolerances
from benchmarks.retrieval.static.planted import World
from benchmarks.retrieval.tolerances import Found, measure, read_tolerances
from stages.contracts.errors import ConfigError


@pytest.fixture(scope="module")
def found(one_rank: None) -> list[Found]:
    from tests.candidate.one_rank import in_this_process

    with in_this_process():
        return measure(read_tolerances())


def test_every_figure_is_within_its_tolerance(found: list[Found]) -> None:
    assert len(found) == len(read_tolerances().figures) > 0
    faults = [str(each) for each in found if not each.kept]
    assert not faults, "\n".join(faults)


def test_what_is_guarded_orders_the_models(found: list[Found]) -> None:
    """The worlds tell the models apart: popularity, co-occurrence, order; a mixture gains on its tower."""
    mean = {(each.figure.world, each.figure.model, each.figure.metric): each.mean for each in found}
    chains = [
        mean["chains", model, "ndcg"] for model in ("popularity", "ease", "two_tower", "quotas", "learned_mixture")
    ]
    assert chains == sorted(chains)
    assert mean["tastes", "two_tower", "recall"] > 3 * mean["tastes", "popularity", "recall"]


def test_a_figure_outside_its_tolerance_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To either side, and the command says so; a model that is worse than it was is caught."""
    given = read_tolerances()
    figure = next(each for each in given.figures if each.model == "ease")
    codes = []
    for shift, settings in (
        (0.0, {}),
        (2 * figure.tolerance, {}),
        (-2 * figure.tolerance, {}),
        (0.0, {"ease": {"regularisation": 5000}}),
    ):
        moved = figure.model_copy(update={"expected": figure.expected + shift})
        changed = given.model_copy(
            update={"figures": (moved,), "settings": {"chains": {**given.settings["chains"], **settings}}}
        )
        monkeypatch.setattr(tolerances, "read_tolerances", lambda changed=changed: changed)
        codes.append(tolerances.main())
    assert codes == [0, 1, 1, 1]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["kept", "FAULT", "FAULT", "FAULT"]


def test_made_worlds_are_what_they_say() -> None:
    world = World(users=60, blocks=4, block=9, length=8, follows=1.0, seed=3)
    split, again = world.split(), world.split()
    np.testing.assert_array_equal(split.train.item, again.train.item)
    assert (len(split.train), len(split.test)) == (60 * 7, 60)
    items = split.train.item.reshape(60, 7)
    assert all(len(set(row)) == 7 and len(set(row // 9)) <= 2 for row in items.tolist() for row in [np.array(row)])
    following = np.zeros((36, 36), dtype=int)
    np.add.at(following, (items[:, :-1].ravel(), items[:, 1:].ravel()), 1)
    met = following.sum(axis=1) > 10
    assert (following.max(axis=1)[met] > 0.5 * following.sum(axis=1)[met]).mean() > 0.8, "most items have one follower"
    loose = world.model_copy(update={"follows": 0.0}).split().train.item.reshape(60, 7)
    following = np.zeros((36, 36), dtype=int)
    np.add.at(following, (loose[:, :-1].ravel(), loose[:, 1:].ravel()), 1)
    assert (following.max(axis=1) > 0.5 * following.sum(axis=1)).mean() < 0.3


def test_figures_of_worlds_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.yaml"
    path.write_text(
        "worlds: {}\nsettings: {}\nfigures: [{world: a, model: ease, metric: ndcg, expected: 1, tolerance: 1}]\n"
    )
    with pytest.raises(ConfigError, match=r"figures: world = 'a': allowed are"):
        read_tolerances(path)
