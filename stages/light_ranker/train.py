"""Train the light ranker: LambdaRank grouped by request, out-of-fold scores for the heavy ranker.

R rows of the examples, M rows to learn from, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.examples import ExampleRows, ExamplesFile, mean_ndcg
from stages.contracts.progress import progress_of
from stages.contracts.steps import Outcome
from stages.contracts.summaries import LightSummary
from stages.light_ranker.config import LightRankerConfig
from stages.light_ranker.data import STEP, TrainingSet, binned, check_memory, select_training, subset
from stages.light_ranker.scorer import META_FILE, MODEL_FILE

SCORES_FILE = "scores.npy"
_MOST_GROWTH = 2.0


def train_light(config: LightRankerConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Train LambdaRank (Burges, 2010) and write the model and out-of-fold scores of the examples.

    A model of the earlier windows shows which number of rounds has the best mean NDCG@10 on the requests of the last
    one; then models are fitted on all windows, see ``Rounds``. The scores of a user's rows come from a model that never
    saw that user, so that the heavy ranker learns from scores as they will be at serving time.

    Args:
        config: see ``LightRankerConfig``.
        inputs: directory ``examples``.
        directory: gets ``light_ranker.txt``, ``light_ranker.json`` and ``scores.npy`` float32 ``[R]``.

    Raises:
        ConfigError: if the examples do not fit the memory.
        DataError: if fewer than two requests, or requests of fewer than two users, have a positive among their
            candidates, or the examples are malformed.
    """
    file = ExamplesFile(inputs["examples"])
    check_memory(file)
    rows = file.read(with_features=False)
    training = select_training(rows)
    fold_of_user = assign_folds(training.user_index, config)
    parameters = _parameters(config, training)
    data = binned(file, training, parameters)
    rounds = _choose_rounds(config, data, training, parameters)
    booster = _fit(data, parameters, rounds.fitted, "light: all")
    fold_of_row = fold_of_user[training.user_index]
    folds = [
        _fit(subset(data, fold_of_row != fold), parameters, rounds.fitted, f"light: without fold {fold + 1}")
        for fold in range(fold_of_row.max() + 1)
    ]
    del data

    scores = _out_of_fold(file, rows.user_index, [*folds, booster], fold_of_user, config.threads)
    booster.save_model(directory / MODEL_FILE)
    np.save(directory / SCORES_FILE, scores, allow_pickle=False)
    metrics = _metrics(rows, training, scores, rounds)
    _summary(file, booster, metrics).write(directory / META_FILE)
    return metrics, {"feature_schema_hash": file.schema_hash}


def assign_folds(user_index: np.ndarray, config: LightRankerConfig) -> np.ndarray:
    """Return int64 by user index: the fold whose model does not see the user; -1 for users without training rows.

    Args:
        user_index: int64 ``[M]``, of the training rows.
        config: ``folds`` and ``seed``.

    Raises:
        DataError: if there are fewer than two users.
    """
    users = np.unique(user_index)
    if len(users) < 2:
        raise DataError(
            f"{STEP}: out-of-fold scores need at least 2 users with a positive candidate, found {len(users)}"
        )
    fold_of_user = np.full(int(users[-1]) + 1, -1, dtype=np.int64)
    order = np.random.default_rng(config.seed).permutation(users)
    fold_of_user[order] = np.arange(len(users)) % min(config.folds, len(users))
    return fold_of_user


@dataclass(frozen=True)
class Rounds:
    """The choice of the number of rounds.

    Attributes:
        best: number of rounds that serves the requests held out best.
        fitted: number of rounds of the models that are kept. More requests stand more rounds before a model learns
            their noise: it is ``best`` times the ratio of all requests to the earlier ones, which is limited to 2.
        ndcg: mean NDCG@10 of the requests held out, averaged over the rounds around ``best``.
        requests: number of requests held out.
    """

    best: int
    fitted: int
    ndcg: float
    requests: int


