"""The sampled softmax without its B x C matrix: blocks of rows, their gradient made on the way.

``losses.sampled_softmax`` says what is computed and is what the tests compare with. There the matrix of
logits, its mask and its softmax pass through memory some ten times a step and stay there for the
backward pass. Here a block of rows that fits into the processor's cache is turned into its share of the loss
and of both gradients at once, and forgotten (Wijmans et al., "Cut Your Losses in Large-Vocabulary
Language Models", 2024, do the same for vocabularies). What is masked is found as pairs, of which there are few.

Shapes: B queries, b of a block, C candidates, D dimensions, L history length, U distinct candidates.
"""

from __future__ import annotations

from typing import Any

import torch

from stages.candidate.losses import MASKED

_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits of a block: 4 MB on a CPU; enough to keep a GPU busy."""


class Occurrences:
    """Where items stand among the candidates.

    Args:
        items_C: int64, the candidates' items.
    """

    def __init__(self, items_C: torch.Tensor) -> None:
        self._unique_U, column_C = items_C.unique(return_inverse=True)
        self._by_item_C = column_C.argsort(stable=True)
        self._counts_U = column_C.bincount(minlength=len(self._unique_U))
        self._starts_U = self._counts_U.cumsum(0) - self._counts_U

    def pairs(self, wanted_bL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and columns, int64, of every candidate whose item is in the row's list."""
        place_bL = torch.searchsorted(self._unique_U, wanted_bL.contiguous()).clamp_(max=len(self._unique_U) - 1)
        found_bL = self._unique_U[place_bL] == wanted_bL
        row_p, item_p = found_bL.nonzero()[:, 0], place_bL[found_bL]
        counts_p = self._counts_U[item_p]
        first_p = self._starts_U[item_p] - (counts_p.cumsum(0) - counts_p)
        total = int(counts_p.sum())
        position = torch.arange(total, device=row_p.device) + first_p.repeat_interleave(counts_p, output_size=total)
        return row_p.repeat_interleave(counts_p, output_size=total), self._by_item_C[position]


def fused_sampled_softmax(
    query_BD: torch.Tensor,
    candidate_CD: torch.Tensor,
    items_C: torch.Tensor,
    temperature: float,
    log_q_C: torch.Tensor | None = None,
    history_BL: torch.Tensor | None = None,
    place_B: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what ``losses.sampled_softmax`` returns, with its gradient, in less time and memory.

    With ``place_B`` it is ``losses.full_softmax``.

    Args:
        query_BD: float32 queries.
        candidate_CD: float32 candidates, the positives first, unless ``place_B`` says where they are.
        items_C: int64, the candidates' items.
        temperature: divides the dot products.
        log_q_C: subtracted from the logits of negatives; None leaves them as they are.
        history_BL: int64, items that are no negatives of each query.
        place_B: int64, where each query's positive is among the candidates; None means query b has candidate b.
    """
    if place_B is None:
        place_B = torch.arange(len(query_BD), device=query_BD.device)
    wanted_BL = items_C[place_B, None]  # other copies of the positive
    if history_BL is not None:
        wanted_BL = torch.cat([wanted_BL, history_BL], dim=1)
    loss: torch.Tensor = _Fused.apply(
        query_BD, candidate_CD, Occurrences(items_C), wanted_BL, place_B, temperature, log_q_C
    )
    return loss


class _Fused(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: torch.Tensor,
        candidate_CD: torch.Tensor,
        occurrences: Occurrences,
        wanted_BL: torch.Tensor,
        place_B: torch.Tensor,
        temperature: float,
        log_q_C: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, device = len(query_BD), query_BD.device
        bias_C = query_BD.new_zeros(len(candidate_CD)) if log_q_C is None else -log_q_C
        gradient_BD, gradient_CD = torch.empty_like(query_BD), torch.zeros_like(candidate_CD)
        total = torch.zeros((), dtype=torch.float64, device=device)
        block = max(1, _ELEMENTS.get(device.type, _ELEMENTS["cuda"]) // len(candidate_CD))
        for start in range(0, batch, block):
            rows = slice(start, min(batch, start + block))
            query_bD = query_BD[rows]
            own_b = place_B[rows]
            here_b = torch.arange(len(own_b), device=device)
            logits_bC = torch.addmm(bias_C, query_bD, candidate_CD.T, alpha=1.0 / temperature)
            positive_b = logits_bC[here_b, own_b] - bias_C[own_b]
            logits_bC[occurrences.pairs(wanted_BL[rows])] = MASKED
            logits_bC[here_b, own_b] = positive_b
            largest_b = logits_bC.amax(dim=1)
            weights_bC = logits_bC.sub_(largest_b[:, None]).exp_()
            sum_b = weights_bC.sum(dim=1)
            total += (sum_b.log() + largest_b - positive_b).sum()
            share_bC = weights_bC.div_(sum_b[:, None])
            share_bC[here_b, own_b] -= 1.0
            torch.mm(share_bC, candidate_CD, out=gradient_BD[rows])
            gradient_CD.addmm_(share_bC.T, query_bD)
        scale = 1.0 / (temperature * batch)
        ctx.save_for_backward(gradient_BD.mul_(scale), gradient_CD.mul_(scale))
        return (total / batch).to(query_BD.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_BD, gradient_CD = ctx.saved_tensors
        return gradient * gradient_BD, gradient * gradient_CD, None, None, None, None, None
