"""Items that many users touched within the last minutes and hours, over all users and by segment, in several lists.

First touches are kept in a log as long as the longest window, so that counts over sliding windows are exact. A decayed
counter would keep an item that was read all morning at the top for some time after its readers are gone. Only first
touches count, so that each user counts once for an item.

Counts are kept with the positions in the log where each window began and ended. The next read only adds the new
entries and subtracts those that left the window.

Shapes: E touches within the longest window, M distinct items of a list's longest window, N items, V lists, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.snapshot import ContextColumn
from stages.features.config import TrendsConfig
from stages.features.state_arrays import LOG_NEWEST, LOG_SIZE, NEVER_MS, Log
from stages.features.trending_kernels import log_add, trending_scores

COLUMNS: dict[str, np.dtype] = {
    "times_ms": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "segments": np.dtype(np.int16),
}
"""One entry a touch: its time, its item, and the code of its segment, 0 if unknown."""

TRENDING = "trending"
"""The list of the generator with that name."""
_MINUTE_MS = 60_000
_CAPACITY = 1024


class Trending:
    """Touches within the longest window, oldest first.

    A late touch counts at the newest time seen so far, as in ``counters``. Entries older than the longest window are
    dropped when the log is full, so the log takes at most twice the memory of the busiest window. The counts take
    4 W N bytes over all users, and as much for each segment that is read, of which there are at most as many as the
    column has values (``dataset.context.max_values``).

    Args:
        config: windows, weights and segment of each list.
        context: columns of the state; one of them may be the segment.
        arrays: ``trending_times_ms``, ``trending_items`` and ``trending_segments``, each ``[E]``.
        n_items: N.

    Attributes:
        config: as given.
        arrays: for compiled functions; another tuple after ``make_room`` and ``make_tally``.

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
        self._numbers = {name: number for number, name in enumerate(config.lists)}
        self._place, values = _segment(config, context)
        size = len(arrays["trending_items"])
        times, items, segments = (_grown(arrays[f"trending_{name}"], size) for name in COLUMNS)
        newest = int(times[size - 1]) if size else NEVER_MS
        windows_ms = [round(minutes * _MINUTE_MS) for minutes in config.windows_minutes]
        w = len(windows_ms)
        weights = np.zeros((len(config.lists), w))
        for number, each in enumerate(config.lists.values()):
            weights[number, [config.windows_minutes.index(minutes) for minutes in each.windows_minutes]] = each.weights
        self.arrays = Log(
            times_ms=times,
            items=items,
            segments=segments,
            windows_ms=np.array(windows_ms, dtype=np.int64),
            weights=weights,
            longest=w - 1 - np.argmax(weights[:, ::-1] > 0, axis=1),
            segmented=np.array([each.segment is not None for each in config.lists.values()], dtype=np.int64),
            smoothing=np.array([config.segment_smoothing], dtype=np.float64),
            slots=np.full(len(values) + 1, -1, dtype=np.int64),
            counts=np.zeros((0, w, n_items), dtype=np.int32),
            totals=np.zeros((0, w), dtype=np.int64),
            starts=np.zeros((0, w), dtype=np.int64),
            ends=np.zeros(0, dtype=np.int64),
            numbers=np.array([size, newest, values.start, values.stop], dtype=np.int64),
        )

    def add(self, item: int, time_ms: int, context: Sequence[int] = ()) -> None:
        """Count one touch.

        Args:
            item: item index.
            time_ms: time of the touch, int ms UTC.
            context: positions of its context values, as ``FunnelState.context_values`` returns them.
        """
        self.make_room()
        log_add(self.arrays, item, time_ms, np.array(context, dtype=np.int32))

    def segment(self, context: Sequence[int]) -> int:
        """Return the segment's code among a request's ``context`` codes, 0 if unknown."""
        return context[self._place] if self._place is not None and len(context) else 0

    def segments(self, contexts: np.ndarray) -> np.ndarray:
        """Return the segment's code of each context, int64 ``[X]``, from int32 ``[X, C]`` codes."""
        if self._place is None or not contexts.shape[1]:
            return np.zeros(len(contexts), dtype=np.int64)
        return contexts[:, self._place].astype(np.int64)

    def number(self, name: str) -> int:
        """Return the position of a list.

        Raises:
            ReleaseError: if there is no such list.
        """
        if name not in self._numbers:
            raise ReleaseError(
                f"the state counts nothing for the generator {name!r}, its lists are {', '.join(self._numbers)}"
            )
        return self._numbers[name]

    def scores(self, time_ms: int, segment: int = 0, name: str = TRENDING) -> tuple[np.ndarray, np.ndarray]:
        """Return a list: items of its longest window, and the weighted sum of their shares of each window's touches.

        The share in a segment is (count + s * share over all users) / (touches of the segment + s), with s
        pseudo-touches (Dirichlet smoothing, Zhai and Lafferty, 2004). So an unknown segment, or one with few touches,
        gets the shares over all users.

        Args:
            time_ms: end of the windows, or the newest touch if that is later; a window's start is included.
            segment: code of a value of the segment's column; 0 for all users. A list that is not by segment reads
                those of all users.
            name: of the list.

        Returns:
            int64 ``[M]`` items, ascending, and float64 ``[M]`` scores above 0.

        Raises:
            ReleaseError: if there is no such list.
        """
        number = self.number(name)
        segment = segment if self.arrays.segmented[number] else 0
        self.make_tally(0)
        self.make_tally(segment)
        n_items = self.arrays.counts.shape[2]
        items, scores = np.empty(n_items, dtype=np.int64), np.empty(n_items)
        found = trending_scores(self.arrays, number, time_ms, segment, items, scores)
        return items[:found], scores[:found]

    def save(self, directory: Path) -> None:
        """Write one ``trending_<column>.npy`` a column, with the entries that later reads can still need."""
        first, size = self._oldest_kept(), int(self.arrays.numbers[LOG_SIZE])
        for name in COLUMNS:
            np.save(directory / f"trending_{name}.npy", getattr(self.arrays, name)[first:size])

    def make_tally(self, segment: int) -> None:
        """Let there be counts of a segment."""
        log = self.arrays
        if log.slots[segment] >= 0:
            return
        log.slots[segment] = len(log.ends)
        self.arrays = log._replace(
            **{name: _one_more(getattr(log, name)) for name in ("counts", "totals", "starts", "ends")}
        )

    def make_room(self) -> None:
        """Let the log have room for a touch: drop what left the longest window, and double the rest."""
        log, size = self.arrays, int(self.arrays.numbers[LOG_SIZE])
        if size < len(log.items):
            return
        first = self._oldest_kept()
        columns = {name: _grown(getattr(log, name)[first:size], 2 * (size - first)) for name in COLUMNS}
        log.numbers[LOG_SIZE] = size - first
        for tally in (log.counts, log.totals, log.starts, log.ends):
            tally[:] = 0  # their positions refer to the old log
        self.arrays = log._replace(**columns)

    def _oldest_kept(self) -> int:
        log = self.arrays
        oldest_ms = int(log.numbers[LOG_NEWEST]) - int(log.windows_ms[-1])
        return int(np.searchsorted(log.times_ms[: int(log.numbers[LOG_SIZE])], oldest_ms, side="left"))


def no_log(n_items: int) -> Log:
    """Return the log of a state that counts no trends."""
    none, numbers = np.zeros(0, dtype=np.int64), np.array([0, NEVER_MS, 0, 0], dtype=np.int64)
    return Log(
        times_ms=none,
        items=np.zeros(0, dtype=np.int32),
        segments=np.zeros(0, dtype=np.int16),
        windows_ms=none,
        weights=np.zeros((0, 0)),
        longest=none,
        segmented=none,
        smoothing=np.zeros(1),
        slots=none,
        counts=np.zeros((0, 0, n_items), dtype=np.int32),
        totals=np.zeros((0, 0), dtype=np.int64),
        starts=np.zeros((0, 0), dtype=np.int64),
        ends=none,
        numbers=numbers,
    )


def _one_more(values: np.ndarray) -> np.ndarray:
    """Return an array with one more row of zeros."""
    return np.concatenate([values, np.zeros((1, *values.shape[1:]), dtype=values.dtype)])


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
