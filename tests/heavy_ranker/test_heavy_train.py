from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.examples import Examples, mean_ndcg
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, RankedTable
from stages.heavy_ranker.config import HeavyRankerConfig, NetworkConfig
from stages.heavy_ranker.data import HeavyData, light_lists
from stages.heavy_ranker.export import export_onnx
from stages.heavy_ranker.scorer import HeavyScorer
from stages.heavy_ranker.train import Trainer, train_heavy, training_objective

Inputs = dict[str, Path]
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
def trained(heavy_inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    directory = tmp_path_factory.mktemp("heavy_trained")
    metrics, _ = train_heavy(SMALL, heavy_inputs, directory)
    return directory, metrics


def heavy_data(inputs: Inputs) -> HeavyData:
    return HeavyData(
        examples=Examples.read(inputs["examples"]),
        light_scores=np.load(inputs["light"] / "scores.npy"),
        queries=np.load(inputs["retrieve"] / "queries.npy"),
        vectors=np.load(inputs["candidate"] / "item_vectors.npy"),
    )


def rows_of_part(inputs: Inputs, data: HeavyData, part: int, source: int | None = None) -> np.ndarray:
    rows = data.examples.rows
    mine = Snapshot(inputs["snapshot"]).requests().part[rows.request_id] == part
    return mine if source is None else mine & (rows.source == source)


def test_a_crossing_that_the_light_score_misses_is_learnt(
    heavy_inputs: Inputs, trained: tuple[Path, dict[str, float]]
) -> None:
    directory, metrics = trained
    assert metrics["validation_ndcg@10"] > metrics["validation_light_ndcg@10"] + 0.2
    data = heavy_data(heavy_inputs)
    ranked = RankedTable.read(directory / "ranked.parquet")
    personal = light_lists(
        data.examples.rows, data.light_scores, rows_of_part(heavy_inputs, data, PART_EVALUATION, 0), SMALL.light_k
    )
    rows = data.examples.rows
    answered = {(r, i): s for r, i, s in zip(ranked.request_id, ranked.item_index, ranked.score, strict=True)}
    heavy = np.array([answered[rows.request_id[row], rows.item_index[row]] for row in personal.rows])
    ids, relevance = rows.request_id[personal.rows], data.examples.relevance[personal.rows]
    light = data.light_scores[personal.rows]
    assert mean_ndcg(ids, relevance, heavy) > mean_ndcg(ids, relevance, light) + 0.2


def test_evaluation_requests_keep_light_k_rows_and_popular_ones_their_order(
    heavy_inputs: Inputs, trained: tuple[Path, dict[str, float]]
) -> None:
    ranked = RankedTable.read(trained[0] / "ranked.parquet")
    data = heavy_data(heavy_inputs)
    rows = data.examples.rows
    held_out = rows_of_part(heavy_inputs, data, PART_EVALUATION)
    np.testing.assert_array_equal(np.unique(ranked.request_id), np.unique(rows.request_id[held_out]))
    assert (np.bincount(ranked.request_id)[240:] == SMALL.light_k).all()
    for request in np.unique(ranked.request_id):
        mine = rows.request_id == request
        answer = ranked.item_index[ranked.request_id == request]
        if rows.source[mine][0] == SOURCE_POPULAR:
            np.testing.assert_array_equal(answer, rows.item_index[mine][: SMALL.light_k])
        else:
            best = rows.item_index[mine][np.argsort(-data.light_scores[mine])][: SMALL.light_k]
            assert set(answer) == set(best)
            assert not np.array_equal(answer, best)


def test_probabilities_are_calibrated_for_each_task(
    heavy_inputs: Inputs, trained: tuple[Path, dict[str, float]]
) -> None:
    data = heavy_data(heavy_inputs)
    lists = light_lists(
        data.examples.rows, data.light_scores, rows_of_part(heavy_inputs, data, PART_EVALUATION, 0), SMALL.light_k
    )
    inputs = np.concatenate([data.inputs(lists, request) for request in range(len(lists))])
    rates = HeavyScorer.load(trained[0], "schema-1", {}).probabilities(inputs).mean(axis=0)
    np.testing.assert_allclose(rates, data.examples.labels[lists.rows].mean(axis=0), rtol=0.25)


def test_objective_weights_change_the_order(heavy_inputs: Inputs, trained: tuple[Path, dict[str, float]]) -> None:
    data = heavy_data(heavy_inputs)
    wanted = rows_of_part(heavy_inputs, data, PART_EVALUATION, 0)
    lists = light_lists(data.examples.rows, data.light_scores, wanted, SMALL.light_k)
    inputs = np.concatenate([data.inputs(lists, request) for request in range(len(lists))])
    ids = data.examples.rows.request_id[lists.rows]
    ndcg = {}
    for name in ("click", "purchase"):
        scores = HeavyScorer.load(trained[0], "schema-1", {name: 1.0}).score(inputs)
        ndcg[name] = [mean_ndcg(ids, data.examples.labels[lists.rows, task], scores) for task in range(2)]
    assert ndcg["click"][0] > ndcg["purchase"][0] + 0.2
    assert ndcg["purchase"][1] > ndcg["click"][1] + 0.2


def test_the_exported_model_agrees_with_torch_and_carries_no_paths(heavy_inputs: Inputs, tmp_path: Path) -> None:
    data = heavy_data(heavy_inputs)
    lists = light_lists(data.examples.rows, data.light_scores, rows_of_part(heavy_inputs, data, PART_RANKER, 0), 12)
    config = SMALL.model_copy(update={"ensemble": 3, "network": NetworkConfig(cross_rank=4)})
    model = Trainer(config, data, np.array([1.0, 0.1])).fit(lists, epochs=1).eval()
    export_onnx(model, tmp_path / "heavy_ranker.onnx")
    description = {"feature_schema_hash": "h", "input_width": data.width, "tasks": ["a", "b"], "objective": {"a": 1}}
    (tmp_path / "heavy_ranker.json").write_text(json.dumps(description))
    scorer = HeavyScorer.load(tmp_path, "h", {"a": 1.0, "b": 0.5})
    for rows in (1, 2, 57):
        inputs = np.concatenate([data.inputs(lists, request) for request in range(6)])[:rows]
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(scorer.probabilities(inputs), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scorer.score(inputs), expected @ [1.0, 0.5], rtol=1e-4, atol=1e-6)
    assert [path.name for path in tmp_path.glob("*.onnx*")] == ["heavy_ranker.onnx"]
    assert b".py" not in (tmp_path / "heavy_ranker.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "heavy_ranker.onnx"))


def test_the_same_inputs_give_the_same_files_whatever_torch_drew_before(heavy_inputs: Inputs, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"max_epochs": 2, "network": NetworkConfig(dropout=0.3, deep_layers=(8,))})
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        torch.rand(3)
        train_heavy(config, heavy_inputs, tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_where_nothing_is_to_be_learnt_the_light_order_stays(fresh_inputs: Inputs, tmp_path: Path) -> None:
    data = heavy_data(fresh_inputs)
    best = np.lexsort((-data.light_scores, data.examples.rows.request_id)).reshape(-1, 15)[:, :2].ravel()
    labels = np.zeros((len(data.light_scores), 2), np.float32)
    labels[best] = 1.0  # the light ranker is always right
    np.save(fresh_inputs["examples"] / "labels.npy", labels)
    np.save(fresh_inputs["examples"] / "relevance.npy", labels[:, 0])
    metrics, _ = train_heavy(SMALL.model_copy(update={"max_epochs": 5}), fresh_inputs, tmp_path)
    assert metrics["validation_light_ndcg@10"] == metrics["validation_ndcg@10"] == 1.0
    assert metrics["epochs"] == 0


def test_a_task_without_a_positive_is_named(fresh_inputs: Inputs, tmp_path: Path) -> None:
    labels = np.load(fresh_inputs["examples"] / "labels.npy")
    labels[:, 1] = 0.0
    np.save(fresh_inputs["examples"] / "labels.npy", labels)
    with pytest.raises(DataError, match="task purchase has no positive among 324 rows of 27 ranker requests"):
        train_heavy(SMALL, fresh_inputs, tmp_path)


def test_no_relevant_row_is_an_error(fresh_inputs: Inputs, tmp_path: Path) -> None:
    relevance = np.load(fresh_inputs["examples"] / "relevance.npy")
    np.save(fresh_inputs["examples"] / "relevance.npy", np.zeros_like(relevance))
    with pytest.raises(DataError, match="no relevant row in the earlier 22 of 27 ranker requests"):
        train_heavy(SMALL, fresh_inputs, tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros((525, 1), np.float32), "2 tasks: click, purchase"), (np.full((525, 2), 0.5, np.float32), "0 and 1")],
)
def test_labels_that_are_not_of_the_tasks_are_refused(
    fresh_inputs: Inputs, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    np.save(fresh_inputs["examples"] / "labels.npy", labels)
    with pytest.raises(DataError, match=message):
        train_heavy(SMALL, fresh_inputs, tmp_path)


def test_a_feature_that_is_not_a_number_is_refused(fresh_inputs: Inputs, tmp_path: Path) -> None:
    features = np.load(fresh_inputs["examples"] / "features.npy")
    features[3, 2] = np.nan
    np.save(fresh_inputs["examples"] / "features.npy", features)
    with pytest.raises(DataError, match="feature 'f2' is nan in row 3"):
        train_heavy(SMALL, fresh_inputs, tmp_path)


TASKS = (Task(name="click", signals=("click",)), Task(name="skip", signals=("skip",), weight=-0.5))


def test_the_objective_is_configured_or_that_of_the_tasks() -> None:
    assert training_objective({}, TASKS) == {"click": 1.0, "skip": -0.5}
    assert training_objective({"skip": 2.0}, TASKS) == {"click": 0.0, "skip": 2.0}
    with pytest.raises(ConfigError, match=r"unknown task like; allowed: click, skip"):
        training_objective({"like": 1.0}, TASKS)
    with pytest.raises(ConfigError, match="at least one weight must be above 0"):
        training_objective({"click": -1.0}, TASKS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test needs absent")
def test_a_device_that_is_absent_is_refused(fresh_inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device = 'cuda'.*allowed: auto, cpu"):
        train_heavy(SMALL.model_copy(update={"device": "cuda"}), fresh_inputs, tmp_path)
