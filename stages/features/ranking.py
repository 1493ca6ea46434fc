"""The ranking features: one implementation for training examples and for live requests.

``FEATURES`` is the table of all of them. Shapes: n candidates of one request, N items, D vector
dimensions, F features, H newest items of the user, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.parts import (
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
from stages.features.state import FunnelState

FEATURES: tuple[tuple[str, str, str], ...] = (
    # Name, meaning, unit. In names: {h}, {g}: a half-life and the next longer one in days; {task}: task name;
    # {context}: name of a context column; {source}: name of a candidate generator, if there are several.
    ("retrieval_score", "score of the candidate in the retrieved list", "as given"),
    ("retrieval_log_rank", "position in the retrieved list", "log(1 + rank)"),
    ("item_popularity_{h}d", "first touches of the item, decayed", "log(1 + count)"),
    ("item_trend_{h}d_{g}d", "rate of touches at half-life h over that at g, +1 smoothed", "log ratio"),
    ("item_popularity_all", "first touches of the item, all time", "log(1 + count)"),
    ("item_age", "time since the item was made, 0 if it was made later", "log(1 + days)"),
    ("item_recency", "time since the item's last first touch, -1 without one", "log(1 + hours)"),
    ("item_choice_rate", "first touches per exposure, smoothed; 1 in a world without exposures", "share"),
    ("item_recent_choice_rate", "the same, both decayed at the middle half-life", "share"),
    ("item_rate_{task}", "users positive for the task per user who touched the item, smoothed", "share"),
    ("item_recent_rate_{task}", "the same, both decayed at the middle half-life", "share"),
    ("item_value_mean", "value of the item's events, smoothed", "value"),
    ("item_duration", "duration, 0 where unknown", "log(1 + seconds)"),
    ("duration_distance", "|item_duration - its mean over the user's items|, 0 where unknown", "log ratio"),
    ("user_history_length", "distinct items that the user touched", "log(1 + count)"),
    ("user_touches_{h}d", "the user's first touches, decayed", "log(1 + count)"),
    ("user_age", "time since the user's first touch, -1 without one", "log(1 + days)"),
    ("user_recency", "time since the user's last event, -1 without one", "log(1 + hours)"),
    ("user_gap", "mean time between the user's first touches, 0 with less than two", "log(1 + hours)"),
    ("user_categories", "distinct categories of the user's items", "log(1 + count)"),
    ("user_rate_{task}", "share of the user's items that were positive for the task, smoothed", "share"),
    ("user_recent_rate_{task}", "the same, items decayed at the middle half-life", "share"),
    ("user_value_mean", "best value of each item of the user, 0 without any", "value"),
    ("user_value_spread", "standard deviation of the same", "value"),
    ("category_affinity_mean", "share of the user's items in a category, mean over the item's", "share"),
    ("category_affinity_max", "the same, maximum over the item's categories", "share"),
    ("category_affinity_recent_mean", "the same as the mean, items decayed at the middle half-life", "share"),
    ("category_affinity_recent_max", "the same as the maximum, items decayed likewise", "share"),
    ("user_category_touches_{h}d", "the user's touches, decayed, mean over the item's categories", "log(1 + count)"),
    ("user_category_rate_{task}", "user_rate_{task} within the item's categories, smoothed by it, mean", "share"),
    ("user_category_recent_rate_{task}", "the same, items decayed, smoothed by user_recent_rate_{task}", "share"),
    ("user_category_recency", "time since the user touched one of the item's categories, -1: never", "log(1 + hours)"),
    ("category_popularity", "touches at the middle half-life, mean over the item's categories", "log(1 + count)"),
    ("category_trend", "as item_trend of shortest over longest, mean over the item's categories", "log ratio"),
    ("category_rate_{task}", "positives per first touch of a category, smoothed, mean over the item's", "share"),
    ("category_recent_rate_{task}", "the same, both decayed at the middle half-life", "share"),
    ("covisitation_sum", "normalised links with the user's newest items, summed", "1"),
    ("covisitation_max", "the strongest of these links", "1"),
    ("similarity_max", "cosine of item vectors with the user's newest items, maximum", "cosine"),
    ("similarity_mean", "the same, mean", "cosine"),
    ("similarity_last", "the same, with the newest item only", "cosine"),
    ("similarity_recent", "the same, mean weighted by recency as in the user tower", "cosine"),
    ("same_category_last", "whether the item shares a category with the user's newest item", "0 or 1"),
    ("same_category_share", "share of the newest items whose main category is the item's", "share"),
    ("hour_sin", "time of day (UTC), sine", "1"),
    ("hour_cos", "time of day (UTC), cosine", "1"),
    ("weekday_sin", "time of week (UTC), sine", "1"),
    ("weekday_cos", "time of week (UTC), cosine", "1"),
    ("context_{context}", "share of first touches that had the request's value, 0 where unknown", "share"),
    ("item_context_{context}", "share of that value among the item's touches over its share in all", "log ratio"),
    ("category_context_{context}", "the same of the item's categories, mean", "log ratio"),
    ("source_{source}_score", "the generator's own score, 0 where its list does not hold the item", "as given"),
    ("source_{source}_reciprocal_rank", "1 / (1 + position in the generator's list), 0 where it is not in it", "1"),
)
"""Name, meaning and unit of each feature. Every value is finite; a missing value is 0 unless stated."""


@dataclass(frozen=True)
class FeatureSchema:
    """The features that a model reads.

    Attributes:
        names: F names, in column order.
        hash: hex sha256 over the names, and the configuration and code that define the features.
    """

    names: tuple[str, ...]
    hash: str


@lru_cache(maxsize=64)
def feature_schema(
    config: FeatureConfig,
    tasks: tuple[Task, ...],
    context: tuple[ContextColumn, ...] = (),
    sources: tuple[str, ...] = (),
) -> FeatureSchema:
    """Return names and hash of the ranking features.

    The hash also covers each task's definition of a positive, since another definition makes its rates other
    features. It leaves out a task's relevance and weight, which no feature uses. It covers the code that computes
    features, tower inputs, candidates and scores: a model must be served by the code that it was trained with.

    Args:
        config: configuration of the features.
        tasks: tasks whose rates are features.
        context: context columns.
        sources: names of the candidate generators; empty if there is only one.
    """
    half_lives = [f"{days:g}" for days in config.half_lives_days]
    names: list[str] = []
    for template, _, _ in FEATURES:
        if "{g}" in template:
            names += [template.format(h=short, g=long) for short, long in pairwise(half_lives)]
        elif "{h}" in template:
            names += [template.format(h=days) for days in half_lives]
        elif "{task}" in template:
            names += [template.format(task=task.name) for task in tasks]
        elif "{context}" in template:
            names += [template.format(context=column.name) for column in context]
        elif "{source}" in template:
            names += [template.format(source=source) for source in sources]
        else:
            names.append(template)
    positives = [task.model_dump(mode="json", include={"name", "signals", "min_value"}) for task in tasks]
    payload = {
        "names": names,
        "config": config.model_dump(mode="json"),
        "tasks": positives,
        "context": [column.model_dump(mode="json") for column in context],
        "code": shared_code(),
    }
    payload |= {"sources": sources} if sources else {}
    return FeatureSchema(names=tuple(names), hash=sha256_text(canonical_json(payload)))


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


def heavy_features(
    features: np.ndarray, light_scores: np.ndarray, light_ranks: np.ndarray, query: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """Return the heavy ranker's inputs.

    Args:
        features: float32 ``[n, F]`` ranking features.
        light_scores: float32 ``[n]`` of the light ranker.
        light_ranks: int32 ``[n]`` of the light ranker, 0-based.
        query: float32 ``[D]``, the user tower's vector, or ``[n, D]``, one a candidate; zeros without history.
        vectors: float32 ``[n, D]``, the candidates' item vectors.

    Returns:
        float32 ``[n, F + 2 + 3D]``: features | light score | log(1 + light rank) | query | vectors |
        query * vectors.
    """
    n, f, d = len(features), features.shape[1], query.shape[-1]
    out = np.empty((n, f + 2 + 3 * d), dtype=np.float32)
    out[:, :f] = features
    out[:, f] = light_scores
    out[:, f + 1] = np.log1p(light_ranks)
    query_columns, item_columns, product_columns = np.split(out[:, f + 2 :], 3, axis=1)
    query_columns[:] = query
    item_columns[:] = vectors
    np.multiply(query, vectors, out=product_columns)
    return out


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
