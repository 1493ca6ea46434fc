"""Exponentially decayed counts of many rows, advanced lazily.

A count c that was last changed at t_last is ``c * 2 ** (-(t - t_last) / half_life)`` at time t. An event
with a time before t_last counts in full at t_last. A read before t_last returns the count as of t_last: dt
is never negative.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.contracts.tables import DAY_MS
from stages.features.state_arrays import NEVER_MS, Decayed
from stages.features.state_kernels import decayed_add

__all__ = ["NEVER_MS", "DecayedCounts"]


class DecayedCounts:
    """Counts of ``n`` rows, each at K half-lives.

    Attributes:
        values: float64 ``[K, n]``, each count as of its row's last event.
        last_ms: int64 ``[n]``, time of the row's newest event, NEVER_MS without an event.
        arrays: the same, for compiled functions.
    """

    def __init__(self, values: np.ndarray, last_ms: np.ndarray, half_lives_days: tuple[float, ...]) -> None:
        self.values = values
        self.last_ms = last_ms
        self._half_lives_ms = [days * DAY_MS for days in half_lives_days]
        half_lives_ms = np.array(self._half_lives_ms, dtype=np.float64)
        self.arrays = Decayed(np.asarray(values), np.asarray(last_ms), half_lives_ms)

    def add(self, row: int, time_ms: int) -> None:
        """Count one event of ``row``."""
        decayed_add(self.arrays, row, time_ms)

    def read(self, half_life: int, time_ms: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return float64 counts of ``rows`` as of ``time_ms``.

        Args:
            half_life: position in ``half_lives_days``; a negative one counts from the end.
            time_ms: time of the read, int ms UTC.
            rows: which rows, all by default.
        """
        elapsed = np.maximum(time_ms - self.last_ms[rows], 0)
        counts: np.ndarray = self.values[half_life][rows] * np.exp2(elapsed / -self._half_lives_ms[half_life])
        return counts

    def save(self, directory: Path, name: str) -> None:
        """Write ``<name>_counts.npy`` and ``<name>_last_ms.npy``."""
        np.save(directory / f"{name}_counts.npy", self.values)
        np.save(directory / f"{name}_last_ms.npy", self.last_ms)
