"""Train the light ranker: LambdaRank grouped by request, out-of-fold scores for the heavy ranker.

R rows, F features, Q requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from tqdm import tqdm

from stages.contracts.errors import DataError
from stages.contracts.examples import Examples, mean_ndcg
from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.ranking import SOURCE_POPULAR, rank_rows
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.summaries import LightSummary
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, RequestTable
from stages.light_ranker.config import LightRankerConfig
from stages.light_ranker.scorer import META_FILE, MODEL_FILE

_CHUNK_ROWS = 1 << 17


@dataclass(frozen=True)
class TrainingSet:
    """The rows that the light ranker learns from, still in example order.

    Attributes:
        rows: int64 ``[M]`` positions in the examples: every candidate of every usable request.
        request_id, user_index: int64 ``[M]``.
        grade: int32 ``[M]``, 0 = not relevant, then one grade for each distinct relevance.
        sampled: bool ``[M]``, false for negatives that training leaves out.
        gains: relevance of each grade.
    """

    rows: np.ndarray
    request_id: np.ndarray
    user_index: np.ndarray
    grade: np.ndarray
    sampled: np.ndarray
    gains: tuple[float, ...]


def train_light(config: LightRankerConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Train LambdaRank (Burges, 2010) and write the model, its scores and the evaluation rankings.

    The number of rounds is chosen by cross-validation over users, then the model is fitted on the whole ranker period.
    Rows of a user in the training set get their score from the fold whose model never saw that user, so that the heavy
    ranker learns from scores as they will be at serving time. The NDCG of these scores is a little too good: the number
    of rounds was chosen by it.

    Args:
        config: see ``LightRankerConfig``.
        inputs: directories ``snapshot`` and ``examples``.
        directory: gets ``light_ranker.txt``, ``light_ranker.json``, ``scores.npy`` float32 ``[R]`` and
            ``ranked.parquet`` (evaluation requests).

    Raises:
        DataError: if no ranker request has a positive among its candidates, fewer than two users have one, or an input
            is malformed.
    """
    requests = Snapshot(inputs["snapshot"]).requests()
    examples = Examples.read(inputs["examples"])
    part = _part_of_rows(examples, requests)
    training = select_training(examples, requests, config)
    folds = _grow_folds(config, examples, training)
    rounds = folds.rounds
    booster = _fit(config, examples, training, rounds)
    scores = _predict(booster, examples.features, np.arange(len(part)), config.threads, rounds)
    out_of_fold = _out_of_fold(config, examples, requests, part, folds)
    scores = np.where(np.isnan(out_of_fold), scores, out_of_fold).astype(np.float32)

    held_out = part == PART_EVALUATION
    booster.save_model(directory / MODEL_FILE)
    np.save(directory / "scores.npy", scores, allow_pickle=False)
    rank_rows(examples.rows.take(held_out), scores[held_out]).write(directory / "ranked.parquet")
    metrics = _metrics(examples, training, scores, rounds)
    _summary(examples, booster, rounds, metrics).write(directory / META_FILE)
    return metrics, {"feature_schema_hash": examples.schema_hash}


def _part_of_rows(examples: Examples, requests: RequestTable) -> np.ndarray:
    if len(examples.rows) and examples.rows.request_id[-1] >= len(requests):
        raise DataError(f"rows.parquet: request_id {examples.rows.request_id[-1]} of {len(requests)} requests")
    part: np.ndarray = requests.part[examples.rows.request_id]
    return part


def select_training(examples: Examples, requests: RequestTable, config: LightRankerConfig) -> TrainingSet:
    """Choose the requests of the ranker period that have both a history and a positive candidate.

    Raises:
        DataError: if none is left, with the counts that explain it.
    """
    ids = examples.rows.request_id
    ranker = requests.part[ids] == PART_RANKER
    personal = ranker & (examples.rows.source != SOURCE_POPULAR)
    positive_requests = np.unique(ids[personal & (examples.relevance > 0)])
    rows = np.flatnonzero(personal & np.isin(ids, positive_requests))
    if len(rows) == 0:
        raise DataError(
            f"light ranker: none of {len(np.unique(ids[ranker]))} ranker requests has a positive among its candidates "
            f"({len(np.unique(ids[personal]))} of them come from the index, the others from the popular list)"
        )
    levels = np.unique(examples.relevance[rows])
    levels = levels[levels > 0]
    grade = np.where(examples.relevance[rows] > 0, np.searchsorted(levels, examples.relevance[rows]) + 1, 0)
    return TrainingSet(
        rows=rows,
        request_id=ids[rows],
        user_index=requests.user_index[ids[rows]],
        grade=grade.astype(np.int32),
        sampled=_sample(ids[rows], grade > 0, config.negatives_per_request, config.seed),
        gains=(0.0, *(float(level) for level in levels)),
    )


def _sample(request_id: np.ndarray, positive: np.ndarray, negatives: int | None, seed: int) -> np.ndarray:
    """Keep every positive and at most ``negatives`` random negatives of each request."""
    if negatives is None:
        return np.ones(len(request_id), dtype=bool)
    key = np.where(positive, -1.0, np.random.default_rng(seed).random(len(request_id)))
    order = np.lexsort((key, request_id))
    starts = run_offsets(request_id)
    limit = negatives + np.add.reduceat(positive.astype(np.int64), starts[:-1])
    lengths = np.diff(starts)
    kept = places_in_rows(lengths) < np.repeat(limit, lengths)
    sampled = np.zeros(len(order), dtype=bool)
    sampled[order] = kept
    return sampled


