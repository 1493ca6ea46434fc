"""The attention encoder's recipe under the launcher: ranks agree, a killed run goes on to the same bytes, a warm
start begins its averages anew."""

from pathlib import Path

import numpy as np
import pytest

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.export.user_tower import exported_weights
from stages.candidate.training import step as train
from stages.candidate.training.step import train_candidate
from stages.candidate.training.warm_start import STATE, STATE_JSON, warm_start_version
from stages.contracts.config import merged
from stages.contracts.errors import ConfigError, TransientError
from stages.contracts.files import read_json, write_json
from stages.features.config import FeatureConfig
from tests.candidate.one_rank import in_this_process
from tests.candidate.test_candidate_recipe import recipe

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)


def attempt(planted, out, **changes):
    candidate = recipe(**merged({"training": {"batch_size": 250}, "checkpoints": {"every_steps": 2}}, changes))
    version = warm_start_version(candidate.warm_start.path) if candidate.warm_start.path else ""
    config = TrainCandidateConfig(candidate=candidate, features=FEATURES, warm_start_version=version)
    out.mkdir(parents=True)
    return train_candidate(config, {"snapshot": planted}, out)


def state_of(out):
    return {str(path.relative_to(out)): np.load(path) for path in sorted((out / "state").rglob("*.npy"))}


@pytest.fixture(scope="module")
def unbroken(planted, one_rank, tmp_path_factory):
    out = tmp_path_factory.mktemp("recipe") / "out"
    with in_this_process():
        _, info = attempt(planted, out)
    return out, info["losses"]


def test_two_ranks_reach_what_one_reaches(planted, unbroken, tmp_path):
    losses = unbroken[1]
    _, info = attempt(
        planted, tmp_path / "out", model={"dropout": 0.0}, distributed={"n_processes": 2, "sharding": "row_wise"}
    )
    with in_this_process():  # dropout is drawn by each rank on its own
        _, alone = attempt(planted, tmp_path / "alone", model={"dropout": 0.0})
    np.testing.assert_allclose(info["losses"], alone["losses"], atol=1e-4)
    assert losses[1] < losses[0] - 0.2, "it did move"
    vectors = [np.load(place / "item_vectors.npy") for place in (tmp_path / "alone", tmp_path / "out")]
    # A shift of all item vectors changes no softmax: rounding alone moves it, as far as Adam takes it.
    one, two = (vectors_ND - vectors_ND.mean(axis=0) for vectors_ND in vectors)
    np.testing.assert_allclose(two, one, atol=2e-3)
    for name, value in exported_weights(tmp_path / "alone" / STATE).items():
        if "signal" not in name and name != "item_tower.tower.mlp.0.bias":  # what rounding moves
            found = np.load(tmp_path / "out" / STATE / "average" / f"{name}.npy")
            np.testing.assert_allclose(found, value, atol=5e-3, err_msg=name)


def test_a_killed_run_goes_on_to_the_same_bytes(planted, unbroken, tmp_path, monkeypatch):
    """Rates, averages and the windows of a step are those of the unbroken run."""
    monkeypatch.setattr(train, "WORKER", (str(Path(__file__).with_name("ranks.py")),))
    monkeypatch.setenv("KILL_AT", "0:3")
    with pytest.raises(TransientError, match="it was killed"):
        attempt(planted, tmp_path / "first")
    with in_this_process():
        metrics, info = attempt(planted, tmp_path / "second")
    assert metrics["resumed_at_step"] > 0
    np.testing.assert_allclose(info["losses"], unbroken[1], rtol=1e-12)
    again = state_of(tmp_path / "second")
    whole = state_of(unbroken[0])
    assert sorted(again) == sorted(whole)
    assert any(name.startswith("state/average/") for name in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    assert (tmp_path / "second/item_vectors.npy").read_bytes() == (unbroken[0] / "item_vectors.npy").read_bytes()


def test_a_warm_start_begins_its_averages_at_the_weights(planted, unbroken, tmp_path, here):
    """One tiny step from them: the average is where they were."""
    rates = {"sparse_learning_rate": 1e-9, "dense_learning_rate": 1e-9}
    attempt(planted, tmp_path / "next", optimizer=rates, warm_start={"path": str(unbroken[0]), "epochs": 1})
    before, after = state_of(unbroken[0]), state_of(tmp_path / "next")
    for name, value in before.items():
        if name.startswith("state/weights/"):
            found = after[name.replace("weights", "average")]
            np.testing.assert_allclose(found, value, atol=1e-6, err_msg=name)
    item = "state/average/embeddings.embedding_bags.item.weight.npy"
    assert np.abs(before[item] - after[item]).max() > 1e-3, "the earlier averages are another thing"


def test_a_warm_start_wants_the_scale_it_was_trained_with(planted, unbroken, tmp_path):
    with pytest.raises(ConfigError, match=r"candidate.model.input_scale = 2.0, the model there has 4.0"):
        attempt(planted, tmp_path / "out", model={"input_scale": 2.0}, warm_start={"path": str(unbroken[0])})
    described = unbroken[0] / STATE / STATE_JSON
    whole = read_json(described)
    try:
        older = {name: value for name, value in whole["shape"].items() if name != "candidate.model.input_scale"}
        write_json(described, {**whole, "shape": older})  # from before it could be chosen
        with pytest.raises(ConfigError, match=r"candidate.model.input_scale = 4.0, the model there has 1.0"):
            attempt(planted, tmp_path / "older", warm_start={"path": str(unbroken[0])})
    finally:
        write_json(described, whole)
