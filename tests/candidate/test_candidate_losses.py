from typing import get_args

import numpy as np
import pytest
import torch

from stages.candidate.config import CandidateConfig, LossConfig, ModelConfig, TrainingConfig
from stages.candidate.towers.encoders import ENCODERS
from stages.candidate.towers.losses import (
    SAMPLED_LOSSES,
    Negatives,
    bpr,
    candidate_scores,
    gbce_exponent,
    generalised_bce,
    mixture_log_q,
    not_negative,
    sampled_softmax,
)
from stages.candidate.training.batches import BATCHES

NAMED = ((LossConfig, "kind"), (ModelConfig, "encoder"), (TrainingConfig, "mode"))
TRUTH = torch.tensor([0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02])


def softmax_loss(scores, items, batch, log_q=None, in_batch=True):
    """The loss where every query is the same and an item's score is ``scores[item]``."""
    masked = not_negative(items, batch, None, in_batch)
    return sampled_softmax(torch.ones(batch, 1), scores[items][:, None], masked, 1.0, log_q)


def test_correction_relieves_popular_negatives_and_leaves_the_positive():
    """With equal scores a negative that is expected 0.9 times counts 1 / 0.9, the positive counts 1."""
    log_q = mixture_log_q(torch.tensor([0.9, 0.1]), torch.zeros(2))
    loss = softmax_loss(torch.zeros(2), torch.tensor([0, 1]), 2, log_q)
    against_popular, against_rare = np.log(1 + 1 / 0.9), np.log(1 + 1 / 0.1)
    assert loss.item() == pytest.approx((against_popular + against_rare) / 2, rel=1e-5)


def test_expected_counts_mix_both_samplers():
    log_q = mixture_log_q(16 * torch.tensor([6, 2, 0, 0]) / 8, torch.tensor([1.0, 1, 0, 1]))
    np.testing.assert_allclose(log_q.exp().numpy(), [13, 5, 1e-12, 1], rtol=1e-4)


def test_the_correction_estimates_the_full_sum():
    """The sum of exp(-log q) over many draws is that of ones over the eight items."""
    rng = np.random.default_rng(0)
    batch, n_shared, share = 9, 4, TRUTH.numpy() / TRUTH.numpy().sum()
    share[-1], shared = 0.0, np.full(8, n_shared / 7)  # one item is never in a batch, another never shared
    share, shared[0] = share / share.sum(), 0.0
    total = np.zeros(8)
    for _ in range(6000):
        drawn = np.concatenate([rng.choice(8, batch - 1, p=share), 1 + rng.choice(7, n_shared, replace=False)])
        items = torch.from_numpy(np.concatenate([[0], drawn]))  # the first is the query's positive
        expected = torch.tensor((batch - 1) * share)[items], torch.tensor(shared)[items]
        np.add.at(total, drawn, (-mixture_log_q(*expected)[1:]).exp().numpy())
    np.testing.assert_allclose(total / 6000, 1.0, rtol=0.06)


def draws(kind, rng):
    """Shared negatives and their expected counts: none, two uniform ones, or four by popularity^0.75."""
    if kind == "none":
        return torch.zeros(0, dtype=torch.long), torch.zeros(8)
    if kind == "uniform":
        return torch.randperm(8)[:2], torch.full((8,), 0.25)
    power = TRUTH**0.75 / (TRUTH**0.75).sum()
    return torch.multinomial(power, 4, replacement=True), 4 * power


