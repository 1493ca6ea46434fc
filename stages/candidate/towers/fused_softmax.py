"""The sampled softmax without its B x C matrix: it is computed in blocks of rows, together with the gradients.

``losses.sampled_softmax`` defines the result, and the tests compare with it. There the matrix of logits, its
mask and its softmax pass through memory some ten times a step and stay there for the backward pass. Here a
block of rows that fits into the processor's cache is turned at once into its share of the loss and of both
gradients, and then dropped. (Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024, do the
same for vocabularies.) Masked candidates are found as pairs, of which there are few.

Shapes: B queries, b of a block, C candidates, D dimensions, L history length, N items, p masked pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from stages.candidate.towers.losses import MASKED

_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits of a block: 4 MB on a CPU; enough to keep a GPU busy."""
_LEAST_SHARE = 1e-30
"""Below this share, a positive's loss is computed from the logits, since the share may underflow in float32."""


@dataclass(frozen=True)
class Targets:
    """Where each query's positive is, and which candidates are no negatives of it.

    Attributes:
        place: int64 ``[B]``, place of each query's positive among the candidates.
        rows, columns: int64 ``[p]``, pairs of a query, in ascending order, and a candidate that is masked for it. A
            pair with the query's own positive has no effect.
    """

    place: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def block(self, start: int, stop: int) -> Targets:
        """Return the targets of the queries from ``start`` to ``stop``."""
        first, last = (int(torch.searchsorted(self.rows, border)) for border in (start, stop))
        return Targets(self.place[start:stop], self.rows[first:last] - start, self.columns[first:last])

    def only(self, chosen_b: torch.Tensor) -> Targets:
        """Return the targets of some queries.

        Args:
            chosen_b: int64, ascending.
        """
        number_B = torch.full_like(self.place, -1)
        number_B[chosen_b] = torch.arange(len(chosen_b), device=chosen_b.device)
        row_p = number_B[self.rows]
        return Targets(self.place[chosen_b], row_p[row_p >= 0], self.columns[row_p >= 0])


