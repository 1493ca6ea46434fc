"""Batches of one rank: which examples, with which negatives and what hidden.

Shapes: B queries, R histories, C candidates, L history length, X context columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stages.candidate.catalogue import Catalogue
from stages.candidate.config import CandidateConfig
from stages.candidate.data import Examples
from stages.candidate.negatives import SharedNegatives
from stages.contracts.errors import EmptyDatasetError
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, TowerInputs


@dataclass(frozen=True)
class Batch:
    """Arrays of one step.

    Attributes:
        history: int64 ``[R, L]``, newest first, padded with N.
        signals, ages: int64 ``[R, L]``, as in ``TowerInputs``.
        kept: bool ``[R, L]``, entries that count: neither padding nor dropped.
        named: bool ``[R, L]``, entries whose id counts.
        users: int64 ``[B]``, UNKNOWN_USER where hidden.
        context: int64 ``[B, X]``.
        items: int64 ``[C]``, the positives first, then shared negatives.
        item_named: bool ``[C]``, candidates whose id counts.
        item_ages: int64 ``[C]`` seconds.
        query_row: int64 ``[B]``, history of each query; None means query b has history b.
        query_place: int64 ``[B]``, newest entry of that history that the query may see.
    """

    history: np.ndarray
    signals: np.ndarray
    ages: np.ndarray
    kept: np.ndarray
    named: np.ndarray
    users: np.ndarray
    context: np.ndarray
    items: np.ndarray
    item_named: np.ndarray
    item_ages: np.ndarray
    query_row: np.ndarray | None = None
    query_place: np.ndarray | None = None

    @property
    def n_queries(self) -> int:
        """B."""
        return len(self.users)

    @property
    def inputs(self) -> TowerInputs:
        """The histories as serving knows them."""
        return TowerInputs(self.history, self.signals, self.ages, self.users, self.context)

    def seen(self, padding: int) -> np.ndarray:
        """Return int64 ``[B, L]``: the items that each query sees."""
        if self.query_row is None or self.query_place is None:
            return self.history
        hidden_BL = np.arange(self.history.shape[1]) < self.query_place[:, None]
        items_BL: np.ndarray = np.where(hidden_BL, padding, self.history[self.query_row])
        return items_BL


class Batches:
    """Draws the batches of one rank.

    All ranks make the same order from the same seed and take every ``world``-th example, so that they
    agree on the number of steps; the last examples that do not fill a step of all ranks wait for the
    next epoch's order.

    Attributes:
        size: queries a step.
        steps: steps an epoch.
        shared: where shared negatives come from.

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
            rows = own[step * self.size : (step + 1) * self.size]
            inputs = self._examples.inputs(rows, self._features.history_length, len(self._catalogue))
            yield self._batch(rows, inputs, rng)

    def probe(self, n: int) -> Batch:
        """Return the first ``n`` examples with nothing hidden, no negatives, and ages as they are exported."""
        rows = self._rows[:n]
        inputs = self._examples.inputs(rows, self._features.history_length, len(self._catalogue))
        items = np.asarray(self._examples.items[rows], dtype=np.int64)
        kept = inputs.items < len(self._catalogue)
        ages = self._catalogue.ages(items, self._catalogue.end_ms)
        return Batch(**_history(inputs), kept=kept, named=kept, items=items, item_named=items >= 0, item_ages=ages)

    def _batch(
        self,
        rows: np.ndarray,
        inputs: TowerInputs,
        rng: np.random.Generator,
        query_row: np.ndarray | None = None,
        query_place: np.ndarray | None = None,
    ) -> Batch:
        """Return a batch of the examples ``rows`` with negatives drawn and something hidden."""
        config = self._config
        items = np.concatenate([self._examples.items[rows], self.shared.draw(rng)]).astype(np.int64)
        kept = rng.random(inputs.items.shape, dtype=np.float32) >= config.history_dropout
        if query_place is None:
            kept[:, 0] = True  # a history never becomes empty
        elif query_row is not None:
            kept[query_row, query_place] = True
        kept &= inputs.items < len(self._catalogue)
        named = rng.random(inputs.items.shape, dtype=np.float32) >= config.item_id_dropout
        item_named = rng.random(len(items), dtype=np.float32) >= config.item_id_dropout
        parts = _history(inputs)
        if config.user_id:
            hidden = rng.random(len(rows), dtype=np.float32) < config.user_id_dropout
            parts["users"] = np.where(hidden, UNKNOWN_USER, parts["users"])
        ages = np.zeros(len(items), dtype=np.int64)
        if config.item_age:
            times_ms = self._examples.times_ms[rows]
            # A shared negative is as old as it was at some example's moment.
            asked_ms = np.concatenate([times_ms, rng.choice(times_ms, len(items) - len(rows))])
            ages = self._catalogue.ages(items, asked_ms)
        return Batch(
            **parts,
            kept=kept,
            named=named,
            items=items,
            item_named=item_named,
            item_ages=ages,
            query_row=query_row,
            query_place=query_place,
        )


