"""An exponential moving average of the weights, which is exported in place of the last ones.

Averaging the weights of late steps does for the towers what a smaller learning rate would, without the wait (Polyak
and Juditsky, 1992; Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018). Each rank averages what it holds,
however tables are sharded; the averages are part of a checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.candidate.config import AverageConfig
from stages.candidate.distributed.training_state import State, copy_parts, held_parts

AVERAGE, WEIGHTS = "average/", "weights/"
_TABLES = f"{WEIGHTS}embeddings."


def decay_at(step: int, decay: float) -> float:
    """Return the weight of the old average at a step, from 0: at first less than ``decay``.

    It is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ``ExponentialMovingAverage``, so that the first
    values are forgotten as quickly as there are better ones.
    """
    return min(decay, (1 + step) / (10 + step))


class Average:
    """The averages of a training's weights.

    Args:
        weights: from ``distributed.training_state``; only names that begin with ``weights/`` are used.
        config: which weights are averaged, and the decay.

    Attributes:
        state: this rank's averages under ``average/<parameter>``.
    """

    def __init__(self, weights: State, config: AverageConfig) -> None:
        self._decay = config.decay
        chosen = {
            name: value
            for name, value in weights.items()
            if name.startswith(WEIGHTS) and (config.weights == "all" or not name.startswith(_TABLES))
        }
        self.state: State = {
            AVERAGE + name.removeprefix(WEIGHTS): copy.deepcopy(value) for name, value in chosen.items()
        }
        self._weights, self._averages = held_parts(chosen), held_parts(self.state)

    def restart(self) -> None:
        """Set the averages to the present weights."""
        copy_parts(self._weights, self._averages)

    def update(self, step: int) -> None:
        """Add the weights after a step, counted from 0, to the averages."""
        get_ema_multi_avg_fn(decay_at(step, self._decay))(self._averages, self._weights, step)

    def publish(self) -> None:
        """Overwrite the weights with their averages."""
        copy_parts(self._averages, self._weights)

    @contextmanager
    def published(self) -> Iterator[None]:
        """Exchange the weights and their averages while something reads the averages from the model."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for weight, average in zip(self._weights, self._averages, strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)


def make_average(weights: State, config: AverageConfig) -> Average | None:
    """Return the averages that are configured, if any."""
    return None if config.weights == "none" else Average(weights, config)
