from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.examples import Examples, mean_ndcg
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, RankedTable, RequestTable
from stages.light_ranker.config import LightRankerConfig
from stages.light_ranker.scorer import LightScorer
from stages.light_ranker.train import _sample, select_training, train_light

Inputs = dict[str, Path]
SMALL = LightRankerConfig(threads=1, max_rounds=60, min_data_in_leaf=5, learning_rate=0.1, lambda_l2=0.1)


@pytest.fixture(scope="module")
def trained(linear_inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    directory = tmp_path_factory.mktemp("light")
    metrics, _ = train_light(SMALL, linear_inputs, directory)
    return directory, metrics


def test_a_planted_linear_preference_is_recovered(
    linear_inputs: Inputs, trained: tuple[Path, dict[str, float]]
) -> None:
    directory, metrics = trained
    assert metrics["oof_ndcg@10"] > 0.85
    assert metrics["oof_ndcg@10"] > metrics["retrieval_ndcg@10"] + 0.4
    importance = json.loads((directory / "light_ranker.json").read_text())["importance"]
    assert importance["f0"] > importance["f1"] > 5 * max(importance["f2"], importance["f3"], importance["f4"])
    assert sum(importance.values()) == pytest.approx(1.0, abs=1e-4)


def test_held_out_requests_are_ranked_by_the_saved_model(
    linear_inputs: Inputs, trained: tuple[Path, dict[str, float]]
) -> None:
    directory, _ = trained
    examples = Examples.read(linear_inputs["examples"])
    part = Snapshot(linear_inputs["snapshot"]).requests().part[examples.rows.request_id]
    held_out = part == PART_EVALUATION
    scores = np.load(directory / "scores.npy")
    scorer = LightScorer.load(directory, "schema-1")
    np.testing.assert_array_equal(scores[held_out], scorer.score(examples.features[held_out]))
    assert np.any(scores[~held_out] != scorer.score(examples.features[~held_out]))

    ranked = RankedTable.read(directory / "ranked.parquet")
    assert len(ranked) == held_out.sum()
    rows = examples.rows.take(held_out)
    for request in np.unique(rows.request_id):
        mine, answer = rows.request_id == request, ranked.request_id == request
        popular = rows.source[mine][0] == SOURCE_POPULAR
        order = np.arange(20) if popular else np.argsort(-scores[held_out][mine], kind="stable")
        np.testing.assert_array_equal(ranked.item_index[answer], rows.item_index[mine][order])


def test_out_of_fold_scores_know_nothing_of_the_user_they_score(secret_inputs: Inputs, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"max_rounds": 150, "num_leaves": 63, "min_data_in_leaf": 1, "lambda_l2": 0.0})
    metrics, _ = train_light(config, secret_inputs, tmp_path)
    examples = Examples.read(secret_inputs["examples"])
    requests = Snapshot(secret_inputs["snapshot"]).requests()
    training = select_training(examples, requests, config)
    memory = LightScorer.load(tmp_path, "schema-1").score(examples.features[training.rows])
    chance = metrics["retrieval_ndcg@10"]
    assert mean_ndcg(training.request_id, examples.relevance[training.rows], memory) > chance + 0.3
    assert metrics["oof_ndcg@10"] < chance + 0.1


def test_the_same_inputs_give_the_same_bytes(
    linear_inputs: Inputs, trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    directory, metrics = trained
    again, _ = train_light(SMALL, linear_inputs, tmp_path)
    assert again == metrics
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_training_uses_personal_ranker_requests_with_a_positive(fresh_inputs: Inputs) -> None:
    relevance = np.load(fresh_inputs["examples"] / "relevance.npy")
    relevance[:20] = 0.0  # request 0 found nothing that was wanted
    np.save(fresh_inputs["examples"] / "relevance.npy", relevance)
    training = select_training(
        Examples.read(fresh_inputs["examples"]), Snapshot(fresh_inputs["snapshot"]).requests(), SMALL
    )
    assert set(training.request_id) == set(range(20)) - {0, 9, 19}
    assert training.gains == (0.0, 1.0, 2.5)
    np.testing.assert_array_equal(np.array(training.gains)[training.grade], relevance[training.rows])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 5))
def test_sampling_keeps_positives_and_up_to_n_negatives(requests: list[list[bool]], negatives: int) -> None:
    ids = np.repeat(np.arange(len(requests)), [len(request) for request in requests])
    positive = np.concatenate([np.array(request) for request in requests])
    sampled = _sample(ids, positive, negatives, seed=1)
    assert sampled[positive].all()
    for request in range(len(requests)):
        found = (ids == request) & ~positive
        assert (sampled & found).sum() == min(negatives, found.sum())


def test_negatives_may_be_sampled_without_losing_the_preference(linear_inputs: Inputs, tmp_path: Path) -> None:
    metrics, _ = train_light(SMALL.model_copy(update={"negatives_per_request": 4}), linear_inputs, tmp_path)
    assert metrics["training_rows"] == metrics["training_requests"] * 7
    assert metrics["oof_ndcg@10"] > 0.8


def test_no_positive_is_an_error_with_counts(fresh_inputs: Inputs, tmp_path: Path) -> None:
    np.save(fresh_inputs["examples"] / "relevance.npy", np.zeros(500, dtype=np.float32))
    with pytest.raises(DataError, match=r"none of 20 ranker requests has a positive.*18 of them come from the index"):
        train_light(SMALL, fresh_inputs, tmp_path)


def test_one_request_with_a_positive_is_too_few(fresh_inputs: Inputs, tmp_path: Path) -> None:
    relevance = np.load(fresh_inputs["examples"] / "relevance.npy")
    relevance[20:] = 0.0
    np.save(fresh_inputs["examples"] / "relevance.npy", relevance)
    with pytest.raises(DataError, match="at least 2 users with a positive candidate, found 1"):
        train_light(SMALL, fresh_inputs, tmp_path)


def test_one_user_is_too_few_for_folds(fresh_inputs: Inputs, tmp_path: Path) -> None:
    requests = Snapshot(fresh_inputs["snapshot"]).requests()
    one_user = np.zeros_like(requests.user_index)
    RequestTable(requests.request_id, one_user, requests.request_time_ms, requests.part).write(
        fresh_inputs["snapshot"] / "requests.parquet"
    )
    with pytest.raises(DataError, match=r"at least 2 users.*found 1"):
        train_light(SMALL, fresh_inputs, tmp_path)


def test_a_request_that_the_snapshot_lacks_is_an_error(fresh_inputs: Inputs, tmp_path: Path) -> None:
    requests = Snapshot(fresh_inputs["snapshot"]).requests()
    requests.take(requests.part == PART_RANKER).write(fresh_inputs["snapshot"] / "requests.parquet")
    with pytest.raises(DataError, match="request_id 24 of 20 requests"):
        train_light(SMALL, fresh_inputs, tmp_path)
