"""Discounted cumulative gain (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002).

The gain of a row is linear, the discount is ``1 / log2(rank + 2)`` with ranks from 0.

Shapes: Q requests, R rows.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.ragged import places_in_rows


def discounts(rank: np.ndarray, k: int) -> np.ndarray:
    """Return float64 ``[R]``: the discount of each rank below the cut-off ``k``, 0 from there on."""
    return np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)


def dcg(request: np.ndarray, gain: np.ndarray, rank: np.ndarray, k: int, n_requests: int) -> np.ndarray:
    """Return the DCG of each request, float64 ``[Q]``.

    Args:
        request: int ``[R]``, below Q.
        gain: float ``[R]``.
        rank: int ``[R]``, from 0.
        k: cut-off.
        n_requests: Q.
    """
    return np.bincount(request, gain * discounts(rank, k), minlength=n_requests)


def ideal_dcg(request: np.ndarray, gain: np.ndarray, k: int, n_requests: int) -> np.ndarray:
    """Return the largest DCG that an order of each request's rows reaches, float64 ``[Q]``.

    Args:
        request: int ``[R]``, below Q and not decreasing.
        gain: float ``[R]``.
        k: cut-off.
        n_requests: Q.
    """
    rank = places_in_rows(np.bincount(request, minlength=n_requests))
    return dcg(request, gain[np.lexsort((-gain, request))], rank, k, n_requests)
