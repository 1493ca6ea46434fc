"""Shares of clicks: of everybody's in a window, and of those in the request's own segment.

Legend: B events of a block, N items, M items of a pool.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from benchmarks.retrieval.replay.log import Log
from stages.contracts.config import Config
from stages.contracts.errors import DataError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class SegmentShare(Config):
    """One more share of a ``SegmentBlend``: that of the clicks of the request's own segment.

    Attributes:
        name: of the segment, as in ``Log.segments``.
        minutes: length of the window.
        weight: of the share.
        smoothing: clicks of everybody's distribution that are added to the segment's, as in
            ``stages.features.trending``.
    """

    name: str
    minutes: Positive
    weight: NotNegative = 0.5
    smoothing: NotNegative = 100.0


def require_segments(log: Log, shares: tuple[SegmentShare, ...]) -> None:
    """Check that the log has the segments of the shares.

    Raises:
        DataError: if it lacks one.
    """
    for each in shares:
        if each.name not in log.segments:
            found = ", ".join(log.segments) or "none"
            raise DataError(f"segments.name = {each.name!r}: the log has no such column; allowed is one of: {found}")


def segment_shares(log: Log, rows: slice, share: SegmentShare, places: np.ndarray, size: int) -> np.ndarray:
    """Return the smoothed shares of ``size`` items in each event's own segment, float64 ``[B, M]``."""
    values = log.segments[share.name]
    since = np.searchsorted(log.time_ms, log.time_ms[rows.start] - share.minutes * 60_000)
    window = slice(int(since), rows.start)
    n_values = int(values[: rows.stop].max()) + 1
    item = places[log.item[window]]
    named = item >= 0
    cells = values[window][named] * size + item[named]
    counts_SM = np.bincount(cells, minlength=n_values * size).reshape(n_values, size)
    totals_S = np.bincount(values[window], minlength=n_values)
    everybody_M = counts_SM.sum(axis=0) / max(int(totals_S.sum()), 1)
    # Without smoothing, all shares of a segment without clicks are 0.
    whole_S = np.maximum(totals_S + share.smoothing, 1e-9)
    shares_SM = (counts_SM + share.smoothing * everybody_M) / whole_S[:, None]
    own: np.ndarray = shares_SM[values[rows]]
    return own


def recent_counts(log: Log, event: int, minutes: float | None) -> np.ndarray:
    """Return how often each item was met before an event, float64 ``[N]``, in a window that ends at its time."""
    first = 0
    if minutes is not None:
        first = int(np.searchsorted(log.time_ms, log.time_ms[event] - minutes * 60_000))
    return np.bincount(log.item[first:event], minlength=log.items).astype(np.float64)


def flags(items: int, named: np.ndarray) -> np.ndarray:
    """Return which of all items are listed in ``named``, bool ``[N]``."""
    flags = np.zeros(items, dtype=bool)
    flags[named] = True
    return flags


def spread(
    rows: slice, items: np.ndarray, catalogue: int, row: np.ndarray, item: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Return weights summed into float64 ``[B, M]``."""
    column = np.zeros(catalogue, dtype=np.int64)
    column[items] = np.arange(len(items))
    shape = (rows.stop - rows.start, len(items))
    sums = np.bincount(row * shape[1] + column[item], weights=weight, minlength=shape[0] * shape[1])
    return sums.reshape(shape)
