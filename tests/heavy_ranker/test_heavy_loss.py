from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.heavy_ranker.loss import listwise_loss, log_score, pointwise_loss
from stages.heavy_ranker.platt import platt_scaling


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def test_log_score_is_the_log_of_the_served_score() -> None:
    logits = np.array([[[0.3, -2.0], [-1.0, 4.0]]])
    weights = np.array([1.0, 0.25])
    expected = np.log(sigmoid(logits) @ weights)
    np.testing.assert_allclose(log_score(torch.tensor(logits), torch.tensor(weights).log()), expected)


def test_a_task_of_weight_zero_changes_neither_score_nor_gradient() -> None:
    logits = torch.tensor([[[0.3, -2.0]]], requires_grad=True)
    score = log_score(logits, torch.tensor([1.0, 0.0]).log())
    score.sum().backward()
    assert score.item() == pytest.approx(math.log(sigmoid(np.array(0.3))))
    assert logits.grad is not None
    assert logits.grad[0, 0, 1] == 0.0
    assert torch.isfinite(logits.grad).all()


def test_listwise_loss_is_the_cross_entropy_of_shares() -> None:
    scores = np.array([[0.5, 0.2, 0.1], [0.4, 0.4, 9.0], [0.3, 0.2, 0.1]])
    relevance = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    first = -(2 / 3 * math.log(0.2 / 0.8) + 1 / 3 * math.log(0.1 / 0.8))
    second = -math.log(0.4 / 0.8)  # the padded third row does not count, nor does the third request
    found = listwise_loss(torch.tensor(scores).log(), torch.tensor(relevance), torch.tensor(mask))
    assert found.item() == pytest.approx((first + second) / 2)


def test_padding_leaves_finite_gradients() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    listwise_loss(logits, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])).backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), [[-0.5, 0.5, 0.0]])


def test_no_relevant_row_at_all_costs_nothing() -> None:
    assert listwise_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)).item() == 0.0


def test_the_listwise_loss_is_smallest_where_the_probabilities_are_right() -> None:
    relevance, mask = torch.tensor([[3.0, 1.0]]), torch.ones(1, 2)
    right = listwise_loss(torch.tensor([[0.6, 0.2]]).log(), relevance, mask)
    for score in ([0.5, 0.2], [0.6, 0.3], [0.9, 0.01]):
        assert listwise_loss(torch.tensor([score]).log(), relevance, mask) > right


def test_pointwise_loss_is_bce_over_rows_that_exist() -> None:
    logits = np.array([[[0.0, 1.0], [2.0, -1.0]], [[0.5, 0.5], [50.0, 50.0]]])
    labels = np.array([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    mask = np.array([[1.0, 1.0], [1.0, 0.0]])
    rates = sigmoid(logits[mask > 0])
    wanted = labels[mask > 0]
    expected = -(wanted * np.log(rates) + (1 - wanted) * np.log(1 - rates)).mean(axis=1).sum() / 2
    found = pointwise_loss(torch.tensor(logits), torch.tensor(labels), torch.tensor(mask))
    assert found.item() == pytest.approx(expected)


def test_platt_scaling_finds_the_line_that_made_the_labels() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(5.0, 3.0, size=40_000)
    labels = (generator.random(40_000) < sigmoid(0.7 * scores - 6.0)).astype(float)
    slope, bias = platt_scaling(scores, labels)
    assert slope == pytest.approx(0.7, abs=0.03)
    assert bias == pytest.approx(-6.0, abs=0.25)


def test_platt_scaling_never_turns_the_order_around() -> None:
    slope, bias = platt_scaling(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert slope == 0.01
    assert bias == pytest.approx(-0.015, abs=0.1)


@given(st.lists(st.tuples(st.floats(-20, 20), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30))
def test_platt_scaling_is_finite_and_right_on_average(rows: list[tuple[float, float]]) -> None:
    scores, labels = np.array(rows).T
    slope, bias = platt_scaling(scores, labels)
    assert math.isfinite(slope) and math.isfinite(bias) and slope > 0
    if slope > 0.0101:  # the slope is free: the first-order condition of the bias holds
        high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / (len(labels) - labels.sum() + 2)
        assert sigmoid(slope * scores + bias).mean() == pytest.approx(np.where(labels > 0, high, low).mean(), abs=1e-3)
