"""The training loop: epochs over prefetched batches, with checkpoints on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torchrec.optim.keyed import CombinedOptimizer
from tqdm import tqdm

from stages.candidate.config import CandidateConfig
from stages.candidate.distributed.sharding import dense_parameters
from stages.candidate.distributed.training_state import State
from stages.candidate.towers.inputs import ModelInputs
from stages.candidate.training.batches import Batch, Batches
from stages.candidate.training.checkpoint import Checkpoints, Progress
from stages.candidate.training.ema import Average
from stages.candidate.training.objective import LossOfBatch
from stages.candidate.training.prefetch import Prefetched
from stages.candidate.training.schedule import Schedule
from stages.candidate.training.stopping import Stopping
from stages.contracts.errors import DataError


@dataclass
class Clock:
    """Seconds of the loop: in all, and waiting for input."""

    seconds: float = 0.0
    waited: float = 0.0
    steps: int = 0


class Loop:
    """Trains this rank's share of every epoch.

    Args:
        batches: of this rank.
        loss_of: the model's loss.
        optimizer: of all parameters.
        config: passes, rates, prefetching and checkpoints.
        checkpoints: where they go; None writes none.
        state: what a checkpoint holds.
        average: of the weights, taken after each step; None takes none.
        stopping: judges each epoch and ends the training early; None trains all passes.
        until: epochs after which the training ends; None trains all passes. Rates are those of all passes.
    """

    def __init__(
        self,
        batches: Batches,
        loss_of: LossOfBatch,
        optimizer: CombinedOptimizer,
        config: CandidateConfig,
        checkpoints: Checkpoints | None,
        state: State,
        average: Average | None = None,
        stopping: Stopping | None = None,
        until: int | None = None,
    ) -> None:
        self._batches, self._loss_of, self._optimizer = batches, loss_of, optimizer
        self._config, self._checkpoints, self._state = config, checkpoints, state
        self._average, self._schedule = average, Schedule(optimizer, config.schedule, config.passes * batches.steps)
        self._stopping, self._until = stopping, config.passes if until is None else min(until, config.passes)
        self._dense = list(dense_parameters(loss_of.model).values())
        self.clock = Clock()

    def run(self, progress: Progress, bar: tqdm) -> Progress:
        """Train from ``progress`` to the end of the last pass, or until it is stopped.

        Raises:
            DataError: if a loss is not finite.
        """
        while not self._is_done(progress):
            progress = self._epoch(progress, bar)
            bar.set_postfix(epoch=progress.epoch, loss=f"{progress.losses[-1]:.4f}")
            if self._stopping is not None:
                progress = self._stopping.judged(progress, bar)
            if not self._is_done(progress):
                self._save(progress)
        return progress

    def _is_done(self, progress: Progress) -> bool:
        stopped = self._stopping is not None and self._stopping.is_over(progress)
        return progress.epoch >= self._until or stopped

    def _epoch(self, progress: Progress, bar: tqdm) -> Progress:
        """Train the rest of an epoch and return where the next one begins."""
        total = torch.zeros(1, dtype=torch.float64, device=self._loss_of.device)
        started, every = time.perf_counter(), self._config.checkpoints.every_steps
        source = self._batches.epoch(progress.epoch, progress.step)
        ready = Prefetched(source, self._prepared, self._config.distributed.prefetch)
        try:
            for step, (batch, inputs) in enumerate(ready, start=progress.step):
                total += self._step(progress.epoch, step, batch, inputs)
                bar.update()
                if every and (step + 1) % every == 0 and step + 1 < self._batches.steps:
                    done = _finite(progress.total + _mean_over_ranks(total), progress.epoch)
                    self._save(progress.model_copy(update={"step": step + 1, "total": done}))
        finally:
            ready.close()
        self._count(time.perf_counter() - started, ready.waited, self._batches.steps - progress.step)
        mean = _finite((progress.total + _mean_over_ranks(total)) / self._batches.steps, progress.epoch)
        return Progress(epoch=progress.epoch + 1, losses=(*progress.losses, mean), validation=progress.validation)

    def _step(self, epoch: int, step: int, batch: Batch, inputs: ModelInputs) -> torch.Tensor:
        """Train one step and return its loss."""
        number = epoch * self._batches.steps + step
        torch.manual_seed(self._seed(epoch, step))
        self._schedule.set(number)
        self._optimizer.zero_grad()
        loss = self._loss_of(batch, inputs)
        loss.backward()
        if self._config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._dense, self._config.optimizer.clip_norm)
        self._optimizer.step()
        self._loss_of.temperature.keep_in_bounds()
        if self._average is not None:
            self._average.update(number)
        return loss.detach()

    def _prepared(self, batch: Batch) -> tuple[Batch, ModelInputs]:
        return batch, self._loss_of.prepare(batch)

    def _seed(self, epoch: int, step: int) -> int:
        """Return the seed of the layers' random draws in a step, so that a resumed run draws the same."""
        numbers = [self._config.training.seed, epoch, step, dist.get_rank()]
        return int(np.random.SeedSequence(numbers).generate_state(1)[0])

    def _count(self, seconds: float, waited: float, steps: int) -> None:
        self.clock.seconds += seconds
        self.clock.waited += waited
        self.clock.steps += steps

    def _save(self, progress: Progress) -> None:
        if self._checkpoints is not None:
            number = progress.epoch * self._batches.steps + progress.step
            self._checkpoints.save(number, progress, self._state)


def _mean_over_ranks(total: torch.Tensor) -> float:
    whole = total.clone()
    dist.all_reduce(whole)
    mean: float = whole.item() / dist.get_world_size()
    return mean


def _finite(loss: float, epoch: int) -> float:
    """Return the loss; refuse to go on, or to keep a checkpoint, once it is NaN or infinite."""
    if not np.isfinite(loss):
        raise DataError(f"candidate training: the loss of epoch {epoch + 1} is {loss}; lower the learning rates")
    return loss
