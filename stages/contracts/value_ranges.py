"""The allowed values of each signal: learnt from the events of a snapshot, applied to posted events.

One event with a value of a thousand million would outweigh all others in every counter, for good. A range is learnt
from the values of the data source (before a value rule, and as float32), and is stored in snapshot and release:

- A scale, such as ratings, has few distinct values. Its range is the smallest to the largest of them; a signal whose
  value is always 1 allows 1 only.
- An amount, such as seconds watched, has many distinct values, a value rule, or values that are summed over repeats.
  Its range is 0 to the largest of them, and to 1 at least: an event without a value counts 1.
- A signal without events allows 1 only.

A recipe may set a range itself (``dataset.value_ranges``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import model_validator

from stages.contracts.config import Config

LONGEST_SCALE = 32
"""A signal with more distinct values than this is an amount."""
_LARGEST = 1e30


class ValueRange(Config):
    """The values that one signal may have.

    Attributes:
        signal: its name.
        low, high: smallest and largest value, both allowed.
    """

    signal: str
    low: float
    high: float

    @model_validator(mode="after")
    def _in_order(self) -> ValueRange:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} must be at most high = {self.high:g}")
        return self

    @classmethod
    def of_nothing(cls, signal: str) -> ValueRange:
        """Return the range of a signal without events."""
        return cls(signal=signal, low=1.0, high=1.0)

    def holds(self, value: float) -> bool:
        """Return whether a value, taken as float32, is allowed; NaN and values from 1e30 on never are."""
        return abs(value) < _LARGEST and self.low <= float(np.float32(value)) <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"

    def united(self, other: ValueRange | None) -> ValueRange:
        """Return the smallest range that holds both."""
        if other is None:
            return self
        return ValueRange(signal=self.signal, low=min(self.low, other.low), high=max(self.high, other.high))


@dataclass
class SeenValues:
    """Smallest and largest value of one signal, and up to ``LONGEST_SCALE + 1`` distinct ones."""

    low: float = np.inf
    high: float = -np.inf
    distinct: set[float] = field(default_factory=set)

    def add(self, values: np.ndarray) -> None:
        """Take in more values, float ``[R]``; what is not finite does not count."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if len(self.distinct) <= LONGEST_SCALE:
            self.distinct.update(np.unique(values)[: LONGEST_SCALE + 1].tolist())

    def range(self, signal: str, amount: bool) -> ValueRange:
        """Return the range of the signal, by the rules above.

        Args:
            signal: its name.
            amount: whether the signal is an amount even if it has few distinct values.
        """
        if not self.distinct:
            return ValueRange.of_nothing(signal)
        if amount or len(self.distinct) > LONGEST_SCALE:
            return ValueRange(signal=signal, low=min(self.low, 0.0), high=max(self.high, 1.0))
        return ValueRange(signal=signal, low=self.low, high=self.high)


def learn_ranges(
    seen: Mapping[str, SeenValues],
    amounts: Iterable[str],
    before: Iterable[ValueRange] = (),
    given: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[ValueRange, ...]:
    """Return the range of every signal.

    Args:
        seen: values by signal.
        amounts: signals that are amounts whatever their values.
        before: ranges of the snapshot or release that this one extends; what they allow stays allowed.
        given: (low, high) by signal that a recipe sets, instead of what is learnt.
    """
    given, amounts = given or {}, set(amounts)
    earlier = {entry.signal: entry for entry in before}
    ranges = []
    for signal, values in seen.items():
        if signal in given:
            low, high = np.clip(given[signal], -_LARGEST, _LARGEST).astype(np.float32).tolist()
            ranges.append(ValueRange(signal=signal, low=low, high=high))
        elif signal in earlier and not values.distinct:
            ranges.append(earlier[signal])
        else:
            ranges.append(values.range(signal, signal in amounts).united(earlier.get(signal)))
    return tuple(ranges)
