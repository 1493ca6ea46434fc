"""Batches of one rank: which examples, with which negatives and what hidden.

Shapes: B queries, C candidates of a rank, L history length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.candidate.config import CandidateConfig
from stages.candidate.data import Catalogue, Examples, recency_weights
from stages.candidate.exchange import Share
from stages.contracts.errors import EmptyDatasetError
from stages.features.config import FeatureConfig


@dataclass(frozen=True)
class Batch:
    """Arrays of one step.

    Attributes:
        history: int64 ``[B, L]``, padded with N.
        weights: float32 ``[B, L]`` recency weights, 0 at padding and at dropped items.
        id_weights: float32 ``[B, L]``, as ``weights``, but 0 also where an id is hidden.
        items: int64 ``[C]``, the positives first, then uniform negatives, then padding to what every
            rank sends.
        item_id_weights: float32 ``[C]``, 0 where an id is hidden.
        candidates: int64, the items of all ranks' candidates, in the order of ``share.order``.
        share: which part of the whole batch this is.
    """

    history: np.ndarray
    weights: np.ndarray
    id_weights: np.ndarray
    items: np.ndarray
    item_id_weights: np.ndarray
    candidates: np.ndarray
    share: Share


class Batches:
    """Draws the batches of one rank.

    A batch is drawn as a whole from (seed, epoch, step), alike on every rank and for any number of
    them, and each rank takes its share; so a run can go on at any step. The last examples that do not
    fill a batch wait for the next epoch's order.

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
        rows = examples.usable(config.use_empty_histories)
        # An epoch's order is as long as this: half the memory wherever 32 bits are enough.
        self._rows = rows.astype(np.int32) if len(examples) < 1 << 31 else rows
        self.size = min(config.batch_size, len(self._rows))
        if self.size < 2 * world:
            raise EmptyDatasetError(
                f"{len(self._rows)} of {len(examples)} training examples have a history, batch_size = "
                f"{config.batch_size}; {world} processes need at least {2 * world} a batch: lower n_processes, set "
                "use_empty_histories or move the border of the candidate part"
            )
        self.steps = len(self._rows) // self.size
        self.n_uniform = min(config.uniform_negatives, len(catalogue.eligible))
        self._share = Share(self.size, self.n_uniform, rank, world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step ``start`` on, the same ones each time it is called."""
        order = np.random.default_rng([self._config.seed, epoch]).permutation(self._rows)
        for step in range(start, self.steps):
            rng = np.random.default_rng([self._config.seed, epoch, step])
            yield self._batch(order[step * self.size : (step + 1) * self.size], rng)

    def probe(self, n: int) -> Batch:
        """Return the first ``n`` examples with nothing hidden and no negatives, whole on every rank."""
        rows = self._rows[:n]
        items = np.asarray(self._examples.items[rows], dtype=np.int64)
        history, weights = self._histories(rows)
        shown = np.ones(len(items), dtype=np.float32)
        return Batch(history, weights, weights, items, shown, items, Share(len(rows), 0, 0, 1))

    def _histories(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_items = len(self._catalogue)
        history = self._examples.histories(rows, self._features.history_length, n_items)
        return history, recency_weights(history, n_items, self._features.history_decay)

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        config, share = self._config, self._share
        uniform = rng.choice(self._catalogue.eligible, self.n_uniform, replace=False)
        shape = (self.size, self._features.history_length)
        kept = rng.random(shape, dtype=np.float32)[share.queries] >= config.history_dropout
        named = rng.random(shape, dtype=np.float32)[share.queries] >= config.item_id_dropout
        item_named = rng.random(self.size + self.n_uniform, dtype=np.float32) >= config.item_id_dropout
        history, weights = self._histories(rows[share.queries])
        kept[:, 0] = True  # a history never becomes empty
        weights = weights * kept
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        candidates = np.concatenate([self._examples.items[rows], uniform]).astype(np.int64)
        items = self._padded(candidates)
        return Batch(
            history,
            weights,
            weights * named,
            items,
            self._padded(item_named.astype(np.float32)),
            candidates[share.order()],
            share,
        )

    def _padded(self, values: np.ndarray) -> np.ndarray:
        """Return this rank's share of ``[B + uniform]`` values, zeros behind."""
        share, own = self._share, np.zeros(self._share.rows, dtype=values.dtype)
        found = np.concatenate([values[: self.size][share.queries], values[self.size :][share.uniform]])
        own[: len(found)] = found
        return own
