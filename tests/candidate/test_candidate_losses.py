import numpy as np
import pytest
import torch

from stages.candidate.losses import log_expected_count, not_negative, sampled_softmax


def test_correction_relieves_popular_negatives_and_leaves_the_positive():
    """With equal scores a negative that is expected 0.9 times counts 1 / 0.9, the positive counts 1."""
    log_q = log_expected_count(torch.tensor([90, 10]), 2, 0, torch.ones(2, dtype=torch.bool))
    loss = sampled_softmax(torch.zeros(2, 3), torch.eye(3)[:2], torch.tensor([0, 1]), 1.0, log_q)
    against_popular, against_rare = np.log(1 + 1 / 0.9), np.log(1 + 1 / 0.1)
    assert loss.item() == pytest.approx((against_popular + against_rare) / 2, rel=1e-5)


def test_expected_counts_mix_both_samplers():
    eligible = torch.tensor([True, True, False, True])
    log_q = log_expected_count(torch.tensor([6, 2, 0, 0]), 17, 3, eligible)
    np.testing.assert_allclose(log_q.exp().numpy(), [13, 5, 1e-12, 1], rtol=1e-4)


def test_expected_counts_are_those_of_the_samplers():
    rng = np.random.default_rng(0)
    frequency = np.array([50, 30, 15, 5])
    counts = np.zeros(4)
    for _ in range(4000):
        counts += np.bincount(rng.choice(4, 6, p=frequency / 100), minlength=4)
        counts[rng.choice(4, 2, replace=False)] += 1
    log_q = log_expected_count(torch.tensor(frequency), 7, 2, torch.ones(4, dtype=torch.bool))
    np.testing.assert_allclose(log_q.exp().numpy(), counts / 4000, rtol=0.03)


@pytest.mark.parametrize("n_uniform", [0, 2])
def test_corrected_softmax_recovers_the_true_distribution(n_uniform):
    """One query, eight items of skewed popularity: the scores' softmax must become that popularity."""
    torch.manual_seed(0)
    truth = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])
    batch = 64
    log_q = log_expected_count((truth * 1000).long(), batch, n_uniform, torch.ones(8, dtype=torch.bool))
    learnt = {}
    for corrected in (True, False):
        scores = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.SGD([scores], lr=1.0)
        average = torch.zeros(8)
        for step in range(600):
            positive = torch.multinomial(truth, batch, replacement=True)
            items = torch.cat([positive, torch.randperm(8)[:n_uniform]])
            loss = sampled_softmax(
                torch.ones(batch, 1), scores[items][:, None], items, 1.0, log_q[items] if corrected else None
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= 300:
                average += scores.detach() / 300
        learnt[corrected] = average.softmax(0)
    assert (learnt[True] - truth).abs().max() < 0.05
    assert (learnt[False] - truth).abs().max() > 0.1


def test_other_copies_of_the_positive_and_history_are_no_negatives():
    items = torch.tensor([4, 7, 4, 9, 7])
    history = torch.tensor([[9, 1], [2, 2], [7, 4]])
    plain = not_negative(items, 3, None)
    assert plain.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    masked = not_negative(items, 3, history)
    assert masked.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 1]]


def test_masked_candidates_get_no_gradient():
    items = torch.tensor([1, 2, 1])
    candidates = torch.randn(3, 4, requires_grad=True)
    sampled_softmax(torch.randn(1, 4), candidates, items, 0.5).backward()
    assert candidates.grad is not None
    assert candidates.grad[2].abs().max() == 0
    assert candidates.grad[1].abs().max() > 0
