"""Inputs and helpers of the ranking features: one user, the categories of a list, rates, the request's context.

Shapes: n candidates of one request, H items of the user, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.contracts.ragged import ranges
from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import DAY_MS
from tests.features.plain.counters import NEVER_MS
from tests.features.plain.state import FunnelState

HOUR_MS = 3_600_000
Columns = dict[str, np.ndarray | float]


class Categories:
    """The categories of a list of n items: flat codes, and the position of each code's item."""

    def __init__(self, table: ItemTable, items: np.ndarray) -> None:
        starts, stops = table.category_offsets[items], table.category_offsets[items + 1]
        self.lengths = stops - starts
        self.owners = np.repeat(np.arange(len(items)), self.lengths)
        self.codes = table.category_codes[ranges(starts, self.lengths)]
        # The first category is the main one; -1 for an item without a category.
        self.main = np.full(len(items), -1, dtype=np.int64)
        has = self.lengths > 0
        self.main[has] = table.category_codes[starts[has]]

    def histogram(self, weights: np.ndarray, n_categories: int) -> np.ndarray:
        """Return float64 ``[C]``: the items' weights, summed by category."""
        sums: np.ndarray = np.bincount(self.codes, weights[self.owners], minlength=n_categories)
        return sums

    def latest(self, times_ms: np.ndarray, n_categories: int) -> np.ndarray:
        """Return int64 ``[C]``: the items' newest time by category, NEVER_MS for a category without items."""
        latest_ms = np.full(n_categories, NEVER_MS, dtype=np.int64)
        np.maximum.at(latest_ms, self.codes, times_ms[self.owners])
        return latest_ms

    def mean(self, of_category: np.ndarray) -> np.ndarray:
        """Return float64 ``[n]``: mean of ``of_category`` ``[C]`` over each item's categories."""
        total = np.bincount(self.owners, of_category[self.codes], minlength=len(self.lengths))
        mean: np.ndarray = total / np.maximum(self.lengths, 1)
        return mean

    def max(self, of_category: np.ndarray, least: float = 0) -> np.ndarray:
        """Return ``[n]``: maximum over each item's categories, at least ``least``."""
        best = np.full(len(self.lengths), least, dtype=of_category.dtype)
        np.maximum.at(best, self.owners, of_category[self.codes])
        return best


@dataclass(frozen=True)
class User:
    """The data of one user that the features read, in first-touch order.

    Attributes:
        items, times_ms: int64 ``[H]``.
        values: float32 ``[H]``, value of each item's best event.
        positives: int64 ``[H]`` masks; bit t is set if the item was positive for task t.
        last_ms: time of the newest touch, repeated touches included; None without a touch.
        newest: the newest ``similarity_history`` items, newest first.
        categories: categories of ``items``.
    """

    items: np.ndarray
    times_ms: np.ndarray
    values: np.ndarray
    positives: np.ndarray
    last_ms: int | None
    newest: np.ndarray
    categories: Categories

    @classmethod
    def read(cls, state: FunnelState, index: int) -> User:
        """Read a user, who may be unknown to the state."""
        items = state.touched(index)
        return cls(
            items=items,
            times_ms=state.touch_times(index),
            values=state.touch_values(index),
            positives=state.touch_positives(index),
            last_ms=state.last_event_ms(index),
            newest=items[: -state.config.similarity_history - 1 : -1],
            categories=Categories(state.items, items),
        )

    def weights(self, time_ms: int, half_life_days: float) -> np.ndarray:
        """Return float64 ``[H]``: the weight of each touch, decayed to ``time_ms``; 1 for a later touch."""
        weights: np.ndarray = np.exp2(np.maximum(time_ms - self.times_ms, 0) / (-half_life_days * DAY_MS))
        return weights

    def positive(self, task: int) -> np.ndarray:
        """Return float64 ``[H]``: 1 if the item was positive for the task, else 0."""
        return (self.positives >> task & 1).astype(np.float64)


