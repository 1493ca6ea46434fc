"""Which items the requests of a block may not be answered with.

Shapes: B requests, N items, P periods, m seen items of all requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ragged import ranges, row_offsets


@dataclass(frozen=True)
class Exclusions:
    """Items that B requests have seen, and when items may be recommended.

    Attributes:
        seen_offsets: int64 ``[B + 1]``; request b has seen ``seen[seen_offsets[b]:seen_offsets[b + 1]]``.
        seen: int64 ``[m]`` items that must not be returned, distinct for a request.
        time_ms: int64 ``[B]``, when each request was made, int ms UTC.
        period: int64 ``[B]``, row of ``available_ms`` that holds for the request.
        available_ms: int64 ``[P, N]``, from when each item may be recommended.
    """

    seen_offsets: np.ndarray
    seen: np.ndarray
    time_ms: np.ndarray
    period: np.ndarray
    available_ms: np.ndarray

    def __post_init__(self) -> None:
        sizes = {"seen_offsets": len(self.seen_offsets) - 1, "period": len(self.period)}
        for name, size in sizes.items():
            if size != len(self.time_ms):
                raise DataError(f"Exclusions.{name}: {size} requests, expected those of time_ms, {len(self.time_ms)}")
        n_periods, n_items = self.available_ms.shape
        for name, values, limit in (("seen", self.seen, n_items), ("period", self.period, n_periods)):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                wrong = values[(values < 0) | (values >= limit)][0]
                raise DataError(f"Exclusions.{name} = {wrong}: allowed are 0 to {limit - 1}")

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def n_items(self) -> int:
        """N."""
        return int(self.available_ms.shape[1])

    def seen_by(self, number: int) -> np.ndarray:
        """Return the int64 items that request ``number`` has seen."""
        return self.seen[self.seen_offsets[number] : self.seen_offsets[number + 1]]

    def take(self, rows: np.ndarray) -> Exclusions:
        """Return those of some requests, by an int64 array of their numbers."""
        lengths = np.diff(self.seen_offsets)[rows]
        seen = self.seen[ranges(self.seen_offsets[:-1][rows], lengths)]
        return Exclusions(row_offsets(lengths), seen, self.time_ms[rows], self.period[rows], self.available_ms)

    def unborn(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return bool ``[n]``: whether each of ``items`` may not be recommended yet to the request in ``rows``."""
        later: np.ndarray = self.available_ms[self.period[rows], items] > self.time_ms[rows]
        return later
