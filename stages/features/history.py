"""Inputs of the user tower: padded item ids and weights by recency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from stages.features.config import FeatureConfig
from stages.features.state import History


def tower_inputs(histories: Sequence[History], config: FeatureConfig, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what the user tower reads for B users.

    Args:
        histories: one a user, newest first; only the newest L entries are read.
        config: ``history_length`` is L, ``history_decay`` sets the weights.
        n_items: N, also the id of padding.

    Returns:
        items int64 ``[B, L]``, padded on the right with ``n_items``, and weights float32 ``[B, L]``,
        which sum to 1 over a history and are 0 at padding.
    """
    length = config.history_length
    items_BL = np.full((len(histories), length), n_items, dtype=np.int64)
    weights_BL = np.zeros((len(histories), length), dtype=np.float32)
    for row, history in enumerate(histories):
        kept = min(len(history.items), length)
        items_BL[row, :kept] = history.items[:kept]
        weights_BL[row, :kept] = _recency_weights(kept, config.history_decay)
    return items_BL, weights_BL


@lru_cache(maxsize=1024)
def _recency_weights(length: int, decay: float) -> np.ndarray:
    weights = np.exp(-np.arange(length) / decay)
    return (weights / weights.sum()).astype(np.float32) if length else weights.astype(np.float32)
