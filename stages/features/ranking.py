"""The ranking features: one implementation for training examples and for live requests.

``FEATURES`` is the table of all of them. Shapes: n candidates of one request, N items, D vector
dimensions, F features, H newest items of the user, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stages.contracts.compiled import frozen
from stages.contracts.files import canonical_json, sha256_text
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import ContextColumn, Task
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.feature_arrays import RATES, WEIGHTS, Candidates, Scratch, Settings
from stages.features.feature_kernels import request_features
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
    features. It leaves out a task's relevance and weight, which no feature uses, and the values of context columns:
    features count how often a value occurs, so that a new value is no other feature. It covers the code that computes
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
        "context": [column.name for column in context],
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
    maker = FeatureMaker(state, item_vectors, len(items))
    generators = () if source_scores is None else source_scores.names
    names = feature_schema(state.config, state.tasks, state.context, generators).names
    features = np.empty((len(items), len(names)), dtype=np.float32)
    codes = np.zeros(len(state.context), dtype=np.int32)
    codes[: len(context)] = context
    candidates = candidate_columns(items, scores, ranks, source_scores)
    request_features(
        state.arrays,
        maker.settings,
        maker.scratch,
        maker.vectors,
        user_index,
        time_ms,
        frozen(codes),
        candidates,
        0,
        len(items),
        features,
    )
    return features


class FeatureMaker:
    """What compiled functions need beside the state to compute features.

    Args:
        state: whose configuration, tasks and context columns count.
        item_vectors: float32 ``[N, D]``, may be mapped from a file.
        longest: candidates of a request, at most.

    Attributes:
        settings: of the features.
        scratch: room for one request at a time.
        vectors: the item vectors.
    """

    def __init__(self, state: FunnelState, item_vectors: np.ndarray, longest: int) -> None:
        config, k, t, x = state.config, len(state.config.half_lives_days), len(state.tasks), len(state.context)
        h, c, d = config.similarity_history, max(state.items.n_categories, 1), item_vectors.shape[1]
        self.vectors = frozen(np.asarray(item_vectors, dtype=np.float32))
        self.settings = Settings(
            half_lives_ms=np.array(config.half_lives_days, dtype=np.float64) * DAY_MS,
            middle=config.middle_half_life,
            smoothing=float(config.smoothing),
            newest=h,
            weights=np.exp(-np.arange(h) / config.history_decay),
            starts=np.array(state.context_starts, dtype=np.int64),
        )
        self.scratch = Scratch(
            of_user=np.empty((WEIGHTS + k + 2 * t, c)),
            latest_ms=np.empty(c, dtype=np.int64),
            of_all=np.empty((RATES + 2 * t + x, c)),
            stamps=np.zeros((2, c), dtype=np.int64),
            stamp=np.zeros(1, dtype=np.int64),
            touched=np.zeros(k),
            rates=np.zeros((2, t)),
            unit=np.empty((h, d), dtype=np.float32),
            newest=np.empty(h, dtype=np.int64),
            total=np.empty(longest),
            best=np.empty(longest),
        )


def candidate_columns(
    items: np.ndarray, scores: np.ndarray, ranks: np.ndarray, source_scores: SourceScores | None
) -> Candidates:
    """Return candidates for compiled functions; see ``ranking_features`` for the arguments."""
    if source_scores is None:
        of_sources = np.zeros((len(items), 0), dtype=np.float32), np.zeros((len(items), 0), dtype=np.int32)
    else:
        of_sources = source_scores.scores, source_scores.ranks
    columns = (items.astype(np.int64, copy=False), scores.astype(np.float32, copy=False), ranks, *of_sources)
    return Candidates(*(frozen(column) for column in columns))


def heavy_features(
    features: np.ndarray, light_scores: np.ndarray, light_ranks: np.ndarray, query: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """Return the heavy ranker's inputs.

    Args:
        features: float32 ``[n, F]`` ranking features.
        light_scores: float32 ``[n]`` of the light ranker.
        light_ranks: int32 ``[n]`` of the light ranker, 0-based; float32 where they are estimates.
        query: float32 ``[D]``, the user tower's vector, or ``[n, D]``, that of each row's request; zeros without
            history.
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
