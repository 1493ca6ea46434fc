"""The temperature of the losses: a number, one that follows from the number of items, or a learned one.

Shapes: D dimensions, N items.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from stages.candidate.config import CandidateConfig

LOG_TEMPERATURE = "log_temperature"
"""Name of the learned parameter in the model."""


def automatic_temperature(n_items: int) -> float:
    """Return the temperature for unit vectors of ``n_items`` items: ``REACH / log N``.

    A softmax over N items gives its positive half of the mass if the positive's logit is the log of the sum of the
    others. N unit vectors of random directions have cosines near 0, so that this log is about log N, and the positive
    needs a cosine of T log N. With many items a temperature that suits few would need a cosine that no vector has, and
    the softmax stays soft whatever is learnt. T = c / log N keeps the cosine that is needed at c.
    """
    return REACH / math.log(max(n_items, _FEWEST))


REACH = 1.0
"""c, the cosine at which a positive has half of the mass."""
_FEWEST = 8


def start_of(config: CandidateConfig, n_items: int) -> float:
    """Return the configured temperature, or the one that ``auto`` means.

    Args:
        config: of the model.
        n_items: N, items that may be negatives.

    With dot products the vectors have any length, so that ``auto`` is 1.
    """
    if config.loss.temperature != "auto":
        return config.loss.temperature
    return automatic_temperature(n_items) if config.model.normalisation == "cosine" else 1.0


class Temperature:
    """The temperature of a training.

    Args:
        config: of the training.
        n_items: N, items that may be negatives.
        model: its parameter ``log_temperature`` is used where the temperature is learned.
    """

    def __init__(self, config: CandidateConfig, n_items: int, model: nn.Module) -> None:
        self._loss, self._fixed = config.loss, start_of(config, n_items)
        self._log: nn.Parameter | None = dict(model.named_parameters()).get(LOG_TEMPERATURE)

    @property
    def value(self) -> float:
        """Return the present temperature."""
        return self._fixed if self._log is None else math.exp(float(self._log.detach()))

    def scaled(self, query: torch.Tensor) -> torch.Tensor:
        """Return queries divided by a learned temperature, differentiable; by nothing where it is not learned.

        All losses read products of queries and candidates only, divided by the temperature.
        """
        return query if self._log is None else query * torch.exp(-self._log)

    @property
    def rest(self) -> float:
        """Return what is left for the loss to divide by after ``scaled``."""
        return self._fixed if self._log is None else 1.0

    def keep_in_bounds(self) -> None:
        """Move a learned temperature into its bounds; called after each step."""
        if self._log is not None:
            low, high = self._loss.temperature_bounds
            with torch.no_grad():
                self._log.clamp_(math.log(low), math.log(high))


def first_log_temperature(config: CandidateConfig, n_items: int) -> float | None:
    """Return the value that learning starts from, within the bounds; None where nothing is learned."""
    if not config.loss.learned_temperature:
        return None
    low, high = config.loss.temperature_bounds
    return math.log(min(max(start_of(config, n_items), low), high))
