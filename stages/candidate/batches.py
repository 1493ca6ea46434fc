"""Batches of one rank: which examples, with which negatives and what hidden.

Shapes: B queries, C candidates, L history length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.candidate.config import CandidateConfig
from stages.candidate.data import Catalogue, Examples, recency_weights
from stages.candidate.negatives import SharedNegatives
from stages.contracts.errors import EmptyDatasetError
from stages.features.config import FeatureConfig


@dataclass(frozen=True)
class Batch:
    """Arrays of one step.

    Attributes:
        history: int64 ``[B, L]``, padded with N.
        weights: float32 ``[B, L]`` recency weights, 0 at padding and at dropped items.
        id_weights: float32 ``[B, L]``, as ``weights``, but 0 also where an id is hidden.
        items: int64 ``[C]``, the positives first, then shared negatives.
        item_id_weights: float32 ``[C]``, 0 where an id is hidden.
    """

    history: np.ndarray
    weights: np.ndarray
    id_weights: np.ndarray
    items: np.ndarray
    item_id_weights: np.ndarray


class Batches:
    """Draws the batches of one rank.

    All ranks make the same order from the same seed and take every ``world``-th example, so that they
    agree on the number of steps; the last examples that do not fill a step of all ranks wait for the
    next epoch's order.

    Raises:
        EmptyDatasetError: if there are fewer than two examples a rank.
    """

    def __init__(
        self,
        examples: Examples,
        catalogue: Catalogue,
        config: CandidateConfig,
        features: FeatureConfig,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._examples, self._catalogue = examples, catalogue
        self._config, self._features = config, features
        self._rank, self._world = rank, world
        self._rows = examples.usable(config.use_empty_histories)
        self.size = min(config.batch_size, len(self._rows) // world)
        if self.size < 2:
            raise EmptyDatasetError(
                f"{len(self._rows)} of {len(examples)} training examples have a history; "
                f"{world} processes need at least {2 * world}: lower n_processes, set use_empty_histories "
                "or move the border of the candidate part"
            )
        self.steps = len(self._rows) // (self.size * world)
        self.shared = SharedNegatives(catalogue, config)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the ``steps`` batches of an epoch, the same ones each time it is called."""
        order = np.random.default_rng([self._config.seed, epoch]).permutation(self._rows)
        rng = np.random.default_rng([self._config.seed, epoch, 1 + self._rank])
        own = order[self._rank :: self._world]
        for step in range(self.steps):
            yield self._batch(own[step * self.size : (step + 1) * self.size], rng)

    def probe(self, n: int) -> Batch:
        """Return the first ``n`` examples with nothing hidden and no negatives."""
        rows = self._rows[:n]
        return self._plain(rows, np.asarray(self._examples.items[rows], dtype=np.int64))

    def _plain(self, rows: np.ndarray, items: np.ndarray) -> Batch:
        n_items = len(self._catalogue)
        history = self._examples.histories(rows, self._features.history_length, n_items)
        weights = recency_weights(history, n_items, self._features.history_decay)
        return Batch(history, weights, weights, items, np.ones(len(items), dtype=np.float32))

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        config = self._config
        shared = self.shared.draw(rng)
        batch = self._plain(rows, np.concatenate([self._examples.items[rows], shared]).astype(np.int64))
        kept = rng.random(batch.history.shape, dtype=np.float32) >= config.history_dropout
        kept[:, 0] = True  # a history never becomes empty
        weights = batch.weights * kept
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        named = rng.random(batch.history.shape, dtype=np.float32) >= config.item_id_dropout
        item_named = rng.random(len(batch.items), dtype=np.float32) >= config.item_id_dropout
        return Batch(batch.history, weights, weights * named, batch.items, item_named.astype(np.float32))
