"""Rows of different lengths that lie one after the other in a flat array.

Shapes: n rows, m entries in total.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Lengths = np.ndarray | Sequence[int]


def row_offsets(lengths: Lengths) -> np.ndarray:
    """Return int64 ``[n + 1]``: row i is ``flat[offsets[i]:offsets[i + 1]]``.

    Args:
        lengths: int ``[n]``, entries of each row.
    """
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.asarray(lengths, dtype=np.int64), out=offsets[1:])
    return offsets


def run_offsets(values: np.ndarray) -> np.ndarray:
    """Return int64 ``[n + 1]``: rows ``offsets[i]:offsets[i + 1]`` of ``values`` hold one value.

    Args:
        values: ``[m]``, equal ones side by side.
    """
    if len(values) == 0:
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.concatenate([[0], changes, [len(values)]]).astype(np.int64)


def ranges(starts: np.ndarray | int, lengths: np.ndarray) -> np.ndarray:
    """Return the integers of ``[start, start + length)`` for each row, one row after the other, int64 ``[m]``.

    Args:
        starts: int ``[n]``, or one start for all rows.
        lengths: int ``[n]``, 0 or more.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    flat: np.ndarray = np.arange(total) - np.repeat(ends - lengths - starts, lengths)
    return flat


def places_in_rows(lengths: np.ndarray) -> np.ndarray:
    """Return each entry's place within its row, from 0, int64 ``[m]``.

    Args:
        lengths: int ``[n]``, entries of each row.
    """
    return ranges(0, lengths)
