"""The softmax over sampled candidates, corrected for how they were sampled.

Shapes: B queries, C candidates shared by the batch, D dimensions, L history length, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

MASKED = -1e9
"""Logit of a candidate that is no negative: finite, so that no gradient becomes NaN."""


def log_expected_count(frequency_N: torch.Tensor, batch: int, n_uniform: int, eligible_N: torch.Tensor) -> torch.Tensor:
    """Return the log of how often each item is expected among a query's negatives.

    In-batch negatives appear with the item's share of the examples (Yi et al., "Sampling-Bias-Corrected
    Neural Modeling for Large Corpus Item Recommendations", 2019); uniform ones with the same chance for
    every eligible item. The mixture is that of mixed negative sampling (Yang et al., 2020).

    Args:
        frequency_N: examples of each item.
        batch: B, of which B - 1 are negatives of any one query.
        n_uniform: candidates drawn uniformly, without replacement, from the eligible items.
        eligible_N: bool, items that may be drawn.

    Returns:
        float32 ``[N]``; items that are never drawn get the smallest positive value's log.
    """
    in_batch_N = (batch - 1) * frequency_N.double() / frequency_N.sum().clamp(min=1)
    uniform_N = n_uniform * eligible_N.double() / eligible_N.sum().clamp(min=1)
    return (in_batch_N + uniform_N).clamp(min=1e-12).log().float()


def sampled_softmax(
    query_BD: torch.Tensor,
    candidate_CD: torch.Tensor,
    items_C: torch.Tensor,
    temperature: float,
    log_q_C: torch.Tensor | None = None,
    history_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of each query's positive among the candidates.

    Candidate b is the positive of query b; the others, with the remaining C - B, are its negatives,
    except for other copies of its positive (accidental hits) and items of its history.

    Args:
        query_BD: queries.
        candidate_CD: candidates, the positives first.
        items_C: int64, the candidates' items.
        temperature: divides the dot products.
        log_q_C: log of each candidate's expected count, subtracted from its logits as a negative so
            that a popular item is not punished for being sampled often; None leaves the logits as they
            are. The positive is there with certainty, so that its logit stays as it is: correcting it
            too, as Yi et al. do, biases the softmax (Khrylchenko et al., "Correcting the LogQ
            Correction", 2025). With its other copies masked, the denominator is then an unbiased
            estimate of the full softmax's.
        history_BL: int64, items that are no negatives of each query.
    """
    batch = len(query_BD)
    bias_BC = torch.zeros(batch, len(items_C), device=query_BD.device)
    if log_q_C is not None:
        bias_BC = bias_BC.sub_(log_q_C).fill_diagonal_(0.0)
    bias_BC = bias_BC.masked_fill_(not_negative(items_C, batch, history_BL), MASKED)
    # One fused operation: the B x C matrix is what a step spends its time on.
    logits_BC = torch.addmm(bias_BC, query_BD, candidate_CD.T, alpha=1.0 / temperature)
    return F.cross_entropy(logits_BC, torch.arange(batch, device=query_BD.device))


def not_negative(items_C: torch.Tensor, batch: int, history_BL: torch.Tensor | None) -> torch.Tensor:
    """Return bool ``[B, C]``: candidates to leave out of a query's softmax; never its positive."""
    positive_B = items_C[:batch]
    masked_BC = items_C[None, :] == positive_B[:, None]
    if history_BL is not None:
        # One scatter over the distinct candidates costs B x C, comparing with the history B x C x L.
        unique_U, column_C = items_C.unique(return_inverse=True)
        place_BL = torch.searchsorted(unique_U, history_BL.contiguous()).clamp(max=len(unique_U) - 1)
        found_BL = unique_U[place_BL] == history_BL
        seen_BU = torch.zeros(batch, len(unique_U) + 1, dtype=torch.bool, device=items_C.device)
        seen_BU.scatter_(1, torch.where(found_BL, place_BL, len(unique_U)), True)
        masked_BC |= seen_BU[:, :-1][:, column_C]
    own_B = torch.arange(batch, device=items_C.device)
    masked_BC[own_B, own_B] = False
    return masked_BC
