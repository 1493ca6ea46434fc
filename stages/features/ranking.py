"""The ranking features: one implementation for training examples and for live requests.

``FEATURES`` is the table of all of them. Shapes: n candidates of one request, N items, D vector
dimensions, F features, H newest items of the user, C categories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.snapshot import ItemTable, Task
from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState

_HOUR_MS = 3_600_000

FEATURES: tuple[tuple[str, str, str], ...] = (
    # name ({h}, {g}: half-life and the next longer one in days; {task}: task name), meaning, unit
    ("retrieval_score", "score of the retrieval source", "as given"),
    ("retrieval_log_rank", "position in the retrieved list", "log(1 + rank)"),
    ("item_popularity_{h}d", "first touches of the item, decayed", "log(1 + count)"),
    ("item_trend_{h}d_{g}d", "rate of touches at half-life h over that at g, +1 smoothed", "log ratio"),
    ("item_popularity_all", "first touches of the item, all time", "log(1 + count)"),
    ("item_age", "time since the item was made, 0 if it was made later", "log(1 + days)"),
    ("item_choice_rate", "first touches per exposure, smoothed; 1 in a world without exposures", "share"),
    ("item_rate_{task}", "users positive for the task per user who touched the item, smoothed", "share"),
    ("item_value_mean", "value of the item's events, smoothed", "value"),
    ("item_duration", "duration, 0 where unknown", "log(1 + seconds)"),
    ("duration_distance", "|item_duration - its mean over the user's items|, 0 where unknown", "log ratio"),
    ("user_history_length", "distinct items that the user touched", "log(1 + count)"),
    ("user_recency", "time since the user's last event, -1 without one", "log(1 + hours)"),
    ("user_value_mean", "best value of each item of the user, 0 without any", "value"),
    ("category_affinity_mean", "share of the user's items in a category, mean over the item's", "share"),
    ("category_affinity_max", "the same, maximum over the item's categories", "share"),
    ("category_affinity_recent_mean", "the same as the mean, items decayed at the middle half-life", "share"),
    ("category_affinity_recent_max", "the same as the maximum, items decayed likewise", "share"),
    ("category_popularity", "touches at the middle half-life, mean over the item's categories", "log(1 + count)"),
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
)
"""Name, meaning and unit. Every value is finite; what a user or item lacks is 0 unless stated."""

Columns = dict[str, np.ndarray | float]


@dataclass(frozen=True)
class FeatureSchema:
    """Which features a model reads.

    Attributes:
        names: F names, in column order.
        hash: hex sha256 over the names and the configuration behind them.
    """

    names: tuple[str, ...]
    hash: str


@lru_cache(maxsize=64)
def feature_schema(config: FeatureConfig, tasks: tuple[Task, ...]) -> FeatureSchema:
    """Return names and hash of the ranking features.

    The hash also covers what each task counts as positive: a rate of something else is another
    feature. A task's relevance and weight are no part of any feature.
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
        else:
            names.append(template)
    positives = [task.model_dump(mode="json", include={"name", "signals", "min_value"}) for task in tasks]
    payload = {"names": names, "config": config.model_dump(mode="json"), "tasks": positives}
    return FeatureSchema(names=tuple(names), hash=sha256_text(canonical_json(payload)))


def ranking_features(
    state: FunnelState,
    user_index: int,
    time_ms: int,
    items: np.ndarray,
    scores: np.ndarray,
    ranks: np.ndarray,
    item_vectors: np.ndarray,
) -> np.ndarray:
    """Return the features of one request's candidates, from the state as it stands.

    The caller sees to it that the state holds only events before ``time_ms``, see ``replay``.

    Args:
        state: histories, counters and co-visitation.
        user_index: may be unknown to the state.
        time_ms: time of the request.
        items: int64 ``[n]`` distinct candidates.
        scores: float32 ``[n]`` retrieval scores, finite.
        ranks: int32 ``[n]`` retrieval ranks, 0-based.
        item_vectors: float32 ``[N, D]``, row = item index.

    Returns:
        float32 ``[n, F]``, finite, columns in the order of ``feature_schema``.
    """
    user = _User.read(state, user_index)
    columns: Columns = {"retrieval_score": scores, "retrieval_log_rank": np.log1p(ranks)}
    columns |= _item_columns(state, time_ms, items)
    columns |= _duration_columns(state.items, user, items)
    columns |= _user_columns(user, time_ms)
    columns |= _category_columns(state, user, time_ms, items)
    total, best = state.covisitation.scores(user.newest, items, state.touches)
    columns |= {"covisitation_sum": total, "covisitation_max": best}
    columns |= _similarity_columns(user.newest, items, item_vectors, state.config.history_decay)
    angle = 2 * math.pi * (time_ms % DAY_MS) / DAY_MS
    columns |= {"hour_sin": math.sin(angle), "hour_cos": math.cos(angle)}
    names = feature_schema(state.config, state.tasks).names
    features = np.empty((len(items), len(names)), dtype=np.float32)
    for position, name in enumerate(names):
        features[:, position] = columns[name]
    return features


