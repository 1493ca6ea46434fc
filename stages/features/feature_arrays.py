"""What the compiled ranking features read and where they put what they compute.

Shapes: n candidates of one request, N items, D vector dimensions, C categories, K half-lives, T tasks, X context
columns, G generators, H newest items of the user.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from stages.contracts.compiled import in_place, in_place_sum
from stages.features.state_arrays import NEVER_MS, Decayed

HOUR_MS = 3_600_000.0
DAY_MS = 86_400_000.0
USER_STAMP, GLOBAL_STAMP = 0, 1
TOUCHES, RECENT, MAIN_SHARE, LAST, WEIGHTS = 0, 1, 2, 3, 4
"""Rows of ``Scratch.of_user``: touches, the same decayed to the newest, share as a main category, whether the newest
item has the category; then K decayed touches, T positives and T decayed positives."""
POPULARITY, TREND, RATES = 0, 1, 2
"""Rows of ``Scratch.of_all``: popularity, trend; then T rates, T recent rates and X logarithms of lifts."""


class Settings(NamedTuple):
    """What ``FeatureConfig`` says.

    Attributes:
        half_lives_ms: float64 ``[K]``.
        middle: position of the middle half-life.
        smoothing: pseudo-observations of a smoothed rate.
        newest: H, at most.
        weights: float64 ``[H]``, of the newest items by position.
        starts: int64 ``[X]``, position of each context column's first value.
    """

    half_lives_ms: np.ndarray
    middle: int
    smoothing: float
    newest: int
    weights: np.ndarray
    starts: np.ndarray


class Scratch(NamedTuple):
    """Room for one request at a time.

    Attributes:
        of_user: float64 ``[4 + K + 2 T, C]`` and latest_ms int64 ``[C]``, valid where ``stamps[0]`` is the newest.
        of_all: float64 ``[2 + 2 T + X, C]``, valid where ``stamps[1]`` is the newest stamp.
        stamps: int64 ``[2, C]``; stamp: int64 ``[1]``, the newest stamp.
        touched: float64 ``[K]``, decayed touches; rates: float64 ``[2, T]``, the user's rates and recent rates.
        unit: float32 ``[H, D]``, the newest items' vectors at length 1; newest: int64 ``[H]``.
        total, best: float64 ``[n]``, links of each candidate.
    """

    of_user: np.ndarray
    latest_ms: np.ndarray
    of_all: np.ndarray
    stamps: np.ndarray
    stamp: np.ndarray
    touched: np.ndarray
    rates: np.ndarray
    unit: np.ndarray
    newest: np.ndarray
    total: np.ndarray
    best: np.ndarray


class Candidates(NamedTuple):
    """Candidates of requests, one row each: int64, float32, int32, float32 ``[n, G]``, int32 ``[n, G]``."""

    items: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    source_scores: np.ndarray
    source_ranks: np.ndarray


class Requests(NamedTuple):
    """Requests by row: int64, int64, int32 rows of ``contexts`` (int32 ``[., X]``), and the first event not before."""

    user: np.ndarray
    time_ms: np.ndarray
    context: np.ndarray
    contexts: np.ndarray
    borders: np.ndarray


@in_place
def read_decayed(counts: Decayed, k: int, row: int, time_ms: int) -> float:
    """Return a row's count at a time."""
    elapsed = max(time_ms - counts.last_ms[row], 0)
    return counts.values[k, row] * 2.0 ** (-elapsed / counts.half_lives_ms[k])


@in_place
def smooth(successes: float, trials: float, prior: float, weight: float) -> float:
    """Return a share with so many pseudo-observations of the prior."""
    return (successes + weight * prior) / (trials + weight)


@in_place
def ratio(part: float, whole: float) -> float:
    """Return a share, 0 of nothing."""
    return part / whole if whole else 0.0


@in_place
def log_hours(time_ms: int, since_ms: int) -> float:
    """Return log(1 + hours) since a time, -1 if it never was."""
    return -1.0 if since_ms == NEVER_MS else math.log1p(max(time_ms - since_ms, 0) / HOUR_MS)


@in_place_sum
def dot(vectors: np.ndarray, row: int, others: np.ndarray, other: int) -> Any:
    """Return the float32 inner product of two rows."""
    total = np.float32(0.0)
    for d in range(vectors.shape[1]):
        total += vectors[row, d] * others[other, d]
    return total


@in_place
def norm_of(vectors: np.ndarray, row: int) -> Any:
    """Return the float32 length of a row, above 0."""
    return max(np.float32(math.sqrt(dot(vectors, row, vectors, row))), np.float32(1e-12))


@in_place
def open_of_user(scratch: Scratch, category: int) -> bool:
    """Let a category have zeros where the user was not seen in it yet; return whether that is so."""
    if scratch.stamps[USER_STAMP, category] == scratch.stamp[0]:
        return False
    scratch.stamps[USER_STAMP, category] = scratch.stamp[0]
    for place in range(scratch.of_user.shape[0]):
        scratch.of_user[place, category] = 0.0
    scratch.latest_ms[category] = NEVER_MS
    return True
