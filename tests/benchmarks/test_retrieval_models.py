"""The baselines on tiny data, and the command that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from benchmarks.retrieval.__main__ import main
from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.static.models import MODELS, ItemKnn, RecentPopularity
from stages.contracts.errors import DataError


@pytest.fixture
def train() -> Interactions:
    rng = np.random.default_rng(2)
    user, item = np.nonzero(rng.random((30, 9)) < 0.4)
    return Interactions(user, item, rng.permutation(len(user)), 30, 9, in_seconds=True)


@pytest.mark.parametrize("neighbours", [3, 8])
def test_cosines_of_the_nearest(train: Interactions, neighbours: int) -> None:
    dense = train.matrix.toarray().astype(float)
    wanted = np.zeros((9, 9))
    for target in range(9):
        cosine = []
        for item in range(9):
            norms = np.linalg.norm(dense[:, item]) * np.linalg.norm(dense[:, target])
            cosine.append(0 if item == target else dense[:, item] @ dense[:, target] / (norms + 2.0))
        kept = np.argsort(-np.array(cosine), kind="stable")[:neighbours]
        wanted[kept, target] = np.array(cosine)[kept]
    model = ItemKnn(neighbours=neighbours, shrink=2.0, alpha=0.5, weighting="none")
    np.testing.assert_allclose(model.fit(train, 1)(np.arange(30)), dense @ wanted, atol=1e-5)


def test_recent_popularity_counts_the_last_days_of_training() -> None:
    time = np.array([0, 1, 9, 10, 10]) * 86_400
    rows = Interactions(np.arange(5), np.array([0, 0, 1, 1, 2]), time, 5, 4, in_seconds=True)
    for days, counts in ((0.5, [0, 1, 1, 0]), (1.5, [0, 2, 1, 0]), (9.5, [1, 2, 1, 0]), (99, [2, 2, 1, 0])):
        assert RecentPopularity(days=days).fit(rows, 1)(np.array([3])).tolist() == [counts]
    for without in (None, time):
        with pytest.raises(DataError, match="no times in seconds"):
            RecentPopularity().check(Interactions(rows.user, rows.item, without, 5, 4))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_scores_blocks_like_single_users(train: Interactions, name: str) -> None:
    scorer = MODELS[name]().fit(train, 1)
    together = scorer(np.arange(30))
    assert together.shape == (30, 9)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(scorer(np.array([7, 2])), together[[7, 2]], rtol=1e-5, atol=1e-6)


def test_popularity_counts(train: Interactions) -> None:
    scores = MODELS["popularity"]().fit(train, 1)(np.array([0, 0]))
    assert scores.tolist() == [np.asarray(train.matrix.sum(axis=0)).ravel().tolist()] * 2


def test_recency_weighs_the_history_only(train: Interactions) -> None:
    flat, recent = (MODELS[name]() for name in ("ease", "ease_recency"))
    users = np.arange(30)
    latest = recent.model_copy(update={"decay": 1e-3}).fit(train, 1)(users)
    order = np.lexsort((train.time, train.user))
    last = dict(zip(train.user[order].tolist(), train.item[order].tolist(), strict=True))
    single = sparse.csr_matrix((np.ones(len(last)), (list(last), list(last.values()))), shape=(30, 9))
    flat_scores = flat.fit(train, 1)(users)
    everything = recent.model_copy(update={"decay": 1e9}).fit(train, 1)(users)
    np.testing.assert_allclose(everything, flat_scores, rtol=1e-4, atol=1e-6)
    weights = np.linalg.lstsq(train.matrix.toarray(), flat_scores)[0]
    np.testing.assert_allclose(latest, single.toarray() @ weights, atol=1e-4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [rng.choice(20, 8, replace=False) for _ in range(25)]
    for name, part in (("train.txt", slice(0, 6)), ("test.txt", slice(6, 8))):
        text = [" ".join(map(str, [user, *line[part]])) for user, line in enumerate(lines)]
        (tmp_path / name).write_text("\n".join(text) + "\n")
    return tmp_path


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--protocol", "ml-1m-m1", "--data", str(folder), "--seeds", "3,4"]
    assert main([*command, "--models", "ease,ials", "--set", "ease.regularisation=7", "--set", "ials.factors=2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["protocol"] == "ml-1m-m1"
    assert result["part"] == "test"
    assert result["data"] == {"users": 25, "items": 20, "train": 150, "test": 50, "judged_users": 25}
    assert result["models"]["ease"]["settings"]["regularisation"] == 7
    ease, ials = (result["models"][name]["metrics"]["recall@20"] for name in ("ease", "ials"))
    assert (len(ease["values"]), ease["sd"], ease["mean"]) == (1, None, 1.0), "twenty answers hold all twenty items"
    assert len(ials["values"]) == 2
    assert main([*command, "--models", "popularity", "--validation"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["part"] == "validation"
    assert result["data"]["train"] + result["data"]["test"] == 150
    assert len(result["models"]["popularity"]["metrics"]["ndcg@20"]["values"]) == 2, "each seed cuts anew"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "magic"], "--models magic: allowed are popularity"),
        (["--models", "ease", "--set", "ease.lambda=3"], "--set ease: lambda: unknown key"),
        (["--models", "ease", "--set", "ease.regularisation=0"], "regularisation = 0"),
        (["--models", "ease", "--set", "ials.factors=3"], "allowed is MODEL.KEY=VALUE of one of ease"),
        (["--models", "ease_recency"], "no order"),
        (["--seeds", "one"], "--seeds one: allowed are whole numbers"),
    ],
)
def test_wrong_use(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["--protocol", "ml-1m-m1", "--data", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
