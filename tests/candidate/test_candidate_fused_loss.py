"""The fused loss against the readable one: value and both gradients."""

import pytest
import torch

from stages.candidate.towers import fused_softmax as fused_loss
from stages.candidate.towers.fused_softmax import TargetFinder, fused_sampled_softmax
from stages.candidate.towers.losses import not_negative, sampled_softmax

CPU = torch.device("cpu")


def world(seed, batch=37, candidates=61, items=19, length=6):
    generator = torch.Generator().manual_seed(seed)
    items_C = torch.randint(0, items, (candidates,), generator=generator)
    history_BL = torch.randint(0, items + 5, (batch, length), generator=generator)  # some are padding or not there
    vectors = [torch.nn.functional.normalize(torch.randn(n, 8, generator=generator)) for n in (batch, candidates)]
    log_q_C = torch.randn(candidates, generator=generator)
    return vectors, items_C, history_BL, log_q_C


@pytest.mark.parametrize("elements", [1, 61 * 10, 1 << 20])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_it_is_the_sampled_softmax(monkeypatch, elements, corrected, masks):
    monkeypatch.setitem(fused_loss._ELEMENTS, "cpu", elements)
    vectors, items_C, history_BL, log_q_C = world(1)
    found = []
    log_q_C, history_BL = log_q_C if corrected else None, history_BL if masks else None
    masked_BC = not_negative(items_C, len(vectors[0]), history_BL)
    for fused in (False, True):
        query, candidate = (value.clone().requires_grad_() for value in vectors)
        if fused:
            targets = TargetFinder(24, CPU)(items_C, torch.arange(len(query)), history_BL)
            loss = fused_sampled_softmax(query, candidate, targets, 0.1, log_q_C)
        else:
            loss = sampled_softmax(query, candidate, masked_BC, 0.1, log_q_C)
        (3.0 * loss).backward()
        found.append((loss.detach(), query.grad, candidate.grad))
    for wanted, given in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted, atol=2e-6, rtol=2e-5)


def mask_of(targets, n_candidates=61):
    mask = torch.zeros(len(targets.place), n_candidates, dtype=torch.bool)
    mask[targets.rows, targets.columns] = True
    mask[torch.arange(len(mask)), targets.place] = False
    return mask


def test_pairs_are_the_mask():
    _, items_C, history_BL, _ = world(2)
    wanted = not_negative(items_C, 37, history_BL)
    targets = TargetFinder(24, CPU)(items_C, torch.arange(37), history_BL)
    torch.testing.assert_close(mask_of(targets), wanted)
    torch.testing.assert_close(mask_of(targets.block(5, 20)), wanted[5:20])
    some = torch.tensor([0, 3, 36])
    torch.testing.assert_close(mask_of(targets.only(some)), wanted[some])
    own = TargetFinder(24, CPU)(items_C.unique(), torch.arange(3))
    assert own.rows.tolist() == [0, 1, 2]  # the positives themselves


def test_large_logits_keep_their_loss():
    vectors, items_C, history_BL, log_q_C = world(3)
    found = []
    masked_BC = not_negative(items_C, len(vectors[0]), history_BL)
    targets = TargetFinder(24, CPU)(items_C, torch.arange(len(vectors[0])), history_BL)
    for fused in (False, True):
        query, candidate = (vectors[0] * 100).requires_grad_(), (vectors[1] * 100).requires_grad_()
        if fused:
            loss = fused_sampled_softmax(query, candidate, targets, 0.01, log_q_C)
        else:
            loss = sampled_softmax(query, candidate, masked_BC, 0.01, log_q_C)
        loss.backward()
        found.append((loss.detach(), query.grad, candidate.grad))
    assert found[0][0] > 1e5  # far below what float32 has a share for
    for wanted, given in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-2, rtol=1e-4)


def test_what_is_not_a_number_stays_one():
    vectors, items_C, history_BL, log_q_C = world(4)
    vectors[0][5, 3] = torch.nan
    loss = fused_sampled_softmax(*vectors, TargetFinder(24, CPU)(items_C, torch.arange(37), history_BL), 0.1, log_q_C)
    assert torch.isnan(loss)


def test_nothing_of_a_batch_is_left_for_the_next():
    find = TargetFinder(24, CPU)
    for seed in (5, 6, 7):
        _, items_C, history_BL, _ = world(seed)
        torch.testing.assert_close(
            mask_of(find(items_C, torch.arange(37), history_BL)), not_negative(items_C, 37, history_BL)
        )
