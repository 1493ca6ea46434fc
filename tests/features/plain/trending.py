"""Items that many users touched within the last minutes and hours, over all users and by segment.

First touches are kept in a log as long as the longest window, so that counts over sliding windows are exact. A decayed
counter would keep an item that was read all morning at the top for some time after its readers are gone. Only first
touches count, so that each user counts once for an item.

Counts are kept with the positions in the log where each window began and ended. The next read only adds the new
entries and subtracts those that left the window.

Shapes: E touches within the longest window, M distinct items among them, N items, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import ContextColumn
from stages.features.config import TrendsConfig
from tests.features.plain.counters import NEVER_MS

COLUMNS: dict[str, np.dtype] = {
    "times_ms": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "segments": np.dtype(np.int16),
}
"""One entry a touch: its time, its item, and the code of its segment, 0 if unknown."""

_MINUTE_MS = 60_000
_CAPACITY = 1024


class Trending:
    """Touches within the longest window, oldest first.

    A late touch counts at the newest time seen so far, as in ``counters``. Entries older than the longest window are
    dropped when the log is full, so the log takes at most twice the memory of the busiest window. The counts take
    4 W N bytes over all users, and as much for each segment that is read.

    Args:
        config: windows, weights and segment.
        context: columns of the state; one of them may be the segment.
        arrays: ``trending_times_ms``, ``trending_items`` and ``trending_segments``, each ``[E]``.
        n_items: N.

    Raises:
        ConfigError: if the segment is not a context column.
    """

    def __init__(
        self,
        config: TrendsConfig,
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
            time_ms: time of the touch, int ms UTC.
            context: positions of its context values, as ``FunnelState.context_values`` returns them.
        """
        self._newest_ms = max(time_ms, self._newest_ms)
        if self._size == len(self._log[0]):
            self._make_room()
        segment = next((value - self._values.start + 1 for value in context if value in self._values), 0)
        for column, value in zip(self._log, (self._newest_ms, item, segment), strict=True):
            column[self._size] = value
        self._size += 1

    def segment(self, context: Sequence[int]) -> int:
        """Return the segment's code among a request's ``context`` codes, 0 if unknown."""
        return context[self._place] if self._place is not None and len(context) else 0

    def scores(self, time_ms: int, segment: int = 0, name: str = "trending") -> tuple[np.ndarray, np.ndarray]:
        """Return a list: items of its longest window, and the weighted sum of their shares of each window's touches.

        The share in a segment is (count + s * share over all users) / (touches of the segment + s), with s
        pseudo-touches (Dirichlet smoothing, Zhai and Lafferty, 2004). So an unknown segment, or one with few touches,
        gets the shares over all users.

        Args:
            time_ms: end of the windows, or the newest touch if that is later; a window's start is included.
            segment: code of a value of the segment's column; 0 for all users.

        Returns:
            int64 ``[M]`` items, ascending, and float64 ``[M]`` scores above 0.
        """
        listed = self.config.lists[name]
        windows = [self.config.windows_minutes.index(minutes) for minutes in listed.windows_minutes]
        everybody = self._tally(0, time_ms)
        distinct = np.flatnonzero(everybody.counts_WN[windows[-1]])
        of_segment = self._tally(segment, time_ms) if segment and listed.segment is not None else None
        scores = np.zeros(len(distinct))
        smoothing = self.config.segment_smoothing
        for window, weight in zip(windows, listed.weights, strict=True):
            shares = everybody.counts_WN[window, distinct] / max(int(everybody.totals_W[window]), 1)
            if of_segment is not None:
                counts, total = of_segment.counts_WN[window, distinct], int(of_segment.totals_W[window])
                shares = (counts + smoothing * shares) / (total + smoothing)
            scores += weight * shares
        return distinct, scores

    def save(self, directory: Path) -> None:
        """Write one ``trending_<column>.npy`` a column, with the entries that later reads can still need."""
        first = self._oldest_kept()
        for name, column in zip(COLUMNS, self._log, strict=True):
            np.save(directory / f"trending_{name}.npy", column[first : self._size])

    def _tally(self, segment: int, time_ms: int) -> _Tally:
        """Return a segment's counts at ``time_ms``; for segment 0 the counts over all users."""
        time_ms = max(time_ms, self._newest_ms)
        times = self._log[0][: self._size]
        starts_W = np.searchsorted(times, [time_ms - window for window in self._windows_ms], side="left")
        tally = self._tallies.get(segment)
        if tally is None or (starts_W < tally.starts_W).any():  # a time before that of the last read
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
        self._tallies.clear()  # their positions refer to the old log


class _Tally:
    """Number of touches of each item within each window, as of one time.

    Attributes:
        counts_WN: int32 ``[W, N]``.
        totals_W: int64 ``[W]``, sums over the items.
        starts_W, end: positions in the log: window w counts the entries from ``starts_W[w]`` to ``end``.
    """

    def __init__(self, windows: int, n_items: int) -> None:
        self.counts_WN = np.zeros((windows, n_items), dtype=np.int32)
        self.totals_W = np.zeros(windows, dtype=np.int64)
        self.starts_W, self.end = np.zeros(windows, dtype=np.int64), 0


def _segment(config: TrendsConfig, context: Sequence[ContextColumn]) -> tuple[int | None, range]:
    """Return the position of the segment's column, and the positions of its values among all columns' values."""
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