class TargetFinder:
    """Finds the targets of batches without a search; keeps scratch memory of the catalogue's size for that.

    Args:
        n_items: N; items are below it, or N itself, which is padding.
        device: of the batches.
    """

    def __init__(self, n_items: int, device: torch.device) -> None:
        self._place_N = torch.full((n_items + 1,), -1, dtype=torch.int32, device=device)

    def __call__(self, items_C: torch.Tensor, place_B: torch.Tensor, history_BL: torch.Tensor | None = None) -> Targets:
        """Return the targets of queries; other copies of a query's positive and the items of its history are masked.

        Args:
            items_C: int64, the candidates' items.
            place_B: int64, place of each query's positive among the candidates.
            history_BL: int64, items that are no negatives of each query.

        Raises:
            IndexError: if an item is beyond N.
        """
        wanted_BL = items_C[place_B, None]
        if history_BL is not None:
            wanted_BL = torch.cat([wanted_BL, history_BL], dim=1)
        return Targets(place_B, *self._occurrences(items_C, wanted_BL))

    def _occurrences(self, items_C: torch.Tensor, wanted_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows and columns, int64 ``[p]``, of every candidate whose item is in the row's list."""
        here_C = torch.arange(len(items_C), dtype=torch.int32, device=items_C.device)
        self._place_N.index_copy_(0, items_C, here_C)
        copy_C = self._place_N.index_select(0, items_C)  # any one copy represents all copies of an item
        place_w = self._place_N.index_select(0, wanted_BL.view(-1))
        self._place_N.index_fill_(0, items_C, -1)
        by_item_C, counts_C = copy_C.argsort(stable=True), copy_C.bincount(minlength=len(copy_C))
        starts_C = counts_C.cumsum(0) - counts_C
        found_p = (place_w >= 0).nonzero()[:, 0]
        item_p = place_w[found_p]
        counts_p = counts_C[item_p]
        first_p = starts_C[item_p] - (counts_p.cumsum(0) - counts_p)
        total = int(counts_p.sum())
        position = torch.arange(total, device=items_C.device) + first_p.repeat_interleave(counts_p, output_size=total)
        row_p = found_p // wanted_BL.shape[1]
        return row_p.repeat_interleave(counts_p, output_size=total), by_item_C[position]


def fused_sampled_softmax(
    query_BD: torch.Tensor,
    candidate_CD: torch.Tensor,
    targets: Targets,
    temperature: float,
    log_q_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what ``losses.sampled_softmax`` and ``losses.full_softmax`` return, in less time and memory.

    Args:
        query_BD: float32 queries.
        candidate_CD: float32 candidates.
        targets: of the queries.
        temperature: divides the dot products.
        log_q_C: subtracted from the logits of negatives; None leaves them as they are.
    """
    loss: torch.Tensor = _Fused.apply(query_BD, candidate_CD, targets, temperature, log_q_C)
    return loss


class _Fused(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        query_BD: torch.Tensor,
        candidate_CD: torch.Tensor,
        targets: Targets,
        temperature: float,
        log_q_C: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, on_cpu = len(query_BD), query_BD.device.type == "cpu"
        bias_C = query_BD.new_zeros(len(candidate_CD)) if log_q_C is None else -log_q_C
        gradient_BD, gradient_CD = torch.empty_like(query_BD), torch.zeros_like(candidate_CD)
        total = torch.zeros((), dtype=torch.float64, device=query_BD.device)
        block = min(batch, max(1, _ELEMENTS["cpu" if on_cpu else "cuda"] // len(candidate_CD)))
        buffer_bC = query_BD.new_empty(block, len(candidate_CD))
        for start in range(0, batch, block):
            stop = min(batch, start + block)
            query_bD, own = query_BD[start:stop], targets.block(start, stop)
            logits_bC = _logits(query_bD, candidate_CD, own, temperature, bias_C, buffer_bC[: stop - start])
            # A CPU takes a row at a time, so that the result can overwrite the logits.
            share_bC = torch.softmax(logits_bC, dim=1, out=logits_bC if on_cpu else None)
            here_b = torch.arange(stop - start, device=query_BD.device)
            share_b = share_bC[here_b, own.place]
            lost_b = (share_b < _LEAST_SHARE).nonzero()[:, 0]
            if len(lost_b):
                again = own.only(lost_b)
                total += _exact(_logits(query_bD[lost_b], candidate_CD, again, temperature, bias_C), again)
                share_b[lost_b] = 1.0
            total -= share_b.log().sum()
            share_bC[here_b, own.place] -= 1.0
            torch.mm(share_bC, candidate_CD, out=gradient_BD[start:stop])
            gradient_CD.addmm_(share_bC.T, query_bD)
        scale = 1.0 / (temperature * batch)
        ctx.save_for_backward(gradient_BD.mul_(scale), gradient_CD.mul_(scale))
        return (total / batch).to(query_BD.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_BD, gradient_CD = ctx.saved_tensors
        return gradient * gradient_BD, gradient * gradient_CD, None, None, None


def _logits(
    query_bD: torch.Tensor,
    candidate_CD: torch.Tensor,
    targets: Targets,
    temperature: float,
    bias_C: torch.Tensor,
    out_bC: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return logits ``[b, C]``, masked; those of the positives are without bias."""
    logits_bC = torch.addmm(bias_C, query_bD, candidate_CD.T, alpha=1.0 / temperature, out=out_bC)
    here_b = torch.arange(len(query_bD), device=query_bD.device)
    positive_b = logits_bC[here_b, targets.place] - bias_C[targets.place]
    logits_bC[targets.rows, targets.columns] = MASKED
    logits_bC[here_b, targets.place] = positive_b
    return logits_bC


def _exact(logits_bC: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Return the sum of the queries' losses, however small their positives' shares are."""
    positive_b = logits_bC[torch.arange(len(logits_bC), device=logits_bC.device), targets.place]
    return (logits_bC.logsumexp(dim=1) - positive_b).sum()
