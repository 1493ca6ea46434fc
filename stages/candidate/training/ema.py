"""An exponential moving average of the weights, which is exported in place of the last ones.

Averaging the weights of late steps does for the towers what a smaller learning rate would, without the wait (Polyak
and Juditsky, 1992; Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018). Each rank averages what it holds,
however tables are sharded; the averages are part of a checkpoint.
"""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.candidate.config import AverageConfig
from stages.candidate.distributed.training_state import State, local_parts

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
        self._weights = [part for value in chosen.values() for part, _ in local_parts(value)]
        self._averages = [part for value in self.state.values() for part, _ in local_parts(value)]

    def restart(self) -> None:
        """Set the averages to the present weights."""
        _copy(self._weights, self._averages)

    def update(self, step: int) -> None:
        """Add the weights after a step, counted from 0, to the averages."""
        get_ema_multi_avg_fn(decay_at(step, self._decay))(self._averages, self._weights, step)

    def publish(self) -> None:
        """Overwrite the weights with their averages."""
        _copy(self._averages, self._weights)


def make_average(weights: State, config: AverageConfig) -> Average | None:
    """Return the averages that are configured, if any."""
    return None if config.weights == "none" else Average(weights, config)


def _copy(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
