"""The fused loss against the readable one: value and both gradients."""

import pytest
import torch

from stages.candidate import fused_loss
from stages.candidate.fused_loss import Occurrences, fused_sampled_softmax
from stages.candidate.losses import not_negative, sampled_softmax


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
            loss = fused_sampled_softmax(query, candidate, items_C, 0.1, log_q_C, history_BL)
        else:
            loss = sampled_softmax(query, candidate, masked_BC, 0.1, log_q_C)
        (3.0 * loss).backward()
        found.append((loss.detach(), query.grad, candidate.grad))
    for wanted, given in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted, atol=2e-6, rtol=2e-5)


def test_pairs_are_the_mask():
    _, items_C, history_BL, _ = world(2)
    wanted = torch.cat([items_C[:37, None], history_BL], dim=1)
    rows, columns = Occurrences(items_C).pairs(wanted)
    mask = torch.zeros(37, 61, dtype=torch.bool)
    mask[rows, columns] = True
    mask[torch.arange(37), torch.arange(37)] = False
    torch.testing.assert_close(mask, not_negative(items_C, 37, history_BL))
    assert Occurrences(items_C).pairs(torch.full((2, 3), 1000))[0].tolist() == []


def test_large_logits_stay_finite():
    vectors, items_C, history_BL, log_q_C = world(3)
    query = vectors[0].mul(100).requires_grad_()
    loss = fused_sampled_softmax(query, vectors[1] * 100, items_C, 0.01, log_q_C, history_BL)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()