def smooth(successes: np.ndarray, trials: np.ndarray, prior: float | np.ndarray, weight: float) -> np.ndarray:
    """Return successes per trial, smoothed by ``weight`` further trials at the rate ``prior``."""
    smoothed: np.ndarray = (successes + weight * prior) / (trials + weight)
    return smoothed


def ratio(part: float, whole: float) -> float:
    """Return part / whole, or 0 if the whole is 0."""
    return part / whole if whole else 0.0


def log_hours(time_ms: int, since_ms: np.ndarray) -> np.ndarray:
    """Return float64 ``[n]`` log(1 + hours) since each time, -1 for NEVER_MS."""
    hours = np.maximum(time_ms - since_ms, 0) / HOUR_MS
    return np.where(since_ms == NEVER_MS, -1.0, np.log1p(hours))


def user_rate(state: FunnelState, user: User, task: int, time_ms: int | None = None) -> float:
    """Return the share of the user's items that were positive for a task, smoothed by the rate over all users.

    Args:
        state: gives the rate over all users.
        user: the user.
        task: position of the task.
        time_ms: if given, touches are decayed to this time at the middle half-life.
    """
    prior, weight = ratio(state.task_total(task), state.total("touches")), state.config.smoothing
    weights = user_weights(state, user, time_ms)
    return (float(weights @ user.positive(task)) + weight * prior) / (float(weights.sum()) + weight)


def user_weights(state: FunnelState, user: User, time_ms: int | None) -> np.ndarray:
    """Return float64 ``[H]``: weight 1 for each touch, or decayed to ``time_ms`` at the middle half-life."""
    if time_ms is None:
        return np.ones(len(user.items))
    return user.weights(time_ms, state.config.half_lives_days[state.config.middle_half_life])


def user_category_columns(state: FunnelState, user: User, time_ms: int, candidates: Categories) -> Columns:
    """Return counts, rates and recency of a user within each candidate's categories."""
    n, touched, weight = state.items.n_categories, user.categories, state.config.smoothing
    columns: Columns = {}
    for days in state.config.half_lives_days:
        counts = touched.histogram(user.weights(time_ms, days), n)
        columns[f"user_category_touches_{days:g}d"] = np.log1p(candidates.mean(counts))
    for name, moment in (("rate", None), ("recent_rate", time_ms)):
        weights = user_weights(state, user, moment)
        touches = touched.histogram(weights, n)
        for number, task in enumerate(state.tasks):
            positives = touched.histogram(weights * user.positive(number), n)
            rates = smooth(positives, touches, user_rate(state, user, number, moment), weight)
            columns[f"user_category_{name}_{task.name}"] = candidates.mean(rates)
    latest_ms = candidates.max(touched.latest(user.times_ms, n), NEVER_MS)
    columns["user_category_recency"] = log_hours(time_ms, latest_ms)
    return columns


def context_columns(state: FunnelState, items: np.ndarray, candidates: Categories, codes: Sequence[int]) -> Columns:
    """Return the context features of each candidate, for each context column.

    A lift compares two shares of the request's context value: its share among the touches of an item (or
    category), smoothed by its share among all touches, divided by its share among all touches.
    """
    columns: Columns = {}
    all_touches, weight = state.total("touches"), state.config.smoothing
    for place, column in enumerate(state.context):
        code = codes[place] if len(codes) else 0
        value = state.context_values([code if other == place else 0 for other in range(len(state.context))])
        share = ratio(float(state.context_totals[value[0]]), all_touches) if value else 0.0
        by_item = by_category = np.zeros(len(items))
        if share:
            row = value[0]
            by_item = np.log(smooth(state.context_counts[row, items], state.touches[items], share, weight) / share)
            lifts = smooth(state.context_categories[row], state.category_touches, share, weight) / share
            by_category = candidates.mean(np.log(lifts))
        columns |= {
            f"context_{column.name}": share,
            f"item_context_{column.name}": by_item,
            f"category_context_{column.name}": by_category,
        }
    return columns
