"""Platt scaling: the logit of a task as a line in the light score."""

from __future__ import annotations

import numpy as np

_STEPS = 50
_RIDGE = 1e-6
_SMALLEST_SLOPE = 1e-2


def platt_scaling(scores: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Fit ``P(label) = sigmoid(slope * score + bias)`` by Newton's method (Platt, 1999).

    Labels are smoothed as Platt proposes, so that the fit stays finite on separable or one-sided data. The slope is
    kept above zero: a light score that is unrelated to a task must not reverse its order.

    Args:
        scores: float ``[n]``.
        labels: float ``[n]`` 0/1.
        weight: float ``[n]``, how many rows of the population each row stands for.

    Returns:
        ``(slope, bias)``.
    """
    positives, total = float(weight @ labels), float(weight.sum())
    high = (positives + 1.0) / (positives + 2.0)
    low = 1.0 / (total - positives + 2.0)
    wanted = np.where(labels > 0, high, low)
    centre = float(weight @ scores) / total
    scale = max(float(np.sqrt(weight @ np.square(scores - centre) / total)), 1e-6)
    design = np.stack([(scores - centre) / scale, np.ones(len(scores))], axis=1)
    rate = float(weight @ wanted) / total
    line = np.array([0.0, np.log(rate / (1.0 - rate))])
    for _ in range(_STEPS):
        line, moved = _newton_step(design, wanted, weight, line)
        if moved < 1e-9:
            break
    slope = max(line[0] / scale, _SMALLEST_SLOPE)
    return float(slope), float(line[1] - slope * centre)


def _newton_step(
    design: np.ndarray, wanted: np.ndarray, weight: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, float]:
    """Take one step, halved until the penalised loss does not grow."""

    def loss(at: np.ndarray) -> float:
        logits = design @ at
        return float(weight @ (np.logaddexp(0.0, logits) - wanted * logits) + 0.5 * _RIDGE * at @ at)

    rates = 1.0 / (1.0 + np.exp(-np.clip(design @ line, -500.0, 500.0)))
    gradient = design.T @ (weight * (rates - wanted)) + _RIDGE * line
    hessian = (design * (weight * rates * (1.0 - rates))[:, None]).T @ design + _RIDGE * np.eye(2)
    step = np.linalg.solve(hessian, gradient)
    before = loss(line)
    while loss(line - step) > before and np.abs(step).max() > 1e-9:
        step = step / 2.0
    return line - step, float(np.abs(step).max())
