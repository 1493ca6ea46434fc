"""How much the items of a history weigh by their place. numpy only: serving reads it."""

from __future__ import annotations

import numpy as np

from stages.contracts.errors import ConfigError


def power_weights(back: np.ndarray, power: float, latest: int) -> np.ndarray:
    """Return back ** -power, float64: the weight of an item ``back`` places back, from 1; 0 beyond ``latest``.

    Raises:
        ConfigError: if a number is out of range.
    """
    if not power >= 0 or latest < 1:
        raise ConfigError(f"power = {power}, latest = {latest}: allowed are a number from 0 and a whole number from 1")
    back = np.asarray(back, dtype=np.float64)
    weights: np.ndarray = np.where(back <= latest, np.maximum(back, 1) ** -power, 0.0)
    return weights
