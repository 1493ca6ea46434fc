"""What many people touched within the last minutes and hours, among everybody and by segment.

First touches are kept in a log that goes back as far as the longest window, so that counts over sliding windows are
exact: a decayed counter would still name what was read all morning, minutes after nobody does. Only first touches
count, so that one user raises an item once.

Counts are kept with the places in the log where each window began and ended, so that the next read adds what came and
takes off what fell out.

Shapes: E touches within the longest window, M distinct items among them, N items, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import ContextColumn
from stages.features.config import TrendingConfig
from stages.features.counters import NEVER_MS

COLUMNS: dict[str, np.dtype] = {
    "times_ms": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "segments": np.dtype(np.int16),
}
"""One entry a touch: when, which item, and the code of the moment's segment, 0 where it is unknown."""

_MINUTE_MS = 60_000
_CAPACITY = 1024


class Trending:
    """Touches within the longest window, oldest first.

    A touch that comes late counts at the newest time seen so far, as in ``counters``. Older entries are dropped
    when the log is full, so that it takes at most twice the memory of the busiest stretch of that length. The counts
    take 4 W N bytes for everybody, and for each segment that is asked for.

    Args:
        config: windows, weights and segment.
        context: columns of the state; one of them may be the segment.
        arrays: ``trending_times_ms``, ``trending_items`` and ``trending_segments``, each ``[E]``.
        n_items: N.

    Raises:
        ConfigError: if the segment is none of the context columns.
    """

    def __init__(
        self,
        config: TrendingConfig,
        context: Sequence[ContextColumn],
        arrays: Mapping[str, np.ndarray],
        n_items: int,
    ) -> None:
        self.config = config
        self._place, self._values = _segment(config, context)
        self._windows_ms = [round(minutes * _MINUTE_MS) for minutes in config.windows_minutes]
        self._size = len(arrays["trending_items"])
        self._log = tuple(_grown(arrays[f"trending_{name}"], self._size) for name in COLUMNS)
        self._newest_ms = int(self._log[0][self._size - 1]) if self._size else NEVER_MS
        self._n_items = n_items
        self._tallies: dict[int, _Tally] = {}

    def add(self, item: int, time_ms: int, context: Sequence[int] = ()) -> None:
        """Count one touch.

        Args:
            item: item index.
            time_ms: when it happened.
            context: positions of what held then, as ``FunnelState.context_values`` returns them.
        """
        self._newest_ms = max(time_ms, self._newest_ms)
        if self._size == len(self._log[0]):
            self._make_room()
        segment = next((value - self._values.start + 1 for value in context if value in self._values), 0)
        for column, value in zip(self._log, (self._newest_ms, item, segment), strict=True):
            column[self._size] = value
        self._size += 1

    def segment(self, context: Sequence[int]) -> int:
        """Return the segment's code among a request's ``context`` codes, 0 where it is unknown."""
        return context[self._place] if self._place is not None and len(context) else 0

    def scores(self, time_ms: int, segment: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of the longest window and their weighted shares of all windows' touches.

        The share in a segment is (count + s * everybody's share) / (touches of the segment + s), with s pseudo-touches
        (Dirichlet smoothing, Zhai and Lafferty, 2004), so that a segment that is unknown or quiet is like everybody.

        Args:
            time_ms: windows end there, or at the newest touch if that is later; their first moment is included.
            segment: code of a value of the segment's column; 0 for everybody.

        Returns:
            int64 ``[M]`` items, ascending, and float64 ``[M]`` scores above 0.
        """
        everybody = self._tally(0, time_ms)
        distinct = np.flatnonzero(everybody.counts_WN[-1])
        of_segment = self._tally(segment, time_ms) if segment else None
        scores = np.zeros(len(distinct))
        smoothing = self.config.segment_smoothing
        for window, weight in enumerate(self.config.weights):
            shares = everybody.counts_WN[window, distinct] / max(int(everybody.totals_W[window]), 1)
            if of_segment is not None:
                counts, total = of_segment.counts_WN[window, distinct], int(of_segment.totals_W[window])
                shares = (counts + smoothing * shares) / (total + smoothing)
            scores += weight * shares
        return distinct, scores

    def save(self, directory: Path) -> None:
        """Write one ``trending_<column>.npy`` a column: what later reads can still see."""
        first = self._oldest_kept()
        for name, column in zip(COLUMNS, self._log, strict=True):
            np.save(directory / f"trending_{name}.npy", column[first : self._size])

    def _tally(self, segment: int, time_ms: int) -> _Tally:
        """Return a segment's counts at ``time_ms``, everybody's for 0."""
        time_ms = max(time_ms, self._newest_ms)
        times = self._log[0][: self._size]
        starts_W = np.searchsorted(times, [time_ms - window for window in self._windows_ms], side="left")
        tally = self._tallies.get(segment)
        if tally is None or (starts_W < tally.starts_W).any():  # a moment before the last one that was read
            tally = self._tallies[segment] = _Tally(len(starts_W), self._n_items)
        for window, start in enumerate(starts_W.tolist()):
            self._count(tally, window, segment, slice(tally.end, self._size), 1)
            self._count(tally, window, segment, slice(int(tally.starts_W[window]), start), -1)
        tally.starts_W, tally.end = starts_W, self._size
        return tally

    def _count(self, tally: _Tally, window: int, segment: int, entries: slice, amount: int) -> None:
        items = self._log[1][entries]
        if segment:
            items = items[self._log[2][entries] == segment]
        np.add.at(tally.counts_WN[window], items, amount)
        tally.totals_W[window] += amount * len(items)

    def _oldest_kept(self) -> int:
        oldest_ms = self._newest_ms - self._windows_ms[-1]
        return int(np.searchsorted(self._log[0][: self._size], oldest_ms, side="left"))

    def _make_room(self) -> None:
        first = self._oldest_kept()
        self._log = tuple(_grown(column[first : self._size], 2 * (self._size - first)) for column in self._log)
        self._size -= first
        self._tallies.clear()  # their places are those of the former log


class _Tally:
    """Touches of each item within each window, as of a moment.

    Attributes:
        counts_WN: int32.
        totals_W: int64, sums over the items.
        starts_W, end: which entries of the log they count.
    """

    def __init__(self, windows: int, n_items: int) -> None:
        self.counts_WN = np.zeros((windows, n_items), dtype=np.int32)
        self.totals_W = np.zeros(windows, dtype=np.int64)
        self.starts_W, self.end = np.zeros(windows, dtype=np.int64), 0


def _segment(config: TrendingConfig, context: Sequence[ContextColumn]) -> tuple[int | None, range]:
    """Return the place of the segment's column, and the positions of its values among all columns' values."""
    if config.segment is None:
        return None, range(0)
    names = [column.name for column in context]
    if config.segment not in names:
        raise ConfigError(f"sources.trending.segment = {config.segment!r}: unknown, the context columns are {names}")
    place = names.index(config.segment)
    starts = list(accumulate((len(column.values) for column in context), initial=0))
    return place, range(starts[place], starts[place + 1])


def _grown(values: np.ndarray, capacity: int) -> np.ndarray:
    """Return a copy of ``values`` with room for ``capacity`` entries."""
    grown = np.empty(max(_CAPACITY, capacity), dtype=values.dtype)
    grown[: len(values)] = values
    return grown