@pytest.mark.parametrize("kind", ["none", "uniform", "popularity"])
def test_corrected_softmax_recovers_the_true_distribution(kind):
    """One query, eight items of skewed popularity: the scores' softmax must become that popularity."""
    torch.manual_seed(0)
    batch, learnt = 64, {}
    for corrected in (True, False):
        scores = torch.zeros(8, requires_grad=True)
        optimizer = torch.optim.SGD([scores], lr=1.0)
        average = torch.zeros(8)
        for step in range(600):
            shared, expected = draws(kind, None)
            items = torch.cat([torch.multinomial(TRUTH, batch, replacement=True), shared])
            log_q = mixture_log_q((batch - 1) * TRUTH[items], expected[items])
            loss = softmax_loss(scores, items, batch, log_q if corrected else None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= 300:
                average += scores.detach() / 300
        learnt[corrected] = average.softmax(0)
    assert (learnt[True] - TRUTH).abs().max() < 0.05
    assert (learnt[False] - TRUTH).abs().max() > 0.1


def learnt(loss, n_shared, rate=1.0):
    """Return the scores of eight items, averaged over late steps, that a loss with a few shared negatives learns."""
    torch.manual_seed(0)
    scores, batch, steps = torch.zeros(8, requires_grad=True), 64, 600
    optimizer, average = torch.optim.SGD([scores], lr=rate), torch.zeros(8)
    for step in range(steps):
        items = torch.cat([torch.multinomial(TRUTH, batch, replacement=True), torch.randperm(8)[:n_shared]])
        log_q = mixture_log_q(torch.zeros(len(items)), torch.full((len(items),), n_shared / 8))
        masked = not_negative(items, batch, None, in_batch=False)
        negatives = Negatives(masked, log_q, n_shared, n_shared / 7)
        value = SAMPLED_LOSSES[loss.kind](torch.ones(batch, 1), scores[items][:, None], negatives, 1.0, loss)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step >= steps // 2:
            average += scores.detach() / (steps - steps // 2)
    return average


def test_with_two_negatives_a_step_bpr_recovers_the_distribution_and_the_softmax_does_not():
    """What BPR is for: the corrected softmax's sum is estimated well only from many negatives, a pair needs one."""
    found = {kind: learnt(LossConfig(kind=kind, temperature=1.0), 2).softmax(0) for kind in ("bpr", "softmax")}
    assert (found["bpr"] - TRUTH).abs().max() < 0.05
    assert (found["softmax"] - TRUTH).abs().max() > 0.2


def test_gbce_learns_the_true_probabilities_where_plain_bce_is_over_confident():
    """What gBCE is for: two negatives of seven are seen a step, and the sigmoid of a score is its probability."""
    calibrated, plain = (
        learnt(LossConfig(kind="gbce", temperature=1.0, gbce_calibration=t), 2, rate=4.0).sigmoid() for t in (1.0, 0.0)
    )
    assert (calibrated - TRUTH).abs().max() < 0.05
    seen = 2 / 8  # of the other items a step; a positive is always seen
    torch.testing.assert_close(plain, TRUTH / (TRUTH + seen * (1 - TRUTH)), atol=0.1, rtol=0.0)
    assert plain[0] > TRUTH[0] + 0.25


def test_every_kind_of_loss_and_encoder_that_is_allowed_is_known():
    allowed = {name: set(get_args(of.model_fields[name].annotation)) for of, name in NAMED}
    assert allowed == {"kind": {*SAMPLED_LOSSES, "full_softmax"}, "encoder": {*ENCODERS}, "mode": {*BATCHES}}


@pytest.mark.parametrize("negative_sampling", ["uniform", "popularity"])
def test_with_every_item_as_a_negative_it_is_the_full_softmax(negative_sampling, small_world):
    from stages.candidate.training.negatives import SharedNegatives
    from stages.candidate.training.objective import LogQ

    _, catalogue = small_world
    config = CandidateConfig(
        negatives={"shared": 99, "in_batch": False, "sampling": negative_sampling, "mask_history": False}
    )
    shared = SharedNegatives(catalogue, config)
    positives, vectors = torch.tensor([3, 5, 3, 11]), torch.randn(12, 6, dtype=torch.float64).float()
    items = torch.cat([positives, torch.from_numpy(shared.draw(np.random.default_rng(0)))])
    queries = torch.randn(4, 6)
    log_q = LogQ(catalogue, config.negatives, torch.from_numpy(shared.expected), torch.device("cpu"))(items, 4)
    masked = not_negative(items, 4, None, in_batch=False)
    loss = sampled_softmax(queries, vectors[items], masked, 0.5, log_q)
    full = torch.nn.functional.cross_entropy(queries @ vectors.T / 0.5, positives)
    assert loss.item() == pytest.approx(full.item(), rel=1e-6)


def example(seed=0):
    """Scores, mask and corrections of three queries, and the negatives of each with their weights."""
    rng = np.random.default_rng(seed)
    scores, items = rng.uniform(-1, 1, (3, 7)), torch.tensor([4, 7, 4, 9, 7, 2, 1])
    masked = not_negative(items, 3, torch.tensor([[9, 12], [12, 12], [2, 1]]))
    log_q = rng.normal(size=7)
    negatives = []
    for row in range(3):
        columns = [c for c in range(7) if c != row and not masked[row, c]]
        weights = np.exp(-log_q[columns])
        negatives.append((columns, weights / weights.sum()))
    return scores, masked, log_q, negatives


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_bpr_equals_a_plain_loop():
    scores, masked, log_q, negatives = example()
    wanted = [
        sum(-w * np.log(sigmoid(scores[b, b] - scores[b, c])) for c, w in zip(columns, weights, strict=True))
        for b, (columns, weights) in enumerate(negatives)
    ]
    assert bpr(torch.tensor(scores), masked, torch.tensor(log_q)).item() == pytest.approx(np.mean(wanted), rel=1e-6)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_a_plain_loop_and_without_calibration_bce(calibration):
    scores, masked, _, negatives = example(2)
    beta = gbce_exponent(0.1, calibration)
    assert beta == pytest.approx({0.0: 1.0, 0.75: 0.325, 1.0: 0.1}[calibration])
    wanted = []
    for b, (columns, _) in enumerate(negatives):
        negative = [np.log(1 - sigmoid(scores[b, c])) for c in columns]
        wanted.append(-(np.log(sigmoid(scores[b, b]) ** beta) + 5 * np.mean(negative)) / 6)
    found = generalised_bce(torch.tensor(scores), masked, None, 5, beta).item()
    assert found == pytest.approx(np.mean(wanted), rel=1e-6)
    if calibration == 0.0:
        plain = []
        for b, (columns, _) in enumerate(negatives):
            logits = torch.tensor([scores[b, b], *scores[b, columns]])
            weights = torch.tensor([1.0, *[5 / len(columns)] * len(columns)], dtype=torch.float64)
            target = torch.tensor([1.0] + [0.0] * len(columns), dtype=torch.float64)
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            plain.append((weights * losses).sum().item() / 6)
        assert found == pytest.approx(np.mean(plain), rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "bpr", "gbce"])
def test_a_popular_negative_is_not_pushed_down_for_being_sampled_often(loss):
    """Item 0 is drawn nine times, item 1 once: corrected, both get the same gradient; plain, item 0 gets more."""
    gradients = {}
    for corrected in (True, False):
        scores = torch.full((3,), 0.5, requires_grad=True)
        items = torch.tensor([2, *[0] * 9, 1])
        log_q = mixture_log_q(torch.zeros(11), torch.tensor([9.0, 1.0, 1.0])[items]) if corrected else None
        masked, row = not_negative(items, 1), scores[items][None, :]
        if loss == "softmax":
            value = softmax_loss(scores, items, 1, log_q)
        elif loss == "gbce":
            value = generalised_bce(row, masked, log_q, 10, 1.0)
        else:
            value = bpr(row, masked, log_q)
        value.backward()
        gradients[corrected] = scores.grad
    popular, rare, positive = gradients[True].tolist()
    assert popular == pytest.approx(rare, rel=1e-4)
    assert popular > 0 > positive
    assert gradients[False][0] > 5 * gradients[False][1]


def test_other_copies_of_the_positive_and_history_are_no_negatives():
    items = torch.tensor([4, 7, 4, 9, 7])
    history = torch.tensor([[9, 1], [2, 2], [7, 4]])
    plain = not_negative(items, 3, None)
    assert plain.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    masked = not_negative(items, 3, history)
    assert masked.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 1]]
    shared = not_negative(items, 3, None, in_batch=False)
    assert shared.int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]]
    grouped = not_negative(items, 3, None, group_B=torch.tensor([0, 0, 1]))
    assert grouped.int().tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("loss", [bpr, lambda *a: generalised_bce(*a, None, 3, 0.5)])
