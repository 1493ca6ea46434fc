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
    weight = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    first = -(2 / 3 * math.log(0.2 / 0.8) + 1 / 3 * math.log(0.1 / 0.8))
    second = -math.log(0.4 / 0.8)  # the padded third row does not count, nor does the third request
    found = listwise_loss(torch.tensor(scores).log(), torch.tensor(relevance), torch.tensor(weight))
    assert found.item() == pytest.approx((first + second) / 2)


def test_a_weight_stands_for_so_many_rows() -> None:
    """A row of weight 3 counts as three rows alike: in both losses, and in their gradients."""
    logits, labels = torch.tensor([[0.3], [-1.0], [0.8]]), torch.tensor([[1.0], [0.0], [0.0]])
    copies = torch.tensor([0, 1, 1, 1, 2, 2])
    weight = torch.tensor([1.0, 3.0, 2.0])
    found, expected = (
        [
            pointwise_loss(own, labels[rows], own_weight, 1),
            listwise_loss(own.T, labels[rows].T, own_weight[None]),
        ]
        for rows, own_weight in ((torch.arange(3), weight), (copies, torch.ones(6)))
        for own in [logits[rows]]
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("probability", [[0.5] * 200, [0.9] * 40 + [0.4] * 160])
def test_the_losses_of_samples_are_near_those_of_the_whole_list(probability: list[float]) -> None:
    """Uniform samples, and samples by rank band; without the weights the losses are far away."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, generator=generator, dtype=torch.float64) - 3.0
    labels = torch.zeros(200, dtype=torch.float64)
    labels[[3, 150]] = 1.0
    chance = torch.tensor(probability, dtype=torch.float64)
    ones = torch.ones(200, dtype=torch.float64)

    def losses(rows: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
        own, wanted = scores[rows], labels[rows]
        pointwise = pointwise_loss(own[:, None], wanted[:, None], weight, 1)
        return np.array([pointwise.item(), listwise_loss(own[None], wanted[None], weight[None]).item()])

    weighted, plain = [], []
    for _ in range(300):
        kept = ((torch.rand(200, generator=generator) < chance) | (labels > 0)).nonzero().squeeze(1)
        weight = torch.where(labels[kept] > 0, ones[kept], 1.0 / chance[kept])
        weighted.append(losses(kept, weight))
        plain.append(losses(kept, ones[kept]))
    whole = losses(torch.arange(200), ones)
    np.testing.assert_allclose(np.mean(weighted, axis=0), whole, rtol=0.01)
    assert (np.mean(plain, axis=0) < 0.95 * whole).all()


def test_padding_leaves_finite_gradients() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    listwise_loss(logits, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])).backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), [[-0.5, 0.5, 0.0]])


def test_no_relevant_row_at_all_costs_nothing() -> None:
    assert listwise_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)).item() == 0.0


def test_the_listwise_loss_is_smallest_where_the_probabilities_are_right() -> None:
    relevance, weight = torch.tensor([[3.0, 1.0]]), torch.ones(1, 2)
    right = listwise_loss(torch.tensor([[0.6, 0.2]]).log(), relevance, weight)
    for score in ([0.5, 0.2], [0.6, 0.3], [0.9, 0.01]):
        assert listwise_loss(torch.tensor([score]).log(), relevance, weight) > right


def test_pointwise_loss_is_the_weighted_bce_of_the_rows() -> None:
    logits = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]])
    labels = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    weight = np.array([1.0, 2.5, 1.0])
    rates = sigmoid(logits)
    losses = -(labels * np.log(rates) + (1 - labels) * np.log(1 - rates)).mean(axis=1)
    found = pointwise_loss(torch.tensor(logits), torch.tensor(labels), torch.tensor(weight), n_requests=2)
    assert found.item() == pytest.approx(losses @ weight / 2)


def test_platt_scaling_finds_the_line_that_made_the_labels() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(5.0, 3.0, size=40_000)
    labels = (generator.random(40_000) < sigmoid(0.7 * scores - 6.0)).astype(float)
    slope, bias = platt_scaling(scores, labels, np.ones(len(scores)))
    assert slope == pytest.approx(0.7, abs=0.03)
    assert bias == pytest.approx(-6.0, abs=0.25)


def test_platt_scaling_of_a_weighted_sample_is_that_of_the_whole_set() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=60_000)
    labels = (generator.random(len(scores)) < sigmoid(1.3 * scores - 3.0)).astype(float)
    probability = np.where(scores > 0.5, 0.6, 0.2)
    kept = (labels > 0) | (generator.random(len(scores)) < probability)
    weight = np.where(labels > 0, 1.0, 1.0 / probability)[kept]
    whole = platt_scaling(scores, labels, np.ones(len(scores)))
    assert platt_scaling(scores[kept], labels[kept], weight) == pytest.approx(whole, abs=0.03)
    assert abs(platt_scaling(scores[kept], labels[kept], np.ones(kept.sum()))[1] - whole[1]) > 0.5


@given(st.lists(st.tuples(st.floats(-20, 20), st.sampled_from([0.0, 1.0]), st.integers(1, 4)), min_size=1, max_size=20))
def test_platt_scaling_takes_a_weight_for_so_many_rows(rows: list[tuple[float, float, int]]) -> None:
    scores, labels, weight = np.array(rows, float).T
    copies = np.repeat(np.arange(len(rows)), weight.astype(int))
    expected = platt_scaling(scores[copies], labels[copies], np.ones(len(copies)))
    assert platt_scaling(scores, labels, weight) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_platt_scaling_never_turns_the_order_around() -> None:
    slope, bias = platt_scaling(np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4))
    assert slope == 0.01
    assert bias == pytest.approx(-0.015, abs=0.1)


@given(st.lists(st.tuples(st.floats(-20, 20), st.sampled_from([0.0, 1.0])), min_size=1, max_size=30))
def test_platt_scaling_is_finite_and_right_on_average(rows: list[tuple[float, float]]) -> None:
    scores, labels = np.array(rows).T
    slope, bias = platt_scaling(scores, labels, np.ones(len(scores)))
    assert math.isfinite(slope) and math.isfinite(bias) and slope > 0
    if slope > 0.0101:  # the slope is free: the first-order condition of the bias holds
        high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / (len(labels) - labels.sum() + 2)
        assert sigmoid(slope * scores + bias).mean() == pytest.approx(np.where(labels > 0, high, low).mean(), abs=1e-3)
