from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts import memory
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.example_windows import late_requests
from stages.contracts.examples import ExampleRows, ExamplesFile, mean_ndcg
from stages.contracts.ranking import SOURCE_POPULAR
from stages.light_ranker.config import LightRankerConfig
from stages.light_ranker.data import binned, select_training, subset
from stages.light_ranker.scorer import LightScorer
from stages.light_ranker.train import assign_folds, best_round, train_light
from stages.recipe import Recipe
from tests.builders.examples import example_rows, write_examples
from tests.light_ranker.worlds import World

SMALL = LightRankerConfig(
    threads=1, max_rounds=60, smoothing=5, patience=10, min_data_in_leaf=5, learning_rate=0.1, lambda_l2=0.1
)


def train(rows: ExampleRows, root: Path, config: LightRankerConfig = SMALL) -> dict[str, float]:
    """Write rows and train on them; the step's files go to ``root``."""
    inputs = {"examples": write_examples(root / "examples", rows)}
    return train_light(config, inputs, root)[0]


@pytest.fixture(scope="module")
def trained(linear: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    directory = tmp_path_factory.mktemp("light")
    metrics, _ = train_light(SMALL, linear.inputs, directory)
    return directory, metrics


def test_a_planted_linear_preference_is_recovered(trained: tuple[Path, dict[str, float]]) -> None:
    directory, metrics = trained
    assert metrics["oof_ndcg@10"] > 0.85
    assert metrics["oof_ndcg@10"] > metrics["retrieval_ndcg@10"] + 0.4
    importance = json.loads((directory / "light_ranker.json").read_text())["importance"]
    assert importance["f0"] > importance["f1"] > 5 * max(importance["f2"], importance["f3"], importance["f4"])
    assert sum(importance.values()) == pytest.approx(1.0, abs=1e-4)


def test_only_the_model_and_one_score_a_row_are_written(linear: World, trained: tuple[Path, dict[str, float]]) -> None:
    directory, _ = trained
    assert sorted(path.name for path in directory.iterdir()) == ["light_ranker.json", "light_ranker.txt", "scores.npy"]
    scores = np.load(directory / "scores.npy")
    assert scores.shape == (len(linear.rows),) and scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_out_of_fold_scores_know_nothing_of_the_user_they_score(secret: World, tmp_path: Path) -> None:
    config = SMALL.changed(max_rounds=150, patience=150, num_leaves=63, min_data_in_leaf=1, lambda_l2=0.0)
    metrics, _ = train_light(config, secret.inputs, tmp_path)
    rows = secret.rows
    chosen = select_training(rows).rows
    learnt = LightScorer.load(tmp_path, "schema-1").score(rows.features)
    out_of_fold = np.load(tmp_path / "scores.npy")
    chance = metrics["retrieval_ndcg@10"]
    ids, relevance = rows.request_id[chosen], rows.relevance[chosen]
    assert mean_ndcg(ids, relevance, learnt[chosen]) > chance + 0.25
    assert mean_ndcg(ids, relevance, out_of_fold[chosen]) == pytest.approx(metrics["oof_ndcg@10"])
    assert metrics["oof_ndcg@10"] < chance + 0.1


def test_the_rows_of_a_user_who_taught_nothing_are_scored_by_the_model_that_is_released(
    small_rows: ExampleRows, tmp_path: Path
) -> None:
    without = np.isin(small_rows.request_id, [3, 4, 9])  # 9 is answered from the popular list
    rows = replace(small_rows, relevance=np.where(without, 0, small_rows.relevance).astype(np.float32))
    user = rows.user_index.copy()
    user[without] += 1000
    rows = replace(rows, user_index=user)
    train(rows, tmp_path)
    released, scores = LightScorer.load(tmp_path, "schema-1").score(rows.features), np.load(tmp_path / "scores.npy")
    np.testing.assert_array_equal(scores[without], released[without])
    taught = ~np.isin(rows.user_index, rows.user_index[without]) & (rows.source != SOURCE_POPULAR)
    assert (scores[taught] != released[taught]).mean() > 0.5


def test_the_same_inputs_give_the_same_bytes(
    linear: World, trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    directory, metrics = trained
    again, _ = train_light(SMALL, linear.inputs, tmp_path)
    assert again == metrics
    for path in directory.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_how_rows_lie_in_row_groups_changes_nothing(linear: World, tmp_path: Path) -> None:
    for groups in (5, 1000):
        inputs = {"examples": write_examples(tmp_path / f"examples{groups}", linear.rows, requests_per_group=groups)}
        (tmp_path / str(groups)).mkdir()
        train_light(SMALL, inputs, tmp_path / str(groups))
    for path in (tmp_path / "5").iterdir():
        assert path.read_bytes() == (tmp_path / "1000" / path.name).read_bytes(), path.name


def test_training_uses_personal_requests_with_a_positive(small_rows: ExampleRows) -> None:
    relevance = small_rows.relevance.copy()
    relevance[:20] = 0.0  # request 0 found nothing that was wanted
    training = select_training(replace(small_rows, relevance=relevance))
    assert set(training.request_id) == set(range(20)) - {0, 9, 19}
    assert training.gains == (0.0, 1.0, 2.5)
    np.testing.assert_array_equal(np.array(training.gains)[training.grade], relevance[training.rows])
    np.testing.assert_array_equal(np.unique(training.request_id[training.late]), [15, 16, 17, 18])


def test_bins_of_row_groups_are_those_of_the_whole_matrix(linear: World) -> None:
    training = select_training(linear.rows)
    parameters = {"verbosity": -1, "objective": "lambdarank", "label_gain": list(training.gains), "num_threads": 1}
    lengths = np.full(len(training) // 20, 20)
    whole = lgb.Dataset(linear.rows.features[training.rows], training.grade, group=lengths, params=parameters)
    streamed = binned(ExamplesFile(linear.inputs["examples"]), training, parameters)
    found, expected = (lgb.train(parameters, data, num_boost_round=3) for data in (streamed, whole))
    np.testing.assert_array_equal(found.predict(linear.rows.features), expected.predict(linear.rows.features))


def test_a_part_of_the_bins_holds_whole_requests(linear: World) -> None:
    training = select_training(linear.rows)
    data = binned(ExamplesFile(linear.inputs["examples"]), training, {"verbosity": -1})
    part = subset(data, training.late).construct()
    assert part.num_data() == training.late.sum()
    np.testing.assert_array_equal(part.get_label(), training.grade[training.late])
    assert set(np.diff(part.get_group())) == {0} and part.get_group()[0] == 20


def test_no_user_is_in_two_folds_and_all_folds_are_about_as_large() -> None:
    users = np.repeat([3, 5, 8, 13, 21, 34, 55], 4)
    fold = assign_folds(users, LightRankerConfig(folds=3))
    np.testing.assert_array_equal(np.sort(np.bincount(fold[np.unique(users)])), [2, 2, 3])
    assert (np.delete(fold, np.unique(users)) == -1).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 9))
def test_the_best_round_is_the_middle_of_the_best_mean(curve: list[float], smoothing: int) -> None:
    best, ndcg = best_round(curve, smoothing)
    width = min(smoothing, len(curve))
    first = best - 1 - (width - 1) // 2
    means = [np.mean(curve[start : start + width]) for start in range(len(curve) - width + 1)]
    assert ndcg == pytest.approx(max(means)) == pytest.approx(means[first])


def test_one_lucky_round_does_not_choose() -> None:
    curve = [0.1, 0.5, 0.1, *[0.2, 0.3, 0.3, 0.3, 0.2] * 2]
    assert best_round(curve, 1)[0] == 2
    assert best_round(curve, 3)[0] == 6


def test_trees_grow_until_the_last_window_is_served_best(linear: World, tmp_path: Path) -> None:
    """The last window wants the opposite of the others: more than the first rounds only do harm."""
    last = linear.rows.window == 3
    features = np.where(last[:, None], -linear.rows.features, linear.rows.features)
    metrics = train(replace(linear.rows, features=features.astype(np.float32)), tmp_path)
    assert metrics["validation_requests"] == 36
    assert metrics["validation_rounds"] <= SMALL.smoothing
    assert metrics["validation_ndcg@10"] < 0.5


def test_models_of_all_windows_get_rounds_for_their_further_requests(trained: tuple[Path, dict[str, float]]) -> None:
    directory, metrics = trained
    assert metrics["training_requests"] == 144 and metrics["validation_requests"] == 36
    assert metrics["rounds"] == min(round(metrics["validation_rounds"] * 144 / 108), SMALL.max_rounds)
    trees = lgb.Booster(model_file=directory / "light_ranker.txt").num_trees()
    assert trees == metrics["rounds"] == json.loads((directory / "light_ranker.json").read_text())["rounds"]


def late(window: list[int], positive: list[int]) -> list[int]:
    return late_requests("ranker", np.array(window), np.array(positive, bool)).astype(int).tolist()


def test_the_last_window_is_held_out() -> None:
    assert late([0, 0, 1, 2, 2], [1, 0, 0, 0, 1]) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("window", "positive", "expected"),
    [
        ([0] * 6, [1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1]),  # one window
        ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]),  # nothing wanted in the last one
        ([0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]),  # nothing wanted before it
        ([0] * 10, [1] * 10, [0] * 8 + [1] * 2),
    ],
)
def test_where_windows_say_nothing_the_latest_requests_are_held_out(
    window: list[int], positive: list[int], expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert late(window, positive) == expected
    assert "ranker: requests with a positive:" in caplog.text
    assert f"the latest {sum(np.array(expected) & np.array(positive))} of all {sum(positive)} are held" in caplog.text


@pytest.mark.parametrize("positive", [[0, 0, 0], [0, 1, 0]])
def test_less_than_two_requests_with_a_positive_cannot_be_split(positive: list[int]) -> None:
    with pytest.raises(DataError, match=rf"ranker: .*at least 2 requests .*{sum(positive)} of 3 have one"):
        late([0, 1, 1], positive)


def only(rows: ExampleRows, wanted: np.ndarray) -> ExampleRows:
    return replace(rows, relevance=np.where(wanted, rows.relevance, 0).astype(np.float32))


def test_no_positive_is_an_error_with_counts(small_rows: ExampleRows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 20 requests has a positive.*18 of them come from the index"):
        train(only(small_rows, np.zeros(400, bool)), tmp_path)
    with pytest.raises(DataError, match=r"none of 0 requests has a positive"):
        train(small_rows.take(slice(0, 0)), tmp_path)


@pytest.mark.parametrize("keep", ["one request", "a positive in one request"])
def test_one_request_is_too_few(small_rows: ExampleRows, tmp_path: Path, keep: str) -> None:
    first = small_rows.request_id == 0
    rows = small_rows.take(first) if keep == "one request" else only(small_rows, first)
    with pytest.raises(DataError, match="at least 2 requests need a positive among their candidates; 1 of 1 have one"):
        train(rows, tmp_path)


def test_two_requests_of_two_users_are_enough(small_rows: ExampleRows, tmp_path: Path) -> None:
    metrics = train(small_rows.take(small_rows.request_id < 2), tmp_path)
    assert (metrics["training_requests"], metrics["validation_requests"]) == (2, 1)


def test_one_user_is_too_few_for_folds(small_rows: ExampleRows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 2 users.*found 1"):
        train(replace(small_rows, user_index=np.zeros(400, np.int64)), tmp_path)


def test_requests_whose_rows_are_all_positive_do_no_harm(small_rows: ExampleRows, tmp_path: Path) -> None:
    wanted = np.isin(small_rows.request_id, [1, 17])
    metrics = train(replace(small_rows, relevance=np.where(wanted, 1, small_rows.relevance).astype("f4")), tmp_path)
    assert metrics["training_requests"] == 18
    everything = example_rows(small_rows.request_id, small_rows.features, relevance=1.0, window=small_rows.window)
    assert train(everything, tmp_path)["oof_ndcg@10"] == 1.0


def test_a_feature_that_is_not_a_number_is_refused(small_rows: ExampleRows, tmp_path: Path) -> None:
    write_examples(tmp_path / "examples", small_rows)
    small_rows.features[3, 2] = np.nan
    with pytest.raises(DataError, match="f2 = nan in row 3"):
        train(small_rows, tmp_path)


def test_examples_that_do_not_fit_the_memory_are_refused_before_they_are_read(
    small_rows: ExampleRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda root: 1000)
    message = (
        r"train_light \(400 rows x 5 features\) needs about [\d,]+ bytes of memory, 1,000 are available; lower "
        r"examples\.requests or examples\.negatives\.per_request"
    )
    with pytest.raises(ConfigError, match=message):
        train(small_rows, tmp_path)


def test_the_former_key_says_where_negatives_are_sampled_now() -> None:
    with pytest.raises(ConfigError, match=r"negatives_per_request.*gone; set examples.negatives.per_request"):
        parse_config(Recipe, {"light_ranker": {"negatives_per_request": 50}}, "recipe.yaml")