def _choose_rounds(
    config: LightRankerConfig, data: lgb.Dataset, training: TrainingSet, parameters: Mapping[str, Any]
) -> Rounds:
    """Grow a model of the earlier windows until the NDCG@10 of the last one has stopped rising."""
    booster = lgb.Booster(dict(parameters), subset(data, ~training.late))
    booster.add_valid(subset(data, training.late), "late")
    curve: list[float] = []
    with progress_of("light: rounds", config.max_rounds, "round") as advance:
        for number in range(1, config.max_rounds + 1):
            booster.update()
            curve.append(float(booster.eval_valid()[0][2]))
            advance(1)
            best, ndcg = best_round(curve, config.smoothing)
            if number - best >= config.patience + config.smoothing // 2:
                break
    late, everything = (len(np.unique(training.request_id[rows])) for rows in (training.late, slice(None)))
    fitted = round(best * min(everything / (everything - late), _MOST_GROWTH))
    return Rounds(best, min(fitted, config.max_rounds), ndcg, late)


def best_round(curve: list[float], smoothing: int) -> tuple[int, float]:
    """Return the middle of the rounds with the best mean NDCG, and that mean.

    One window has few requests: the NDCG of a single round is high or low by chance, and the best of many rounds is the
    luckiest one. A mean over neighbouring rounds, whose models hardly differ, has less of that chance.

    Args:
        curve: NDCG after 1, 2 ... rounds, at least one value.
        smoothing: number of neighbouring rounds that are averaged.
    """
    width = min(smoothing, len(curve))
    means = np.convolve(curve, np.full(width, 1.0 / width), mode="valid")
    first = int(means.argmax())
    return first + (width - 1) // 2 + 1, float(means[first])


def _parameters(config: LightRankerConfig, training: TrainingSet) -> dict[str, Any]:
    return {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "label_gain": list(training.gains),
        "lambdarank_truncation_level": config.truncation_level,
        "learning_rate": config.learning_rate,
        "num_leaves": config.num_leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "lambda_l2": config.lambda_l2,
        "seed": config.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": config.threads,
        "verbosity": -1,
    }


def _fit(data: lgb.Dataset, parameters: Mapping[str, Any], rounds: int, phase: str) -> lgb.Booster:
    with progress_of(phase, rounds, "round") as advance:
        return lgb.train(dict(parameters), data, num_boost_round=rounds, callbacks=[lambda _: advance(1)])


def _out_of_fold(
    file: ExamplesFile, user_index: np.ndarray, boosters: list[lgb.Booster], fold_of_user: np.ndarray, threads: int
) -> np.ndarray:
    """Return float32 ``[R]``: each row's score by a model that never saw its user.

    Args:
        file: read a row group at a time.
        user_index: int64 ``[R]``.
        boosters: one per fold, then the model of all training users, for users that are none of them.
        fold_of_user: see ``assign_folds``.
        threads: of LightGBM.
    """
    known = user_index < len(fold_of_user)
    fold = np.where(known, fold_of_user[np.where(known, user_index, 0)], -1)
    model = np.where(fold >= 0, fold, len(boosters) - 1)
    scores = np.empty(len(user_index), dtype=np.float32)
    with progress_of("light: scores", len(scores), "row") as advance:
        for number, start in enumerate(file.group_starts[:-1]):
            features = file.group(number).features
            of_group = slice(start, start + len(features))
            for place, booster in enumerate(boosters):
                rows = np.flatnonzero(model[of_group] == place)
                if len(rows):
                    scores[start + rows] = booster.predict(features[rows], raw_score=True, num_threads=threads)
            advance(len(features))
    return scores


def _metrics(rows: ExampleRows, training: TrainingSet, scores: np.ndarray, rounds: Rounds) -> dict[str, float]:
    """Return what the training found; every NDCG@10 is that of the sampled rows."""
    relevance = rows.relevance[training.rows]
    return {
        "oof_ndcg@10": mean_ndcg(training.request_id, relevance, scores[training.rows]),
        "retrieval_ndcg@10": mean_ndcg(training.request_id, relevance, rows.score[training.rows]),
        "validation_ndcg@10": rounds.ndcg,
        "validation_requests": float(rounds.requests),
        "training_requests": float(len(np.unique(training.request_id))),
        "training_rows": float(len(training)),
        "validation_rounds": float(rounds.best),
        "rounds": float(rounds.fitted),
    }


def _summary(file: ExamplesFile, booster: lgb.Booster, metrics: dict[str, float]) -> LightSummary:
    importance = booster.feature_importance(importance_type="gain")
    total = max(float(importance.sum()), 1e-12)
    return LightSummary(
        feature_schema_hash=file.schema_hash,
        n_features=len(file.feature_names),
        rounds=round(metrics["rounds"]),
        metrics=metrics,
        importance={
            name: round(float(gain) / total, 6) for name, gain in zip(file.feature_names, importance, strict=True)
        },
    )
