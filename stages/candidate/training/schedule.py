"""Learning rates over the steps: a linear warm-up, then constant or a cosine.

A rate is a function of the step alone, so a checkpoint needs no state of the schedule.
"""

from __future__ import annotations

import math

from torchrec.optim.keyed import CombinedOptimizer

from stages.candidate.config import ScheduleConfig


def rate_factor(step: int, total: int, config: ScheduleConfig) -> float:
    """Return the factor of the learning rates at a step, from 0, of ``total``.

    The cosine is that of Loshchilov and Hutter, "SGDR", 2017, without restarts: from 1 at the first step after the
    warm-up to ``final_rate`` one step after the last.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.final_rate + (1.0 - config.final_rate) * (1.0 + math.cos(math.pi * done)) / 2.0


class Schedule:
    """Sets the learning rates of an optimizer, fused or not.

    Args:
        optimizer: whose rates are the configured ones when this is made.
        config: of the schedule.
        total: steps of the whole training.
    """

    def __init__(self, optimizer: CombinedOptimizer, config: ScheduleConfig, total: int) -> None:
        self._config, self._total = config, total
        self._rates = [(group, group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Set the rates of a step; call it before ``zero_grad``, in which the fused kernels read theirs."""
        factor = rate_factor(step, self._total, self._config)
        for group, rate in self._rates:
            group["lr"] = rate * factor