def test_masked_candidates_get_no_gradient(loss):
    items = torch.tensor([1, 2, 1])
    scores = torch.full((1, 3), 0.9, requires_grad=True)
    loss(scores, not_negative(items, 1)).backward()
    assert scores.grad[0, 2] == 0
    assert scores.grad[0, 1] > 0


def test_masked_candidates_get_no_gradient_from_the_softmax():
    items = torch.tensor([1, 2, 1])
    candidates = torch.randn(3, 4, requires_grad=True)
    sampled_softmax(torch.randn(1, 4), candidates, not_negative(items, 1), 0.5).backward()
    assert candidates.grad is not None
    assert candidates.grad[2].abs().max() == 0
    assert candidates.grad[1].abs().max() > 0


def test_of_several_tastes_the_best_match_counts():
    query, candidates = torch.randn(3, 4, 5), torch.randn(6, 5)
    wanted = np.einsum("btd,cd->btc", query.numpy(), candidates.numpy()).max(axis=1)
    np.testing.assert_allclose(candidate_scores(query, candidates).numpy(), wanted, atol=1e-5)
    masked = not_negative(torch.arange(6), 3)
    loss = sampled_softmax(query, candidates, masked, 0.5)
    full = torch.nn.functional.cross_entropy(torch.tensor(wanted) / 0.5, torch.arange(3))
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)
