"""The sources beside the two-tower index: what each names for one request, with exclusions and filters inside.

Each scores a pool of items that the user's newest items or the last hours lead to, leaves out what the request may
not be answered with, and keeps the best. No torch and no scipy here: serving imports this through ``scorer``.

Shapes: H items of a history, M items of a pool, N items, E neighbours of all items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from stages.candidate.generators.config import SourcesConfig
from stages.contracts.errors import ReleaseError
from stages.contracts.tables import ScoredItems
from stages.contracts.top_k import top_k
from stages.features.state import FunnelState

Pool = tuple[np.ndarray, np.ndarray]
"""Distinct int64 items and their float64 scores, both ``[M]``."""


@dataclass(frozen=True)
class Asked:
    """One request, as the sources read it.

    Attributes:
        history: int64 ``[H]`` items, newest first.
        time_ms: of the request.
        context: one code a context column of the state; empty where nothing is known.
        seen: int64 items that must not be returned.
        available_ms: int64 ``[N]``, when each item may be recommended; NEVER_AVAILABLE_MS for one that the item
            policy or the request's filter leaves out.
    """

    history: np.ndarray
    time_ms: int
    context: Sequence[int]
    seen: np.ndarray
    available_ms: np.ndarray


class ItemSource(Protocol):
    """One source.

    Attributes:
        name: as in ``SOURCE_NAMES``.
        reads_state: whether its answer depends on the state, and so on the moment at which it is asked.
    """

    name: str
    reads_state: ClassVar[bool]

    def pool(self, asked: Asked, state: FunnelState) -> Pool:
        """Return the items that it can name, whatever the request leaves out."""
        ...


def best_of(pool: Pool, asked: Asked, k: int) -> ScoredItems:
    """Return the best ``k`` items of a pool that the request may be answered with; ties by item index."""
    ids, scores = pool[0], pool[1].astype(np.float32)
    kept = (scores > 0) & (asked.available_ms[ids] <= asked.time_ms) & ~np.isin(ids, asked.seen)
    ids, scores = ids[kept], scores[kept]
    best = top_k(scores, k, ids)
    return ScoredItems(ids=ids[best].astype(np.int64), scores=scores[best])


class CovisitationSource:
    """What other users touched next to the user's newest items, as of this moment.

    The score of an item is the sum over the user's newest items of weight * link / sqrt(popularity of either side),
    the candidate's popularity being smoothed; see ``stages.features.covisitation``.
    """

    name = "covisitation"
    reads_state: ClassVar[bool] = True

    def __init__(self, config: SourcesConfig) -> None:
        self._config = config

    def pool(self, asked: Asked, state: FunnelState) -> Pool:
        """Return every item with a link."""
        history, weights = _newest(asked.history, self._config)
        rows = [state.covisitation.neighbours(item) for item in history.tolist()]
        scale = weights / np.sqrt(np.maximum(state.touches[history], 1))
        ids, scores = _sums([items for items, _ in rows], [links for _, links in rows], scale)
        return ids, scores / np.sqrt(np.maximum(state.touches[ids] + self._config.covisitation_smoothing, 1))


class TrendingSource:
    """What everybody, or the request's segment, touched within the last minutes and hours."""

    name = "trending"
    reads_state: ClassVar[bool] = True

    def pool(self, asked: Asked, state: FunnelState) -> Pool:
        """Return every item of the longest window.

        Raises:
            ReleaseError: if the state does not count what is trending.
        """
        if state.trending is None:
            raise ReleaseError("the state counts nothing for the source 'trending': it was made without its windows")
        return state.trending.scores(asked.time_ms, state.trending.segment(asked.context))


class NeighbourSource:
    """Trained neighbours of the user's newest items, their weights summed.

    Args:
        name: of the source.
        offsets: int64 ``[N + 1]``, where each item's neighbours start.
        items: int32 ``[E]`` neighbours.
        weights: float32 ``[E]``, above 0.
        config: how much of a history is read.
    """

    reads_state: ClassVar[bool] = False

    def __init__(
        self, name: str, offsets: np.ndarray, items: np.ndarray, weights: np.ndarray, config: SourcesConfig
    ) -> None:
        self.name = name
        self._offsets, self._items, self._weights, self._config = offsets, items, weights, config

    def pool(self, asked: Asked, state: FunnelState) -> Pool:
        """Return every neighbour of the newest items."""
        history, weights = _newest(asked.history, self._config)
        rows = [slice(self._offsets[item], self._offsets[item + 1]) for item in history.tolist()]
        return _sums([self._items[row] for row in rows], [self._weights[row] for row in rows], weights)


def _newest(history: np.ndarray, config: SourcesConfig) -> Pool:
    """Return the newest items and their weights by position."""
    newest = history[: config.history_length]
    return newest, np.exp(-np.arange(len(newest)) / config.history_decay)


def _sums(items: list[np.ndarray], links: list[np.ndarray], scale: np.ndarray) -> Pool:
    """Return distinct items, and the sum of each one's links, the links of row h times ``scale[h]``."""
    if not items:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    factors = np.repeat(scale, [len(row) for row in items])
    ids, position = np.unique(np.concatenate(items), return_inverse=True)
    scores = np.bincount(position, np.concatenate(links) * factors, minlength=len(ids))
    return ids.astype(np.int64), scores
