from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from stages.contracts import memory
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.examples import ExamplesFile, mean_ndcg
from stages.contracts.files import write_json
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.snapshot import Task
from stages.features.ranking import heavy_features
from stages.heavy_ranker.config import HeavyRankerConfig, NetworkConfig
from stages.heavy_ranker.data import HeavyData
from stages.heavy_ranker.export import export_onnx
from stages.heavy_ranker.lists import light_lists
from stages.heavy_ranker.model import HeavyRanker
from stages.heavy_ranker.scorer import HeavyScorer
from stages.heavy_ranker.train import Trainer, train_heavy, training_objective
from tests.heavy_ranker.worlds import World, make_world

SMALL = HeavyRankerConfig(
    threads=1,
    device="cpu",
    light_k=12,
    network=NetworkConfig(cross_layers=2, cross_rank=None, deep_layers=(16,), dropout=0.0),
    max_epochs=25,
    batch_requests=16,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    directory = tmp_path_factory.mktemp("heavy_trained")
    metrics, _ = train_heavy(SMALL, world.inputs, directory)
    return directory, metrics


def heavy_data(world: World, light_k: int = SMALL.light_k) -> HeavyData:
    lists = light_lists(world.rows, world.light_scores, light_k)
    return HeavyData(ExamplesFile(world.inputs["examples"]), lists, world.queries, world.vectors, SMALL.memory_rows)


def whole_lists(world: World, light_k: int = SMALL.light_k) -> tuple[np.ndarray, np.ndarray]:
    """Return the heavy ranker's inputs of the light ranker's best rows, and which rows of the world they are."""
    lists = light_lists(world.rows, world.light_scores, light_k)
    rows = world.rows.take(lists.rows)
    queries, vectors = world.queries[rows.request_id], world.vectors[rows.item_index]
    return heavy_features(rows.features, lists.light_scores, lists.light_ranks, queries, vectors), lists.rows


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Requests of the same kind that nothing was trained on."""
    made = make_world(tmp_path_factory.mktemp("unseen"), n_requests=300)
    return replace(made, rows=made.rows.take(made.rows.request_id >= 240), light_scores=made.light_scores[240 * 15 :])


def test_a_crossing_that_the_light_score_misses_is_learnt(
    unseen: World, trained: tuple[Path, dict[str, float]]
) -> None:
    directory, metrics = trained
    assert metrics["validation_ndcg@10"] > metrics["validation_light_ndcg@10"] + 0.2
    assert (metrics["training_requests"], metrics["validation_requests"]) == (216, 43)
    inputs, rows = whole_lists(unseen)
    ids, relevance = unseen.rows.request_id[rows], unseen.rows.relevance[rows]
    heavy = HeavyScorer.load(directory, "schema-1", {}).score(inputs)
    assert mean_ndcg(ids, relevance, heavy) > mean_ndcg(ids, relevance, unseen.light_scores[rows]) + 0.2


def test_nothing_but_the_model_is_written(trained: tuple[Path, dict[str, float]]) -> None:
    assert sorted(path.name for path in trained[0].iterdir()) == ["heavy_ranker.json", "heavy_ranker.onnx"]


def test_probabilities_are_calibrated_for_each_task(unseen: World, trained: tuple[Path, dict[str, float]]) -> None:
    inputs, rows = whole_lists(unseen)
    rates = HeavyScorer.load(trained[0], "schema-1", {}).probabilities(inputs).mean(axis=0)
    np.testing.assert_allclose(rates, unseen.rows.labels[rows].mean(axis=0), rtol=0.25)


def sampled(world: World, share: Any, weigh: bool = True) -> World:
    """Keep every positive of a task, and a share of the other rows with the weights that say so."""
    positive = world.rows.labels.any(axis=1)
    kept = positive | (np.random.default_rng(0).random(len(positive)) < share)
    weight = np.where(positive, 1.0, 1.0 / share if weigh else 1.0).astype(np.float32)
    return replace(world, rows=replace(world.rows, weight=weight).take(kept), light_scores=world.light_scores[kept])


def fitted(world: World, epochs: int, **changed: Any) -> HeavyRanker:
    """Write a world and fit a model of all its rows."""
    data = heavy_data(world.write(), light_k=15)
    trainer = Trainer(SMALL.changed(**changed), data, np.array([1.0, 0.0]))
    return trainer.fit(np.ones(len(data.lists), dtype=bool), epochs).eval()


def test_a_weighted_sample_gives_nearly_the_calibration_of_the_whole_set(tmp_path: Path) -> None:
    whole, weighted, plain = (
        fitted(world, epochs=0)
        for world in (
            make_world(tmp_path / "whole"),
            sampled(make_world(tmp_path / "weighted"), 0.3),
            sampled(make_world(tmp_path / "plain"), 0.3, weigh=False),
        )
    )
    torch.testing.assert_close(weighted.slope, whole.slope, atol=0.1, rtol=0)
    torch.testing.assert_close(weighted.bias, whole.bias, atol=0.1, rtol=0)
    assert (plain.bias > whole.bias + 0.5).all()


@pytest.mark.parametrize("loss", ["pointwise_weight", "listwise_weight"])
def test_each_loss_is_corrected_for_a_sample_that_depends_on_a_feature(
    tmp_path: Path, unseen: World, loss: str
) -> None:
    """Few of the negatives with a high f3 are kept: without weights f3 seems to make an item wanted."""
    low, high = (whole_lists(unseen, light_k=15)[0] for _ in range(2))
    low[:, 3], high[:, 3] = 70.0, 130.0
    gain = {}
    for weigh in (True, False):
        world = make_world(tmp_path / str(weigh))
        world = sampled(world, np.where(world.rows.features[:, 3] > 100.0, 0.2, 1.0), weigh)
        other = {"pointwise_weight", "listwise_weight"} - {loss}
        model = fitted(world, epochs=5, **dict.fromkeys(other, 0.0))
        with torch.inference_mode():
            logits = [model.member_logits(torch.from_numpy(inputs))[..., 0].mean() for inputs in (high, low)]
        gain[weigh] = float(logits[0] - logits[1])
    assert abs(gain[True]) < gain[False] / 3, gain


def test_weights_make_probabilities_those_of_the_lists_before_sampling(tmp_path: Path, unseen: World) -> None:
    world = sampled(make_world(tmp_path), 0.2).write()
    train_heavy(SMALL.changed(max_epochs=6, light_k=15), world.inputs, tmp_path)
    inputs, rows = whole_lists(unseen, light_k=15)
    rates = HeavyScorer.load(tmp_path, "schema-1", {}).probabilities(inputs).mean(axis=0)
    np.testing.assert_allclose(rates, unseen.rows.labels[rows].mean(axis=0), rtol=0.2)


def test_objective_weights_change_the_order(unseen: World, trained: tuple[Path, dict[str, float]]) -> None:
    inputs, rows = whole_lists(unseen)
    ndcg = {}
    for name in ("click", "purchase"):
        scores = HeavyScorer.load(trained[0], "schema-1", {name: 1.0}).score(inputs)
        ids, labels = unseen.rows.request_id[rows], unseen.rows.labels[rows]
        ndcg[name] = [mean_ndcg(ids, labels[:, task], scores) for task in range(2)]
    assert ndcg["click"][0] > ndcg["purchase"][0] + 0.2
    assert ndcg["purchase"][1] > ndcg["click"][1] + 0.2


def test_the_exported_model_agrees_with_torch_and_carries_no_paths(world: World, tmp_path: Path) -> None:
    data = heavy_data(world)
    config = SMALL.model_copy(update={"ensemble": 3, "network": NetworkConfig(cross_rank=4)})
    everything = np.ones(len(data.lists), dtype=bool)
    model = Trainer(config, data, np.array([1.0, 0.1])).fit(everything, epochs=1).eval()
    export_onnx(model, tmp_path / "heavy_ranker.onnx")
    description = {"feature_schema_hash": "h", "input_width": data.width, "tasks": ["a", "b"], "objective": {"a": 1}}
    write_json(tmp_path / "heavy_ranker.json", description)
    scorer = HeavyScorer.load(tmp_path, "h", {"a": 1.0, "b": 0.5})
    batch = next(iter(data.batches(everything, 6)))
    for rows in (1, 2, 57):
        inputs = batch.inputs[:rows]
        with torch.inference_mode():
            expected = model(inputs).numpy()
        np.testing.assert_allclose(scorer.probabilities(inputs.numpy()), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scorer.score(inputs.numpy()), expected @ [1.0, 0.5], rtol=1e-4, atol=1e-6)
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["heavy_ranker.onnx"]
    assert b".py" not in (tmp_path / "heavy_ranker.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "heavy_ranker.onnx"))


@pytest.mark.parametrize("memory_rows", [0, 10**6])
def test_the_same_inputs_give_the_same_files_whatever_torch_drew_before(
    world: World, tmp_path: Path, memory_rows: int
) -> None:
    network = NetworkConfig(dropout=0.3, deep_layers=(8,))
    config = SMALL.model_copy(update={"max_epochs": 2, "network": network, "memory_rows": memory_rows})
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.rand(3)
        train_heavy(config, world.inputs, tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_what_is_streamed_is_learnt_as_well(
    world: World, trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    metrics, _ = train_heavy(SMALL.changed(memory_rows=0), world.inputs, tmp_path)
    assert metrics["validation_light_ndcg@10"] == pytest.approx(trained[1]["validation_light_ndcg@10"])
    assert metrics["validation_ndcg@10"] == pytest.approx(trained[1]["validation_ndcg@10"], abs=0.05)


def test_where_nothing_is_to_be_learnt_the_light_order_stays(fresh_world: World, tmp_path: Path) -> None:
    best = np.lexsort((-fresh_world.light_scores, fresh_world.rows.request_id)).reshape(-1, 15)[:, :2].ravel()
    labels = np.zeros((len(fresh_world.rows), 2), np.float32)
    labels[best] = 1.0  # the light ranker is always right
    rows = replace(fresh_world.rows, labels=labels, relevance=labels[:, 0].copy())
    metrics, _ = train_heavy(SMALL.changed(max_epochs=5), replace(fresh_world, rows=rows).write().inputs, tmp_path)
    assert metrics["validation_light_ndcg@10"] == metrics["validation_ndcg@10"] == 1.0
    assert metrics["epochs"] == 0


def train(world: World, directory: Path, **changed: Any) -> dict[str, float]:
    """Write a world with other rows and train on it."""
    written = replace(world, rows=replace(world.rows, **changed)).write()
    return train_heavy(SMALL.changed(max_epochs=1), written.inputs, directory)[0]


def test_a_task_without_a_positive_is_named(fresh_world: World, tmp_path: Path) -> None:
    labels = fresh_world.rows.labels.copy()
    labels[:, 1] = 0.0
    with pytest.raises(DataError, match="task purchase has no positive among 324 rows of 27 requests"):
        train(fresh_world, tmp_path, labels=labels)


def test_no_relevant_row_is_an_error_with_counts(fresh_world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 2 requests need a positive .*; 0 of 27 have one"):
        train(fresh_world, tmp_path, relevance=np.zeros(len(fresh_world.rows), np.float32))


def test_one_request_is_an_error_with_counts(fresh_world: World, tmp_path: Path) -> None:
    one = replace(fresh_world, rows=fresh_world.rows.take(slice(0, 15)), light_scores=fresh_world.light_scores[:15])
    with pytest.raises(DataError, match=r"at least 2 requests need a positive .*; 1 of 1 have one"):
        train(one, tmp_path)


@pytest.mark.parametrize("rows", [0, 15])
def test_examples_without_a_request_to_learn_from_are_an_error(fresh_world: World, tmp_path: Path, rows: int) -> None:
    popular = replace(fresh_world.rows, source=np.full(len(fresh_world.rows), SOURCE_POPULAR, np.int8))
    few = replace(fresh_world, rows=popular.take(slice(0, rows)), light_scores=fresh_world.light_scores[:rows])
    with pytest.raises(DataError, match="no positive among 0 rows of 0 requests"):
        train(few, tmp_path)


def test_all_positives_in_one_request_are_an_error_and_in_two_are_enough(fresh_world: World, tmp_path: Path) -> None:
    relevance = fresh_world.rows.relevance
    for requests, enough in (([3], False), ([3, 28], True)):
        own = np.where(np.isin(fresh_world.rows.request_id, requests), relevance, 0).astype(np.float32)
        if enough:
            assert train(fresh_world, tmp_path, relevance=own)["training_requests"] == 27
        else:
            with pytest.raises(DataError, match=r"at least 2 requests need a positive .*; 1 of 27 have one"):
                train(fresh_world, tmp_path, relevance=own)


def test_requests_whose_rows_are_all_positive_do_no_harm(fresh_world: World, tmp_path: Path) -> None:
    ones = np.ones(len(fresh_world.rows), np.float32)
    metrics = train(fresh_world, tmp_path, relevance=ones, labels=np.stack([ones, ones], axis=1))
    assert metrics["validation_ndcg@10"] == 1.0


def test_labels_of_other_tasks_than_the_snapshots_are_refused(fresh_world: World, tmp_path: Path) -> None:
    message = "labels of 1 tasks: click; the snapshot has 2 tasks: click, purchase"
    with pytest.raises(DataError, match=message):
        train(fresh_world, tmp_path, labels=fresh_world.rows.labels[:, :1])


@pytest.mark.parametrize("light", [np.zeros(3, np.float32), np.full(450, np.nan, np.float32)])
def test_light_scores_that_do_not_fit_are_refused(fresh_world: World, tmp_path: Path, light: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"scores.npy \[\d+\] must be finite \[450\], one score a row"):
        train(replace(fresh_world, light_scores=light), tmp_path)


def test_examples_that_do_not_fit_the_memory_are_refused(
    fresh_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda root: 1000)
    message = (
        r"train_heavy \(450 rows x 4 features\) needs about [\d,]+ bytes .*lower heavy_ranker\.memory_rows, examples"
    )
    with pytest.raises(ConfigError, match=message):
        train(fresh_world, tmp_path)


def test_the_former_key_says_what_is_held_out_now() -> None:
    with pytest.raises(ConfigError, match=r"this key is gone; the last window of examples.windows is held out"):
        parse_config(HeavyRankerConfig, {"validation_share": 0.1}, "recipe.yaml")


TASKS = (Task(name="click", signals=("click",)), Task(name="skip", signals=("skip",), weight=-0.5))


def test_the_objective_is_configured_or_that_of_the_tasks() -> None:
    assert training_objective({}, TASKS) == {"click": 1.0, "skip": -0.5}
    assert training_objective({"skip": 2.0}, TASKS) == {"click": 0.0, "skip": 2.0}
    with pytest.raises(ConfigError, match=r"unknown task like; allowed: click, skip"):
        training_objective({"like": 1.0}, TASKS)
    with pytest.raises(ConfigError, match="at least one weight must be above 0"):
        training_objective({"click": -1.0}, TASKS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test needs absent")
def test_a_device_that_is_absent_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device = 'cuda'.*allowed: auto, cpu"):
        train_heavy(SMALL.model_copy(update={"device": "cuda"}), world.inputs, tmp_path)
