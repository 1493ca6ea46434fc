"""SplitMix64 over arrays of 64-bit integers.

G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Increment of the generator's state: 2^64 over the golden ratio, made odd."""
_STEPS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST = np.uint64(31)


def mix64(values: np.ndarray) -> np.ndarray:
    """Return the generator's output for each state, uint64 of the same shape: a bijection that spreads every bit.

    Args:
        values: uint64.
    """
    for shift, factor in _STEPS:
        values = (values ^ (values >> shift)) * factor
    return np.asarray(values ^ (values >> _LAST))
