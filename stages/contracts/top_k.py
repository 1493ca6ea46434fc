"""The k best scores, chosen the same way everywhere: best first, and of equal scores the lower id first."""

from __future__ import annotations

import numpy as np

from stages.contracts.errors import DataError


def top_k(scores: np.ndarray, k: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Return the positions of the k largest scores, int64 ``[min(k, N)]``.

    The result is the first k of a stable sort of all scores, in less time: only scores at or above the k-th are sorted.

    Args:
        scores: ``[N]``, integers or floats; ``-inf`` is the worst score.
        k: how many, 0 or more.
        ids: ``[N]``, distinct; of equal scores the lower id comes first. None = the lower position.

    Raises:
        DataError: if k is negative, or a score is NaN.
    """
    if k < 0:
        raise DataError(f"top-k: k = {k}, allowed is 0 or more")
    places, highest = np.arange(len(scores)), scores
    if k < len(scores):
        if k == 0:
            return places[:0]
        highest = np.partition(scores, len(scores) - k)[len(scores) - k :]
        places = np.flatnonzero(scores >= highest[0])
    if np.isnan(highest).any():  # NaN sorts after the largest number, so it is among the k highest
        raise DataError("top-k: a score is NaN, allowed are numbers and infinities")
    ties = places if ids is None else ids[places]
    order = np.lexsort((ties, -scores[places]))
    best: np.ndarray = places[order[:k]]
    return best
