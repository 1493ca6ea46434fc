from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from stages.contracts.errors import ReleaseError
from stages.light_ranker.scorer import LightScorer


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A model that adds its two features up, more or less."""
    features = np.random.default_rng(0).normal(size=(200, 2))
    parameters = {"objective": "regression", "verbosity": -1, "num_threads": 1}
    booster = lgb.train(parameters, lgb.Dataset(features, features.sum(axis=1)), num_boost_round=20)
    booster.save_model(tmp_path / "light_ranker.txt")
    (tmp_path / "light_ranker.json").write_text(json.dumps({"feature_schema_hash": "abc", "n_features": 2}))
    return tmp_path


def test_scores_follow_the_model(release: Path) -> None:
    scores = LightScorer.load(release, "abc").score(np.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]], np.float32))
    assert scores.dtype == np.float32
    assert scores[0] < scores[2] < scores[1]


def test_no_rows_give_no_scores(release: Path) -> None:
    assert LightScorer.load(release, "abc").score(np.zeros((0, 2), np.float32)).shape == (0,)


def test_another_schema_is_refused(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"feature_schema_hash = 'abc'.*'xyz'"):
        LightScorer.load(release, "xyz")


def test_another_number_of_features_is_refused(release: Path) -> None:
    (release / "light_ranker.json").write_text(json.dumps({"feature_schema_hash": "abc", "n_features": 3}))
    with pytest.raises(ReleaseError, match=r"reads 2 features, light_ranker.json says 3"):
        LightScorer.load(release, "abc")


def test_features_of_another_width_are_refused(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"features \[1, 5\] must be \[n, 2\]"):
        LightScorer.load(release, "abc").score(np.zeros((1, 5), np.float32))


@pytest.mark.parametrize("name", ["light_ranker.txt", "light_ranker.json"])
def test_a_missing_part_is_named(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=name):
        LightScorer.load(release, "abc")


@pytest.mark.parametrize("text", ["", "tree\nversion=v4\nnonsense"])
def test_a_broken_model_is_refused(release: Path, text: str) -> None:
    (release / "light_ranker.txt").write_text(text)
    with pytest.raises(ReleaseError, match="not a readable LightGBM model"):
        LightScorer.load(release, "abc")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"feature_schema_hash": "abc"}', "lacks n_features"),
        ('{"feature_schema_hash": "abc", "n_features": "2"}', "n_features = '2': input should be a valid integer"),
    ],
)
def test_a_broken_description_is_refused(release: Path, text: str, words: str) -> None:
    (release / "light_ranker.json").write_text(text)
    with pytest.raises(ReleaseError, match=rf"light_ranker.json {words}.* train the light ranker again"):
        LightScorer.load(release, "abc")


def test_the_scorer_loads_no_training_code() -> None:
    code = "import sys, stages.light_ranker.scorer; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "stages.light_ranker.scorer" in output.stdout.split()
    assert not {"torch", "stages.light_ranker.train"} & set(output.stdout.split())
