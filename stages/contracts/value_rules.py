"""Watch time made comparable between short and long items, the same way for training and for serving.

``share``: watched seconds over the item's duration, at most 1.

``duration_quantile``: the share of other views, of items of similar duration, that were watched less. R. Zhan et al.,
"Deconfounding Duration Bias in Watch-time Prediction for Video Recommendation" (D2Q), KDD 2022: the duration decides
how long people watch, whatever they like, so that only views of similar durations are compared. Groups hold equally
many views; items of unknown duration are a group of their own. Within a group, views are compared by the share of the
duration, so that all views that reached the end tie. Ties are spread evenly over their ranks by a lot, a pseudo-random
number (the distributional transform: L. Rüschendorf, "On the distributional transform, Sklar's theorem, and the
empirical copula process", J. Stat. Plan. Inference 139, 2009). So every group has the same distribution: with a
threshold, no duration has more positives than another, and a clip that everybody finishes carries no information. The
lot of a view is a hash of its item and time: the same offline and online.

Shapes: R values, G groups of known duration, B bins of shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.errors import DataError
from stages.contracts.splitmix64 import GOLDEN, mix64

_LOWEST, _HIGHEST, _BINS = 1e-4, 1e7, 1024
_EDGES = np.geomspace(_LOWEST, _HIGHEST, _BINS - 1)
"""Inner edges of the bins, of shares and of seconds: 2.5% apart. Bin 0 holds 0."""


class ValueRule(Config):
    """How the values of a signal are made comparable.

    Attributes:
        method: ``share`` or ``duration_quantile``, see above.
        unit: of the data source's values: ``seconds`` watched, or the ``share`` of the duration.
        groups: number of duration groups, of equally many views each, for ``duration_quantile``.
    """

    method: Literal["share", "duration_quantile"]
    unit: Literal["seconds", "share"] = "seconds"
    groups: int = Field(default=100, ge=1, le=500)


class FittedValueRule(Config):
    """A rule fitted to the candidate period; it is stored in snapshot and release.

    Attributes:
        signal: whose values it applies to.
        method, unit: as in ``ValueRule``.
        group_edges_s: G - 1 increasing durations; a group ends before its edge.
        ranks: G + 1 rows, one per group and one for unknown durations, of B + 1 shares of views below the start of each
            bin, from 0 to 1; empty for ``share``.
    """

    signal: str
    method: Literal["share", "duration_quantile"]
    unit: Literal["seconds", "share"]
    group_edges_s: tuple[float, ...] = ()
    ranks: tuple[tuple[float, ...], ...] = ()

    def apply(self, values: np.ndarray, durations_s: np.ndarray, lots: np.ndarray) -> np.ndarray:
        """Return float32 ``[R]`` comparable values in [0, 1].

        Args:
            values: float ``[R]`` in ``unit``; below 0 counts as 0.
            durations_s: float ``[R]`` of the items, NaN where unknown. With method ``share`` and an unknown duration
                the result is the value itself where ``unit`` is ``share``, else 0.
            lots: float ``[R]`` in [0, 1), from ``draw_lots``; the place of each value among its ties.
        """
        if self.method == "share":
            known = _watched(self.unit, values, durations_s)
            unknown = _is_unknown(durations_s) & (self.unit == "seconds")
            return np.where(unknown, 0.0, np.clip(known, 0.0, 1.0)).astype(np.float32)
        group = _groups(durations_s, self.group_edges_s)
        table, found = np.asarray(self.ranks), _bins(_watched(self.unit, values, durations_s))
        low, high = table[group, found], table[group, found + 1]
        ranks: np.ndarray = (low + lots * (high - low)).astype(np.float32)
        return ranks


def fit_value_rule(signal: str, rule: ValueRule, views: Iterable[tuple[np.ndarray, np.ndarray]]) -> FittedValueRule:
    """Learn a rule from views, whatever their order.

    Args:
        signal: whose values.
        rule: method, unit and number of groups.
        views: pieces of (values, durations in seconds or NaN), float ``[R]`` each.

    Raises:
        DataError: if there is no view.
    """
    if rule.method == "share":
        return FittedValueRule(signal=signal, method=rule.method, unit=rule.unit)
    # First count by fine bins of duration: groups are made of whole bins, so one pass is enough.
    counts = np.zeros((_BINS + 1, _BINS), dtype=np.int64)
    for values, durations_s in views:
        row = np.where(_is_unknown(durations_s), _BINS, _bins(durations_s))
        np.add.at(counts, (row, _bins(_watched(rule.unit, values, durations_s))), 1)
    if not counts.any():
        raise DataError(f"dataset.values.{signal}: no event of the candidate part to fit it on")
    edges = _equal_groups(counts[:_BINS].sum(axis=1), rule.groups)
    starts = [0, *edges, _BINS]
    rows = [counts[start:stop].sum(axis=0) for start, stop in pairwise(starts)]
    everything = counts.sum(axis=0)
    # If no view here has an unknown duration, a later one that has is compared with all views.
    rows.append(counts[_BINS] if counts[_BINS].any() else everything)
    return FittedValueRule(
        signal=signal,
        method=rule.method,
        unit=rule.unit,
        group_edges_s=tuple(float(_EDGES[edge - 1]) for edge in edges),
        ranks=tuple(_ranks(row) for row in rows),
    )


def apply_value_rules(
    rules: Sequence[FittedValueRule], signal: str, value: float, duration_s: float, item_index: int, time_ms: int
) -> float:
    """Return the comparable value of one event; values of signals without a rule stay as they are.

    Args:
        rules: of a snapshot or release.
        signal: name of the event's signal.
        value: in the unit of the data source.
        duration_s: of the item, NaN where unknown.
        item_index: of the event, for its lot.
        time_ms: of the event, for its lot.
    """
    for rule in rules:
        if rule.signal == signal:
            lots = draw_lots(np.array([item_index]), np.array([time_ms]))
            return float(rule.apply(np.array([value]), np.array([duration_s]), lots)[0])
    return value


def draw_lots(item_index: np.ndarray, time_ms: np.ndarray) -> np.ndarray:
    """Return float64 ``[R]`` in [0, 1), a hash of each event's item and time.

    The hash is SplitMix64 of both.
    """
    mixed = mix64(item_index.astype(np.uint64) * GOLDEN + time_ms.astype(np.uint64))
    lots: np.ndarray = (mixed >> np.uint64(11)).astype(np.float64) / (1 << 53)
    return lots


def _is_unknown(durations_s: np.ndarray) -> np.ndarray:
    unknown: np.ndarray = ~(durations_s > 0)
    return unknown


def _watched(unit: str, values: np.ndarray, durations_s: np.ndarray) -> np.ndarray:
    """Return the share of the duration; for an unknown duration, the value as it is."""
    if unit == "share":
        return values
    return np.asarray(values / np.where(_is_unknown(durations_s), 1.0, durations_s))


def _bins(shares: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.searchsorted(_EDGES, np.nan_to_num(shares, nan=0.0), side="right")
    return found


def _groups(durations_s: np.ndarray, edges_s: Sequence[float]) -> np.ndarray:
    known: np.ndarray = np.searchsorted(np.asarray(edges_s), durations_s, side="right")
    return np.where(_is_unknown(durations_s), len(edges_s) + 1, known)


def _equal_groups(views: np.ndarray, groups: int) -> list[int]:
    """Return the bins at which groups of about equally many views begin, without the first."""
    total = np.cumsum(views)
    if not total[-1]:
        return []
    edges = np.searchsorted(total, total[-1] * np.arange(1, groups) / groups, side="left") + 1
    return [int(edge) for edge in np.unique(edges) if edge < _BINS and total[edge - 1] < total[-1]]


def _ranks(counts: np.ndarray) -> tuple[float, ...]:
    """Return the share of views below the start of each bin, and 1."""
    below = np.concatenate([[0], np.cumsum(counts)]) / max(int(counts.sum()), 1)
    return tuple(round(float(rank), 6) for rank in below)