def heavy_features(
    features: np.ndarray, light_scores: np.ndarray, light_ranks: np.ndarray, query: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """Return what the heavy ranker reads.

    Args:
        features: float32 ``[n, F]`` ranking features.
        light_scores: float32 ``[n]`` of the light ranker.
        light_ranks: int32 ``[n]`` of the light ranker, 0-based.
        query: float32 ``[D]``, the user tower's vector; zeros without history.
        vectors: float32 ``[n, D]``, the candidates' item vectors.

    Returns:
        float32 ``[n, F + 2 + 3D]``: features | light score | log(1 + light rank) | query | vectors |
        query * vectors.
    """
    n, f, d = len(features), features.shape[1], len(query)
    out = np.empty((n, f + 2 + 3 * d), dtype=np.float32)
    out[:, :f] = features
    out[:, f] = light_scores
    out[:, f + 1] = np.log1p(light_ranks)
    query_columns, item_columns, product_columns = np.split(out[:, f + 2 :], 3, axis=1)
    query_columns[:] = query
    item_columns[:] = vectors
    np.multiply(query, vectors, out=product_columns)
    return out


@dataclass(frozen=True)
class _User:
    """What the features read of one user, in first-touch order.

    ``newest`` holds the newest ``similarity_history`` items, newest first.
    """

    items: np.ndarray
    times_ms: np.ndarray
    values: np.ndarray
    last_ms: int | None
    newest: np.ndarray

    @classmethod
    def read(cls, state: FunnelState, index: int) -> _User:
        items = state.seen(index)
        return cls(
            items=items,
            times_ms=state.touch_times(index),
            values=state.touch_values(index),
            last_ms=state.last_event_ms(index),
            newest=items[: -state.config.similarity_history - 1 : -1],
        )


def _item_columns(state: FunnelState, time_ms: int, items: np.ndarray) -> Columns:
    half_lives, smoothing = state.config.half_lives_days, state.config.smoothing
    counts = [state.item_counts.read(position, time_ms, items) for position in range(len(half_lives))]
    touches = state.touches[items]
    columns: Columns = {"item_popularity_all": np.log1p(touches)}
    for days, count in zip(half_lives, counts, strict=True):
        columns[f"item_popularity_{days:g}d"] = np.log1p(count)
    for position, (short, long) in enumerate(pairwise(half_lives)):
        # A steady item's decayed counts are proportional to the half-lives, so its ratio is near 1.
        ratio = (counts[position] * (long / short) + 1.0) / (counts[position + 1] + 1.0)
        columns[f"item_trend_{short:g}d_{long:g}d"] = np.log(ratio)
    age_days = (time_ms - state.items.created_at_ms[items]) / DAY_MS
    columns["item_age"] = np.log1p(np.maximum(age_days, 0.0))

    all_touches = state.total("touches")
    trials = np.maximum(state.exposures[items], touches)
    prior = _ratio(all_touches, max(state.total("exposures"), all_touches))
    columns["item_choice_rate"] = _smooth(touches, trials, prior, smoothing)
    for number, task in enumerate(state.tasks):
        prior = _ratio(state.task_total(number), all_touches)
        columns[f"item_rate_{task.name}"] = _smooth(state.positives[number][items], touches, prior, smoothing)
    prior = _ratio(state.total("item_value_sum"), state.total("item_events"))
    columns["item_value_mean"] = _smooth(state.item_value_sum[items], state.item_events[items], prior, smoothing)
    return columns


def _smooth(successes: np.ndarray, trials: np.ndarray, prior: float, weight: float) -> np.ndarray:
    smoothed: np.ndarray = (successes + weight * prior) / (trials + weight)
    return smoothed


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _duration_columns(table: ItemTable, user: _User, items: np.ndarray) -> Columns:
    duration, watched = (np.log1p(table.duration_s[rows], dtype=np.float64) for rows in (items, user.items))
    watched = watched[~np.isnan(watched)]
    mean = float(watched.mean()) if len(watched) else math.nan
    return {
        "item_duration": np.nan_to_num(duration, nan=0.0),
        "duration_distance": np.nan_to_num(np.abs(duration - mean), nan=0.0),
    }


def _user_columns(user: _User, time_ms: int) -> Columns:
    hours = -1.0 if user.last_ms is None else max(0, time_ms - user.last_ms) / _HOUR_MS
    return {
        "user_history_length": math.log1p(len(user.items)),
        "user_recency": -1.0 if user.last_ms is None else math.log1p(hours),
        "user_value_mean": float(user.values.mean(dtype=np.float64)) if len(user.values) else 0.0,
    }


class _Categories:
    """The categories of a list of n items: flat codes and the position of the item that owns each."""

    def __init__(self, table: ItemTable, items: np.ndarray) -> None:
        starts, stops = table.category_offsets[items], table.category_offsets[items + 1]
        self.lengths = stops - starts
        self.owners = np.repeat(np.arange(len(items)), self.lengths)
        ends = np.cumsum(self.lengths)
        flat = np.arange(len(self.owners)) + np.repeat(starts - ends + self.lengths, self.lengths)
        self.codes = table.category_codes[flat]
        # The first category is the main one; -1 for an item without any.
        self.main = np.full(len(items), -1, dtype=np.int64)
        has = self.lengths > 0
        self.main[has] = table.category_codes[starts[has]]

    def histogram(self, weights: np.ndarray, n_categories: int) -> np.ndarray:
        """Return float64 ``[C]``: the items' weights, summed by category."""
        sums: np.ndarray = np.bincount(self.codes, weights[self.owners], minlength=n_categories)
        return sums

    def mean(self, of_category: np.ndarray) -> np.ndarray:
        """Return float64 ``[n]``: mean of ``of_category`` ``[C]`` over each item's categories."""
        total = np.bincount(self.owners, of_category[self.codes], minlength=len(self.lengths))
        mean: np.ndarray = total / np.maximum(self.lengths, 1)
        return mean

    def max(self, of_category: np.ndarray) -> np.ndarray:
        """Return float64 ``[n]``: maximum over each item's categories, at least 0."""
        best = np.zeros(len(self.lengths))
        np.maximum.at(best, self.owners, of_category[self.codes])
        return best


def _category_columns(state: FunnelState, user: _User, time_ms: int, items: np.ndarray) -> Columns:
    table, n = state.items, state.items.n_categories
    candidates, history = _Categories(table, items), _Categories(table, user.items)
    middle = len(state.config.half_lives_days) // 2
    share = recent = main_share = last = np.zeros(n)
    if len(user.items):
        share = history.histogram(np.ones(len(user.items)), n) / len(user.items)
        # Relative to the newest touch, so that the weights of a user long away do not all vanish.
        age_days = (user.times_ms.max() - user.times_ms) / DAY_MS
        weights = np.exp2(age_days / -state.config.half_lives_days[middle])
        recent = history.histogram(weights, n) / weights.sum()
        main = history.main[-len(user.newest) :]
        main_share = np.bincount(main[main >= 0], minlength=n) / len(user.newest)
        last = np.zeros(n)
        last[history.codes[history.owners == len(user.items) - 1]] = 1.0
    popularity = state.category_counts.read(middle, time_ms)
    return {
        "category_affinity_mean": candidates.mean(share),
        "category_affinity_max": candidates.max(share),
        "category_affinity_recent_mean": candidates.mean(recent),
        "category_affinity_recent_max": candidates.max(recent),
        "category_popularity": np.log1p(candidates.mean(popularity)),
        "same_category_last": candidates.max(last),
        "same_category_share": np.where(candidates.main >= 0, np.append(main_share, 0.0)[candidates.main], 0.0),
    }


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
