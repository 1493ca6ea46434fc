"""Platt scaling: the logit of a task as a line in the light score."""

from __future__ import annotations

import numpy as np

_STEPS = 50
_RIDGE = 1e-6
_SMALLEST_SLOPE = 1e-2


def platt_scaling(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit ``P(label) = sigmoid(slope * score + bias)`` by Newton's method (Platt, 1999).

    Labels are smoothed as Platt proposes, so that the fit stays finite on separable or one-sided data. The slope is
    kept above zero: a light score that is unrelated to a task must not reverse its order.

    Args:
        scores: float ``[n]``.
        labels: float ``[n]`` 0/1.

    Returns:
        ``(slope, bias)``.
    """
    positives = float(labels.sum())
    high = (positives + 1.0) / (positives + 2.0)
    low = 1.0 / (len(labels) - positives + 2.0)
    wanted = np.where(labels > 0, high, low)
    scale = max(float(scores.std()), 1e-6)
    design = np.stack([(scores - scores.mean()) / scale, np.ones(len(scores))], axis=1)
    rate = float(wanted.mean())
    weights = np.array([0.0, np.log(rate / (1.0 - rate))])
    for _ in range(_STEPS):
        weights, moved = _newton_step(design, wanted, weights)
        if moved < 1e-9:
            break
    slope = max(weights[0] / scale, _SMALLEST_SLOPE)
    return float(slope), float(weights[1] - slope * scores.mean())


def _newton_step(design: np.ndarray, wanted: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Take one step, halved until the penalised loss does not grow."""

    def loss(at: np.ndarray) -> float:
        logits = design @ at
        return float((np.logaddexp(0.0, logits) - wanted * logits).sum() + 0.5 * _RIDGE * at @ at)

    rates = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -500.0, 500.0)))
    gradient = design.T @ (rates - wanted) + _RIDGE * weights
    hessian = (design * (rates * (1.0 - rates))[:, None]).T @ design + _RIDGE * np.eye(2)
    step = np.linalg.solve(hessian, gradient)
    before = loss(weights)
    while loss(weights - step) > before and np.abs(step).max() > 1e-9:
        step = step / 2.0
    return weights - step, float(np.abs(step).max())
