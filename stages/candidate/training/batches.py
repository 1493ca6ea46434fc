"""Batches of one rank: examples, negatives, and which entries and ids are hidden.

Shapes: B queries and C candidates of a rank, R histories, L history length, X context columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.candidate.config import CandidateConfig
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.distributed.candidate_exchange import Share, part
from stages.candidate.training.negatives import SharedNegatives
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.ragged import ranges
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
        items: int64 ``[C]``, the rank's positives first, then its shared negatives, then padding to the number
            that every rank sends; with the full softmax no positives.
        item_named: bool ``[C]``, candidates whose id counts.
        item_ages: int64 ``[C]`` seconds.
        candidates: int64, the items of all ranks' candidates, in the order of ``share.order``.
        share: this rank's share of the whole batch.
        query_row: int64 ``[B]``, history of each query; None means query b has history b.
        query_place: int64 ``[B]``, newest entry of that history that the query may see.
        positive_place: int64 ``[B]``, with the full softmax: place of each positive among ``candidates``.
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
    candidates: np.ndarray
    share: Share
    query_row: np.ndarray | None = None
    query_place: np.ndarray | None = None
    positive_place: np.ndarray | None = None

    @property
    def n_queries(self) -> int:
        """B."""
        return len(self.users)

    @property
    def inputs(self) -> TowerInputs:
        """The user tower's inputs, as in serving."""
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

    A batch is drawn as a whole from (seed, epoch, step). It is the same on every rank and for any number of
    ranks, and each rank takes its share. So a run can resume at any step. An epoch leaves out the last
    examples of its order that do not fill a batch.

    Attributes:
        size: queries a step, of all ranks together.
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
        self._of_others = config.training.histories == "others"
        rows = examples.usable(config.training.use_empty_histories, self._of_others)
        # An epoch's order is as long as this. Where 32 bits are enough, they take half the memory.
        self._rows = rows.astype(np.int32) if len(examples) < 1 << 31 else rows
        self.size = min(config.training.batch_size, len(self._rows))
        if self.size < 2 * world:
            raise EmptyDatasetError(
                f"{len(self._rows)} of {len(examples)} training examples have a history, training.batch_size = "
                f"{config.training.batch_size}; {world} processes need at least {2 * world} a batch: lower "
                "distributed.n_processes, set training.use_empty_histories or move the border of the candidate part"
            )
        self.steps = len(self._rows) // self.size
        self.shared = SharedNegatives(catalogue, config)
        self._full = config.loss.over_all_items

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step ``start`` on, the same ones each time it is called."""
        order_rng = np.random.default_rng([self._config.training.seed, epoch])
        order = order_rng.permutation(self._rows)
        share = Share.even(self.size, self.shared.n, self._rank, self._world, not self._full)
        read = self._inputs(order_rng)
        for step in range(start, self.steps):
            rng = np.random.default_rng([self._config.training.seed, epoch, step])
            rows, inputs = read(order[step * self.size : (step + 1) * self.size], share.queries)
            yield self._batch(rows, inputs, rng, share, share.queries, self.size)

    def _inputs(self, rng: np.random.Generator) -> Callable[[np.ndarray, slice], tuple[np.ndarray, TowerInputs]]:
        """Return a function from a batch to its examples, and to the inputs of one rank's share of them.

        Args:
            rng: of the epoch, for orders of the users' touches.
        """
        examples, shape = self._examples, (self._features.history_length, len(self._catalogue))
        if not self._of_others:
            return lambda rows, own: (rows, examples.inputs(rows[own], *shape))
        order_E, sizes_U = examples.shuffled(rng), examples.sizes()
        return lambda places, own: (order_E[places], examples.others(places[own], order_E, sizes_U, *shape))

    def probe(self, n: int) -> Batch:
        """Return the first ``n`` examples, all on every rank: nothing hidden, no negatives, ages as exported."""
        rows = self._rows[:n]
        inputs = self._examples.inputs(rows, self._features.history_length, len(self._catalogue))
        items = np.asarray(self._examples.items[rows], dtype=np.int64)
        kept = inputs.items < len(self._catalogue)
        ages = self._catalogue.ages(items, self._catalogue.end_ms)
        return Batch(
            **_history(inputs),
            kept=kept,
            named=kept,
            items=items,
            item_named=items >= 0,
            item_ages=ages,
            candidates=items,
            share=Share.even(len(rows), 0, 0, 1),
        )

    def _batch(
        self,
        rows: np.ndarray,
        inputs: TowerInputs,
        rng: np.random.Generator,
        share: Share,
        histories: slice,
        n_histories: int,
        query_row: np.ndarray | None = None,
        query_place: np.ndarray | None = None,
    ) -> Batch:
        """Return a rank's share of a batch: draw its negatives, and which entries and ids are hidden.

        Args:
            rows: the examples of the whole batch.
            inputs: of the rank's histories.
            rng: of the whole batch: what it draws does not depend on the rank.
            share: of the rank.
            histories: which of the batch's histories the rank has.
            n_histories: of the batch.
            query_row: as in ``Batch``.
            query_place: as in ``Batch``.
        """
        config = self._config
        candidates = np.concatenate([self._examples.items[rows], self.shared.draw(rng)]).astype(np.int64)
        drawn = (n_histories, inputs.items.shape[1])
        kept = rng.random(drawn, dtype=np.float32)[histories] >= config.training.history_dropout
        if query_place is None:
            kept[:, 0] = True  # a history never becomes empty
        elif query_row is not None:
            kept[query_row, query_place] = True
        kept &= inputs.items < len(self._catalogue)
        named = rng.random(drawn, dtype=np.float32)[histories] >= config.training.item_id_dropout
        item_named = rng.random(len(candidates), dtype=np.float32) >= config.training.item_id_dropout
        parts = _history(inputs)
        if config.model.user_id:
            hidden = rng.random(len(rows), dtype=np.float32)[share.queries] < config.training.user_id_dropout
            parts["users"] = np.where(hidden, UNKNOWN_USER, parts["users"])
        ages = np.zeros(len(candidates), dtype=np.int64)
        if config.model.item_age:
            times_ms = self._examples.times_ms[rows]
            # A shared negative's age is taken at the time of a random example.
            asked_ms = np.concatenate([times_ms, rng.choice(times_ms, share.n_shared)])
            ages = self._catalogue.ages(candidates, asked_ms)
        return Batch(
            **parts,
            kept=kept,
            named=named,
            items=share.own(candidates),
            item_named=share.own(item_named),
            item_ages=share.own(ages),
            candidates=candidates[share.order()],
            share=share,
            query_row=query_row,
            query_place=query_place,
            positive_place=self.shared.place(candidates[share.queries]) if self._full else None,
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

    The examples are those of ``Batches``. The example of touch e is the query at the newest touch strictly
    before it. Windows of L touches tile a user's sequence. For a sequence longer than L, the tiling starts
    at another touch in each epoch. A signal is as known at the touch that follows.

    All steps have equally many windows. With ``windows_by_length`` a step has windows of about one length, and all
    steps have about equally many examples.
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
        if n_windows < world:
            raise EmptyDatasetError(
                f"training.mode = 'sequences': {n_windows} sequences of users, {world} processes need one each; lower "
                "distributed.n_processes"
            )
        queries_a_window = len(self._rows) / n_windows
        self._a_step = max(world, min(round(self.size / queries_a_window), n_windows))
        self.steps = max(1, n_windows // self._a_step)
        if config.training.windows_by_length:
            self.steps = max(1, min(round(len(self._rows) / self.size), n_windows // world))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from step ``start`` on, the same ones each time it is called."""
        order_rng = np.random.default_rng([self._config.training.seed, epoch])
        windows = self._windows(order_rng)
        bounds = np.append(windows, len(self._rows))
        dealt = (
            self._alike(bounds, order_rng)
            if self._config.training.windows_by_length
            else self._random(bounds, order_rng)
        )
        for step in range(start, self.steps):
            rng = np.random.default_rng([self._config.training.seed, epoch, step])
            yield self._sequences(bounds[dealt[step]], bounds[dealt[step] + 1], rng)

    def _random(self, bounds: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the windows of each step, equally many."""
        # Resized to the number that the steps take, because the tilings of epochs differ a little in number.
        order = np.resize(rng.permutation(len(bounds) - 1), self.steps * self._a_step)
        return np.split(order, self.steps)

    def _alike(self, bounds: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the windows of each step, of about one length, with about equally many examples a step."""
        begin, end = self._extent(bounds[1:])
        order = np.lexsort((rng.random(len(begin)), end - begin))
        examples = np.cumsum(np.diff(bounds)[order])
        cuts = np.searchsorted(examples, np.arange(1, self.steps) * examples[-1] / self.steps)
        # Each rank needs a window of each step.
        least = self._world * np.arange(1, self.steps)
        cuts = np.minimum(np.maximum.accumulate(cuts - least), len(order) - self._world * self.steps).clip(0) + least
        steps = np.split(order, cuts)
        return [steps[place] for place in rng.permutation(self.steps)]

    def _extent(self, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return first touch and end of windows, by the positions in ``_rows`` at which their examples end."""
        last = self._rows[stop - 1]
        end = self._examples.end[last]
        return np.maximum(self._examples.start[last], end - self._length), end

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
        """Return the rank's share of the batch of the windows whose examples are ``_rows[first:stop]``."""
        examples, n_items = self._examples, len(self._catalogue)
        sizes = stop - first
        ends = np.cumsum(sizes)
        places = ranges(first, sizes)
        shares = [part(len(sizes), rank, self._world) for rank in range(self._world)]
        borders = (0, *(int(ends[each.stop - 1]) for each in shares))
        share, own = Share(borders, self.shared.n, self._rank, not self._full), shares[self._rank]
        every, last = self._rows[places], self._rows[stop[own] - 1]
        begin, end = self._extent(stop)
        length = int((end - begin).max()) if self._config.training.windows_by_length else self._length
        begin_R, end_R, asked_ms = begin[own], end[own], examples.times_ms[last]
        rows, n_windows, sizes = every[share.queries], len(sizes), sizes[own]
        window = examples.window(begin_R, end_R, asked_ms, last, length, n_items)
        inputs = TowerInputs(
            items=window.items,
            signals=self._signals(begin_R, end_R, asked_ms, length),
            ages=window.ages,
            users=examples.users[rows].astype(np.int64),
            context=examples.moments[examples.contexts[rows]].astype(np.int64),
        )
        query_row = np.repeat(np.arange(len(sizes)), sizes)
        query_place = (end_R[query_row] - examples.end[rows]).astype(np.int64)
        return self._batch(every, inputs, rng, share, own, n_windows, query_row, query_place)

    def _signals(self, begin_R: np.ndarray, end_R: np.ndarray, asked_ms: np.ndarray, length: int) -> np.ndarray:
        """Return int64 ``[R, length]`` signals of windows, each as known at the user's next touch."""
        touch_RL = end_R[:, None] - 1 - np.arange(length)
        kept_RL = touch_RL >= begin_R[:, None]
        touch_RL = np.where(kept_RL, touch_RL, 0)
        own_ms = self._examples.times_ms[touch_RL]
        next_ms = np.concatenate([asked_ms[:, None], own_ms[:, :-1]], axis=1)
        signals = self._examples.signals_before(touch_RL, np.maximum(next_ms, own_ms + 1))
        return np.where(kept_RL, signals, 0)


BATCHES = {"examples": Batches, "sequences": SequenceBatches}
"""Batches by ``candidate.training.mode``."""


def make_batches(
    examples: Examples,
    catalogue: Catalogue,
    config: CandidateConfig,
    features: FeatureConfig,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    """Return the batches for ``config.training.mode``."""
    return BATCHES[config.training.mode](examples, catalogue, config, features, rank, world)
