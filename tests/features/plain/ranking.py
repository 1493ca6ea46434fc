"""The ranking features in plain Python; names and order are those of ``stages.features.ranking``.

Shapes: n candidates of one request, N items, D vector
dimensions, F features, H newest items of the user, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stages.contracts.snapshot import ItemTable
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS
from stages.features.ranking import feature_schema
from tests.features.plain.parts import (
    HOUR_MS,
    Categories,
    Columns,
    User,
    context_columns,
    log_hours,
    ratio,
    smooth,
    user_category_columns,
    user_rate,
)
from tests.features.plain.state import FunnelState


def ranking_features(
    state: FunnelState,
    user_index: int,
    time_ms: int,
    items: np.ndarray,
    scores: np.ndarray,
    ranks: np.ndarray,
    item_vectors: np.ndarray,
    context: Sequence[int] = (),
    source_scores: SourceScores | None = None,
) -> np.ndarray:
    """Return the features of one request's candidates, from the current state.

    The caller must ensure that the state holds only events before ``time_ms``, see ``replay``.

    Args:
        state: histories, counters and co-visitation.
        user_index: index of the user, who may be unknown to the state.
        time_ms: time of the request.
        items: int64 ``[n]`` distinct candidates.
        scores: float32 ``[n]`` retrieval scores, finite.
        ranks: int32 ``[n]`` retrieval ranks, 0-based.
        item_vectors: float32 ``[N, D]``, row = item index.
        context: the request's code in each of the state's context columns, 0 if unknown; empty if the
            context is unknown.
        source_scores: the candidates' scores and ranks by generator, n rows; None if there is only one generator.

    Returns:
        float32 ``[n, F]``, finite, columns in the order of ``feature_schema``.
    """
    user = User.read(state, user_index)
    columns: Columns = {"retrieval_score": scores, "retrieval_log_rank": np.log1p(ranks)}
    columns |= _item_columns(state, time_ms, items)
    columns |= _duration_columns(state.items, user, items)
    columns |= _user_columns(state, user, time_ms)
    candidates = Categories(state.items, items)
    columns |= _category_columns(state, user, time_ms, candidates)
    columns |= user_category_columns(state, user, time_ms, candidates)
    columns |= context_columns(state, items, candidates, context)
    total, best = state.covisitation.scores(user.newest, items, state.touches)
    columns |= {"covisitation_sum": total, "covisitation_max": best}
    columns |= _similarity_columns(user.newest, items, item_vectors, state.config.history_decay)
    for name, period in (("hour", DAY_MS), ("weekday", 7 * DAY_MS)):
        angle = 2 * math.pi * (time_ms % period) / period
        columns |= {f"{name}_sin": math.sin(angle), f"{name}_cos": math.cos(angle)}
    columns |= _source_columns(source_scores)
    generators = () if source_scores is None else source_scores.names
    names = feature_schema(state.config, state.tasks, state.context, generators).names
    features = np.empty((len(items), len(names)), dtype=np.float32)
    for position, name in enumerate(names):
        features[:, position] = columns[name]
    return features


def _source_columns(source_scores: SourceScores | None) -> Columns:
    columns: Columns = {}
    if source_scores is None:
        return columns
    for place, name in enumerate(source_scores.names):
        scores, ranks = source_scores.scores[:, place], source_scores.ranks[:, place]
        columns[f"source_{name}_score"] = np.where(ranks >= 0, scores, 0.0)
        columns[f"source_{name}_reciprocal_rank"] = np.where(ranks >= 0, 1.0 / (1.0 + np.abs(ranks)), 0.0)
    return columns


def _item_columns(state: FunnelState, time_ms: int, items: np.ndarray) -> Columns:
    half_lives, smoothing = state.config.half_lives_days, state.config.smoothing
    counts = [state.item_counts.read(position, time_ms, items) for position in range(len(half_lives))]
    touches = state.touches[items]
    columns: Columns = {"item_popularity_all": np.log1p(touches)}
    for days, count in zip(half_lives, counts, strict=True):
        columns[f"item_popularity_{days:g}d"] = np.log1p(count)
    for position, (short, long) in enumerate(pairwise(half_lives)):
        # The decayed counts of an item with a constant rate are proportional to the half-lives: its ratio is near 1.
        trend = (counts[position] * (long / short) + 1.0) / (counts[position + 1] + 1.0)
        columns[f"item_trend_{short:g}d_{long:g}d"] = np.log(trend)
    age_days = (time_ms - state.items.created_at_ms[items]) / DAY_MS
    columns["item_age"] = np.log1p(np.maximum(age_days, 0.0))
    columns["item_recency"] = log_hours(time_ms, state.item_counts.last_ms[items])

    all_touches = state.total("touches")
    trials = np.maximum(state.exposures[items], touches)
    prior = ratio(all_touches, max(state.total("exposures"), all_touches))
    columns["item_choice_rate"] = smooth(touches, trials, prior, smoothing)
    recent = counts[state.config.middle_half_life]
    recent_trials = np.maximum(state.exposure_counts.read(0, time_ms, items), recent)
    columns["item_recent_choice_rate"] = smooth(recent, recent_trials, prior, smoothing)
    for number, task in enumerate(state.tasks):
        prior = ratio(state.task_total(number), all_touches)
        columns[f"item_rate_{task.name}"] = smooth(state.positives[number][items], touches, prior, smoothing)
        positives = state.task_counts.read(0, time_ms, items + number * len(state.items))
        columns[f"item_recent_rate_{task.name}"] = smooth(positives, recent, prior, smoothing)
    prior = ratio(state.total("item_value_sum"), state.total("item_events"))
    columns["item_value_mean"] = smooth(state.item_value_sum[items], state.item_events[items], prior, smoothing)
    return columns


def _duration_columns(table: ItemTable, user: User, items: np.ndarray) -> Columns:
    duration, watched = (np.log1p(table.duration_s[rows], dtype=np.float64) for rows in (items, user.items))
    watched = watched[~np.isnan(watched)]
    mean = float(watched.mean()) if len(watched) else math.nan
    return {
        "item_duration": np.nan_to_num(duration, nan=0.0),
        "duration_distance": np.nan_to_num(np.abs(duration - mean), nan=0.0),
    }


def _user_columns(state: FunnelState, user: User, time_ms: int) -> Columns:
    hours = -1.0 if user.last_ms is None else max(0, time_ms - user.last_ms) / HOUR_MS
    n = len(user.items)
    first_ms, newest_ms = (int(user.times_ms.min()), int(user.times_ms.max())) if n else (time_ms, time_ms)
    values = user.values.astype(np.float64)
    columns: Columns = {
        "user_history_length": math.log1p(n),
        "user_age": math.log1p(max(0, time_ms - first_ms) / DAY_MS) if n else -1.0,
        "user_recency": -1.0 if user.last_ms is None else math.log1p(hours),
        "user_gap": math.log1p((newest_ms - first_ms) / (n - 1) / HOUR_MS) if n > 1 else 0.0,
        "user_categories": math.log1p(len(np.unique(user.categories.codes))),
        "user_value_mean": float(values.mean()) if n else 0.0,
        "user_value_spread": float(values.std()) if n else 0.0,
    }
    for days in state.config.half_lives_days:
        columns[f"user_touches_{days:g}d"] = math.log1p(float(user.weights(time_ms, days).sum()))
    for number, task in enumerate(state.tasks):
        columns[f"user_rate_{task.name}"] = user_rate(state, user, number)
        columns[f"user_recent_rate_{task.name}"] = user_rate(state, user, number, time_ms)
    return columns


def _category_columns(state: FunnelState, user: User, time_ms: int, candidates: Categories) -> Columns:
    n, touched, half_lives = state.items.n_categories, user.categories, state.config.half_lives_days
    middle = state.config.middle_half_life
    share = recent = main_share = last = np.zeros(n)
    if len(user.items):
        share = touched.histogram(np.ones(len(user.items)), n) / len(user.items)
        # Relative to the newest touch, so that the weights of a long inactive user do not all vanish.
        weights = user.weights(int(user.times_ms.max()), half_lives[middle])
        recent = touched.histogram(weights, n) / weights.sum()
        main = touched.main[-len(user.newest) :]
        main_share = np.bincount(main[main >= 0], minlength=n) / len(user.newest)
        last = np.zeros(n)
        last[touched.codes[touched.owners == len(user.items) - 1]] = 1.0
    counts = [state.category_counts.read(position, time_ms) for position in (0, middle, -1)]
    trend = np.log((counts[0] * (half_lives[-1] / half_lives[0]) + 1.0) / (counts[2] + 1.0))
    columns: Columns = {
        "category_affinity_mean": candidates.mean(share),
        "category_affinity_max": candidates.max(share),
        "category_affinity_recent_mean": candidates.mean(recent),
        "category_affinity_recent_max": candidates.max(recent),
        "category_popularity": np.log1p(candidates.mean(counts[1])),
        "category_trend": candidates.mean(trend),
        "same_category_last": candidates.max(last),
        "same_category_share": np.where(candidates.main >= 0, np.append(main_share, 0.0)[candidates.main], 0.0),
    }
    for number, task in enumerate(state.tasks):
        prior = ratio(state.task_total(number), state.total("touches"))
        rates = smooth(state.category_positives[number], state.category_touches, prior, state.config.smoothing)
        columns[f"category_rate_{task.name}"] = candidates.mean(rates)
        positives = state.category_task_counts.read(0, time_ms, np.arange(n) + number * n)
        recent_rates = smooth(positives, counts[1], prior, state.config.smoothing)
        columns[f"category_recent_rate_{task.name}"] = candidates.mean(recent_rates)
    return columns


def _similarity_columns(newest: np.ndarray, items: np.ndarray, item_vectors: np.ndarray, decay: float) -> Columns:
    names = ("similarity_max", "similarity_mean", "similarity_last", "similarity_recent")
    if not len(newest):
        return dict.fromkeys(names, 0.0)
    cosine_nH = _unit(item_vectors[items]) @ _unit(item_vectors[newest]).T
    weights_H = np.exp(-np.arange(len(newest)) / decay)
    recent = cosine_nH @ (weights_H / weights_H.sum()).astype(np.float32)
    return dict(zip(names, (cosine_nH.max(axis=1), cosine_nH.mean(axis=1), cosine_nH[:, 0], recent), strict=True))


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    unit: np.ndarray = vectors / np.maximum(norms, 1e-12)[:, None]
    return unit