def _history(inputs: TowerInputs) -> dict[str, np.ndarray]:
    return {
        "history": inputs.items,
        "signals": inputs.signals,
        "ages": inputs.ages,
        "users": inputs.users,
        "context": inputs.context,
    }


class SequenceBatches(Batches):
    """Batches of windows of users' sequences: one forward pass trains every position of a window.

    The examples are those of ``Batches``: the one of touch e is the query of the newest touch strictly
    before it. Windows of L touches tile a user's sequence; where that is longer than L, the tiling
    starts elsewhere in each epoch. A signal is known as it stood at the touch that follows.
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
        super().__init__(examples, catalogue, config, features, rank, world)
        self._length = features.history_length
        n_windows = len(self._windows(None))
        queries_a_window = len(self._rows) / n_windows
        self._n_rows = max(1, min(round(self.size / queries_a_window), n_windows // world))
        self.steps = max(1, n_windows // (self._n_rows * world))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the ``steps`` batches of an epoch, the same ones each time it is called."""
        order_rng = np.random.default_rng([self._config.seed, epoch])
        rng = np.random.default_rng([self._config.seed, epoch, 1 + self._rank])
        windows = self._windows(order_rng)
        bounds = np.append(windows, len(self._rows))
        # As many windows as the steps take: tilings of different epochs differ a little in number.
        order = np.resize(order_rng.permutation(len(windows)), self.steps * self._n_rows * self._world)
        own = order[self._rank :: self._world]
        for step in range(self.steps):
            chosen = own[step * self._n_rows : (step + 1) * self._n_rows]
            yield self._sequences(bounds[chosen], bounds[chosen + 1], rng)

    def _windows(self, rng: np.random.Generator | None) -> np.ndarray:
        """Return int64 positions in ``_rows`` at which a new window's examples start."""
        newest = self._examples.end[self._rows] - 1
        start = self._examples.start[self._rows]
        new_user = np.append(True, start[1:] != start[:-1])
        number = np.cumsum(new_user) - 1
        touches = np.maximum.reduceat(newest - start + 1, np.flatnonzero(new_user))
        shift = np.zeros(len(touches), dtype=np.int64)
        if rng is not None:
            shift = np.where(touches > self._length, rng.integers(0, self._length, len(touches)), 0)
        tile = (newest - start + shift[number]) // self._length
        return np.flatnonzero(new_user | np.append(True, tile[1:] != tile[:-1]))

    def _sequences(self, first: np.ndarray, stop: np.ndarray, rng: np.random.Generator) -> Batch:
        """Return the batch of the windows whose examples are ``_rows[first:stop]``."""
        examples, n_items = self._examples, len(self._catalogue)
        sizes = stop - first
        places = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes - first, sizes)
        rows, last = self._rows[places], self._rows[stop - 1]
        end_R = examples.end[last]
        begin_R = np.maximum(examples.start[last], end_R - self._length)
        asked_ms = examples.times_ms[last]
        window = examples.window(begin_R, end_R, asked_ms, last, self._length, n_items)
        inputs = TowerInputs(
            items=window.items,
            signals=self._signals(begin_R, end_R, asked_ms),
            ages=window.ages,
            users=examples.users[rows].astype(np.int64),
            context=examples.moments[examples.contexts[rows]].astype(np.int64),
        )
        query_row = np.repeat(np.arange(len(sizes)), sizes)
        return self._batch(rows, inputs, rng, query_row, end_R[query_row] - examples.end[rows])

    def _signals(self, begin_R: np.ndarray, end_R: np.ndarray, asked_ms: np.ndarray) -> np.ndarray:
        """Return int64 ``[R, L]`` signals of windows, each as known at the user's next moment."""
        touch_RL = end_R[:, None] - 1 - np.arange(self._length)
        kept_RL = touch_RL >= begin_R[:, None]
        touch_RL = np.where(kept_RL, touch_RL, 0)
        own_ms = self._examples.times_ms[touch_RL]
        next_ms = np.concatenate([asked_ms[:, None], own_ms[:, :-1]], axis=1)
        signals = self._examples.signals_before(touch_RL, np.maximum(next_ms, own_ms + 1))
        return np.where(kept_RL, signals, 0)


def make_batches(
    examples: Examples,
    catalogue: Catalogue,
    config: CandidateConfig,
    features: FeatureConfig,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Return the batches that ``config.training`` asks for."""
    kind = SequenceBatches if config.training == "sequences" else Batches
    return kind(examples, catalogue, config, features, rank, world)
