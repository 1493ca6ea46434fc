from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stages.contracts.errors import ReleaseError
from stages.heavy_ranker.scorer import HeavyScorer

META = {"feature_schema_hash": "abc", "input_width": 2, "tasks": ["click", "buy"], "objective": {"click": 1.0}}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A model of two inputs whose probabilities are the sigmoids of its inputs."""
    graph = helper.make_graph(
        [helper.make_node("Sigmoid", ["features"], ["probabilities"])],
        "sigmoid",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "heavy_ranker.onnx"))
    (tmp_path / "heavy_ranker.json").write_text(json.dumps(META))
    return tmp_path


INPUTS = np.array([[0.0, 2.0], [1.0, -1.0], [0.5, 0.5]], np.float32)
PROBABILITIES = 1.0 / (1.0 + np.exp(-INPUTS))


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        ({"click": 1.0, "buy": 3.0}, [1, 3]),
        ({"buy": 1.0}, [0, 1]),
        ({}, [1, 0]),
        ({"click": 1.0, "buy": -1.0}, [1, -1]),
    ],
)
def test_the_score_is_the_weighted_sum_of_probabilities(
    release: Path, objective: dict[str, float], weights: list[float]
) -> None:
    scorer = HeavyScorer.load(release, "abc", objective)
    assert scorer.tasks == ("click", "buy")
    np.testing.assert_allclose(scorer.probabilities(INPUTS), PROBABILITIES, rtol=1e-6)
    scores = scorer.score(INPUTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, PROBABILITIES @ weights, rtol=1e-5)


def test_no_rows_give_no_scores(release: Path) -> None:
    scorer = HeavyScorer.load(release, "abc", {})
    assert scorer.probabilities(INPUTS[:0]).shape == (0, 2)
    assert scorer.score(INPUTS[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"like": 1.0}, "unknown task like; allowed: click, buy"),
        ({"click": 0.0}, "at least one of click, buy needs a weight"),
        ({"click": float("nan")}, "objective.click = nan"),
    ],
)
def test_an_objective_that_cannot_be_served_is_refused(
    release: Path, objective: dict[str, float], message: str
) -> None:
    with pytest.raises(ReleaseError, match=message):
        HeavyScorer.load(release, "abc", objective)


def test_another_schema_is_refused(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"feature_schema_hash = 'abc'.*'xyz'"):
        HeavyScorer.load(release, "xyz", {})


@pytest.mark.parametrize("changed", [{"input_width": 3}, {"tasks": ["click"]}])
def test_a_model_of_another_shape_is_refused(release: Path, changed: dict[str, Any]) -> None:
    (release / "heavy_ranker.json").write_text(json.dumps(META | changed))
    with pytest.raises(ReleaseError, match="maps 2 inputs to 2 tasks"):
        HeavyScorer.load(release, "abc", {})


def test_inputs_of_another_width_are_refused(release: Path) -> None:
    with pytest.raises(ReleaseError, match=r"inputs \[3, 1\] must be \[n, 2\]"):
        HeavyScorer.load(release, "abc", {}).probabilities(INPUTS[:, :1])


@pytest.mark.parametrize("name", ["heavy_ranker.onnx", "heavy_ranker.json"])
def test_a_missing_part_is_named(release: Path, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(ReleaseError, match=name):
        HeavyScorer.load(release, "abc", {})


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_truncated_model_is_refused(release: Path, keep: int) -> None:
    path = release / "heavy_ranker.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ReleaseError, match="not a loadable ONNX model"):
        HeavyScorer.load(release, "abc", {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"feature_schema_hash": "abc"}', "lacks tasks, objective, input_width"),
        (json.dumps(META | {"objective": 3}), "objective = '3': input should be an object"),
    ],
)
def test_a_broken_description_is_refused(release: Path, text: str, words: str) -> None:
    (release / "heavy_ranker.json").write_text(text)
    with pytest.raises(ReleaseError, match=rf"heavy_ranker.json {words}.* train the heavy ranker again"):
        HeavyScorer.load(release, "abc", {})


def test_the_scorer_loads_neither_torch_nor_training_code() -> None:
    code = "import sys, stages.heavy_ranker.scorer; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(output.stdout.split())
    assert "stages.heavy_ranker.scorer" in loaded
    assert not {"torch", "pandas", "stages.heavy_ranker.train", "stages.heavy_ranker.model"} & loaded