@dataclass(frozen=True)
class Folds:
    """One model per fold of users, all grown round by round.

    Attributes:
        boosters: K models; each may hold more rounds than are used.
        fold_of_user: int64 by user index, the fold whose model never saw the user; -1 for others.
        rounds: number of rounds with the best mean NDCG@10 on the requests of unseen users.
    """

    boosters: tuple[lgb.Booster, ...]
    fold_of_user: np.ndarray
    rounds: int


def _grow_folds(config: LightRankerConfig, examples: Examples, training: TrainingSet) -> Folds:
    """Grow all folds round by round until their mean NDCG@10 has not risen for ``patience`` rounds.

    One late slice of the requests is too small to choose by: the number of rounds that it prefers
    depends on chance (see docs/log.md, light ranker). Unseen users keep all their candidates.
    """
    users = np.unique(training.user_index)
    if len(users) < 2:
        raise DataError(
            f"light ranker: out-of-fold scores need at least 2 users with a positive candidate, found {len(users)}"
        )
    n_folds = min(config.folds, len(users))
    fold_of_user = np.full(int(users[-1]) + 1, -1, dtype=np.int64)
    fold_of_user[np.random.default_rng(config.seed).permutation(users)] = np.arange(len(users)) % n_folds
    fold_of_row = fold_of_user[training.user_index]
    boosters, weights = [], []
    for fold in range(n_folds):
        unseen = fold_of_row == fold
        fitted = _dataset(examples, training, ~unseen & training.sampled)
        booster = lgb.Booster(_parameters(config, training), fitted)
        booster.add_valid(_dataset(examples, training, unseen, reference=fitted), "unseen")
        boosters.append(booster)
        weights.append(len(np.unique(training.request_id[unseen])))
    best, rounds = -1.0, 0
    with tqdm(total=config.max_rounds, desc="light: folds", unit="round", disable=None, leave=False) as bar:
        for number in range(1, config.max_rounds + 1):
            for booster in boosters:
                booster.update()
            ndcg = float(np.average([booster.eval_valid()[0][2] for booster in boosters], weights=weights))
            bar.update()
            if ndcg > best:
                best, rounds = ndcg, number
            elif number - rounds >= config.patience:
                break
    return Folds(tuple(boosters), fold_of_user, rounds)


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
        "force_row_wise": True,
        "num_threads": config.threads,
        "verbosity": -1,
    }


def _dataset(
    examples: Examples, training: TrainingSet, chosen: np.ndarray, reference: lgb.Dataset | None = None
) -> lgb.Dataset:
    return lgb.Dataset(
        examples.features[training.rows[chosen]],
        label=training.grade[chosen],
        group=np.diff(run_offsets(training.request_id[chosen])),
        feature_name=list(examples.feature_names),
        reference=reference,
        params={"verbosity": -1},
    )


def _fit(config: LightRankerConfig, examples: Examples, training: TrainingSet, rounds: int) -> lgb.Booster:
    data = _dataset(examples, training, training.sampled)
    with tqdm(total=rounds, desc="light: all", unit="round", disable=None, leave=False) as bar:
        return lgb.train(
            _parameters(config, training), data, num_boost_round=rounds, callbacks=[lambda _: bar.update()]
        )


def _predict(booster: lgb.Booster, features: np.ndarray, rows: np.ndarray, threads: int, rounds: int) -> np.ndarray:
    """Score rows of the memory-mapped features, a chunk at a time."""
    scores = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        scores[chunk] = booster.predict(
            features[rows[chunk]], raw_score=True, num_threads=threads, num_iteration=rounds
        )
    return scores


def _out_of_fold(
    config: LightRankerConfig, examples: Examples, requests: RequestTable, part: np.ndarray, folds: Folds
) -> np.ndarray:
    """Return float32 ``[R]``: scores of training users' ranker rows by models that never saw them, else NaN."""
    user = requests.user_index[examples.rows.request_id]
    known = (part == PART_RANKER) & (user < len(folds.fold_of_user))
    fold_of_row = np.full(len(part), -1, dtype=np.int64)
    fold_of_row[known] = folds.fold_of_user[user[known]]
    scores = np.full(len(part), np.nan, dtype=np.float32)
    for fold, booster in enumerate(folds.boosters):
        rows = np.flatnonzero(fold_of_row == fold)
        scores[rows] = _predict(booster, examples.features, rows, config.threads, folds.rounds)
    return scores


def _metrics(examples: Examples, training: TrainingSet, scores: np.ndarray, rounds: int) -> dict[str, float]:
    relevance = examples.relevance[training.rows]
    return {
        "oof_ndcg@10": mean_ndcg(training.request_id, relevance, scores[training.rows]),
        "retrieval_ndcg@10": mean_ndcg(training.request_id, relevance, examples.rows.score[training.rows]),
        "training_requests": float(len(np.unique(training.request_id))),
        "training_rows": float(training.sampled.sum()),
        "rounds": float(rounds),
    }


def _summary(examples: Examples, booster: lgb.Booster, rounds: int, metrics: dict[str, float]) -> LightSummary:
    importance = booster.feature_importance(importance_type="gain")
    total = max(float(importance.sum()), 1e-12)
    return LightSummary(
        feature_schema_hash=examples.schema_hash,
        n_features=len(examples.feature_names),
        rounds=rounds,
        metrics=metrics,
        importance={
            name: round(float(gain) / total, 6) for name, gain in zip(examples.feature_names, importance, strict=True)
        },
    )
