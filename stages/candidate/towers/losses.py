"""Losses over sampled candidates, corrected for how the negatives were sampled.

Candidate b is the positive of query b; the others, with the remaining C - B, are its negatives,
except for those that ``not_negative`` masks.

Shapes: B queries, C candidates shared by the batch, D dimensions, L history length, T tastes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stages.candidate.config import LossConfig

MASKED = -1e9
"""Logit of a candidate that is no negative: finite, so that no gradient becomes NaN."""
_NEVER = 1e-12
"""Expected count of an item that is never drawn."""


def mixture_log_q(in_batch_C: torch.Tensor, shared_C: torch.Tensor) -> torch.Tensor:
    """Return the log of how often each candidate's item is expected among a query's negatives.

    In-batch negatives appear with the item's share of the examples (Yi et al., "Sampling-Bias-Corrected
    Neural Modeling for Large Corpus Item Recommendations", 2019), shared ones as their sampler draws
    them; the mixture is that of mixed negative sampling (Yang et al., 2020).

    Args:
        in_batch_C: expected copies among the in-batch negatives.
        shared_C: expected copies among the shared negatives.

    Returns:
        float32 ``[C]``; an item that is never drawn gets the log of a tiny count.
    """
    return (in_batch_C.double() + shared_C.double()).clamp(min=_NEVER).log().float()


def candidate_scores(query_BD: torch.Tensor, candidate_CD: torch.Tensor) -> torch.Tensor:
    """Return ``[B, C]`` dot products; of queries ``[B, T, D]`` the best taste counts."""
    if query_BD.dim() == 2:
        return query_BD @ candidate_CD.T
    scores_BTC = query_BD @ candidate_CD.T
    return scores_BTC.max(dim=1).values


def sampled_softmax(
    query_BD: torch.Tensor,
    candidate_CD: torch.Tensor,
    masked_BC: torch.Tensor,
    temperature: float,
    log_q_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of each query's positive among the candidates.

    Args:
        query_BD: queries, or ``[B, T, D]``.
        candidate_CD: candidates, the positives first.
        masked_BC: bool, from ``not_negative``.
        temperature: divides the dot products.
        log_q_C: log of each candidate's expected count, subtracted from its logits as a negative so
            that a popular item is not punished for being sampled often; None leaves the logits as they
            are. The positive's logit is not corrected, because the positive is always there. Correcting it
            too, as Yi et al. do, biases the softmax (Khrylchenko et al., "Correcting the LogQ
            Correction", 2025). With its other copies masked, the denominator is then an unbiased
            estimate of the full softmax's.
    """
    batch = len(query_BD)
    bias_BC = torch.zeros(masked_BC.shape, device=query_BD.device)
    if log_q_C is not None:
        bias_BC = bias_BC.sub_(log_q_C).fill_diagonal_(0.0)
    bias_BC = bias_BC.masked_fill_(masked_BC, MASKED)
    if query_BD.dim() == 2:
        # One fused operation: the B x C matrix is what a step spends its time on.
        logits_BC = torch.addmm(bias_BC, query_BD, candidate_CD.T, alpha=1.0 / temperature)
    else:
        logits_BC = bias_BC + candidate_scores(query_BD, candidate_CD) / temperature
    return F.cross_entropy(logits_BC, torch.arange(batch, device=query_BD.device))


def full_softmax(
    query_BD: torch.Tensor,
    candidate_CD: torch.Tensor,
    place_B: torch.Tensor,
    temperature: float,
    items_C: torch.Tensor,
    history_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean cross-entropy of each query's positive among the whole catalogue.

    Args:
        query_BD: queries, or ``[B, T, D]``.
        candidate_CD: each item once.
        place_B: int64, where each query's positive is among the candidates.
        temperature: divides the dot products.
        items_C: int64, the candidates' items.
        history_BL: int64, items that are no negatives of each query; its positive is never masked.
    """
    logits_BC = candidate_scores(query_BD, candidate_CD) / temperature
    if history_BL is not None:
        masked_BC = among(items_C, history_BL).scatter_(1, place_B[:, None], False)
        logits_BC = logits_BC.masked_fill(masked_BC, MASKED)
    return F.cross_entropy(logits_BC, place_B)


def bpr(scores_BC: torch.Tensor, masked_BC: torch.Tensor, log_q_C: torch.Tensor | None = None) -> torch.Tensor:
    """Return Bayesian personalised ranking's loss (Rendle et al., UAI 2009).

    Args:
        scores_BC: what is compared, the positives on the diagonal.
        masked_BC: bool, from ``not_negative``.
        log_q_C: weights the negatives so that their mean is as over items drawn uniformly; None weighs them alike.
    """
    margin_BC = scores_BC.diagonal()[:, None] - scores_BC
    return (_negative_weights(masked_BC, log_q_C) * F.softplus(-margin_BC)).sum(dim=1).mean()


def gbce_exponent(sampling_rate: float, calibration: float) -> float:
    """Return beta, the power of the positive's probability in gBCE.

    Args:
        sampling_rate: alpha, the share of the negatives that a step samples, in (0, 1].
        calibration: t; 0 leaves binary cross-entropy as it is, 1 gives calibrated probabilities.
    """
    return sampling_rate * (calibration * (1.0 - 1.0 / sampling_rate) + 1.0 / sampling_rate)


def generalised_bce(
    logits_BC: torch.Tensor,
    masked_BC: torch.Tensor,
    log_q_C: torch.Tensor | None,
    n_negatives: int,
    exponent: float,
) -> torch.Tensor:
    """Return gBCE (Petrov and Macdonald, "gSASRec", RecSys 2023): BCE against over-confidence.

    Args:
        logits_BC: the positives on the diagonal.
        masked_BC: bool, from ``not_negative``.
        log_q_C: as for ``bpr``.
        n_negatives: K, the number of negatives that their mean represents.
        exponent: beta, from ``gbce_exponent``.
    """
    weights_BC = _negative_weights(masked_BC, log_q_C)
    negative_B = (weights_BC * F.softplus(logits_BC)).sum(dim=1)
    positive_B = exponent * F.softplus(-logits_BC.diagonal())
    return ((positive_B + n_negatives * negative_B) / (n_negatives + 1)).mean()


def _negative_weights(masked_BC: torch.Tensor, log_q_C: torch.Tensor | None) -> torch.Tensor:
    """Return ``[B, C]`` weights of the negatives, of sum 1 for each query that has any."""
    weights_C = torch.ones(masked_BC.shape[1], device=masked_BC.device)
    if log_q_C is not None:
        weights_C = (log_q_C.min() - log_q_C).exp()
    weights_BC = weights_C.expand(masked_BC.shape).masked_fill(masked_BC, 0.0).fill_diagonal_(0.0)
    return weights_BC / weights_BC.sum(dim=1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True)
class Negatives:
    """What a loss over sampled negatives reads of them.

    Attributes:
        masked: bool ``[B, C]``, from ``not_negative``.
        log_q: float32 ``[C]``, from ``mixture_log_q``; None corrects nothing.
        count: K, negatives of a query in the batch before masking.
        rate: K as a share of the items that may be negatives, in (0, 1].
    """

    masked: torch.Tensor
    log_q: torch.Tensor | None
    count: int
    rate: float


SampledLoss = Callable[[torch.Tensor, torch.Tensor, Negatives, float, LossConfig], torch.Tensor]


def _softmax(
    query_BD: torch.Tensor, candidate_CD: torch.Tensor, negatives: Negatives, temperature: float, config: LossConfig
) -> torch.Tensor:
    return sampled_softmax(query_BD, candidate_CD, negatives.masked, temperature, negatives.log_q)


def _bpr(
    query_BD: torch.Tensor, candidate_CD: torch.Tensor, negatives: Negatives, temperature: float, config: LossConfig
) -> torch.Tensor:
    return bpr(candidate_scores(query_BD, candidate_CD) / temperature, negatives.masked, negatives.log_q)


def _gbce(
    query_BD: torch.Tensor, candidate_CD: torch.Tensor, negatives: Negatives, temperature: float, config: LossConfig
) -> torch.Tensor:
    logits_BC = candidate_scores(query_BD, candidate_CD) / temperature
    exponent = gbce_exponent(negatives.rate, config.gbce_calibration)
    return generalised_bce(logits_BC, negatives.masked, negatives.log_q, negatives.count, exponent)


SAMPLED_LOSSES: dict[str, SampledLoss] = {"softmax": _softmax, "bpr": _bpr, "gbce": _gbce}
"""Losses over sampled negatives by ``candidate.loss.kind``, of queries ``[B, D]`` or ``[B, T, D]``, candidates
``[C, D]``, the queries' positives first, and what divides their products."""


def not_negative(
    items_C: torch.Tensor,
    batch: int,
    history_BL: torch.Tensor | None = None,
    in_batch: bool = True,
    group_B: torch.Tensor | None = None,
    n_positives: int | None = None,
) -> torch.Tensor:
    """Return bool ``[B, C]``: candidates that are masked as negatives of a query; never its positive.

    Other copies of its positive (accidental hits) are masked, and the candidates that the arguments exclude.

    Args:
        items_C: int64, the candidates' items.
        batch: B.
        history_BL: int64, items that are no negatives of each query.
        in_batch: whether other queries' positives are negatives.
        n_positives: number of candidates that are positives of a query, of any rank; None means B.
        group_B: int64; positives of queries of one group (one user's sequence) are not each other's
            negatives. They are drawn together, which the logQ correction does not account for.
    """
    positive_B = items_C[:batch]
    masked_BC = items_C[None, :] == positive_B[:, None]
    if history_BL is not None:
        masked_BC |= among(items_C, history_BL)
    if not in_batch:
        masked_BC[:, : batch if n_positives is None else n_positives] = True
    elif group_B is not None:
        masked_BC[:, :batch] |= group_B[:, None] == group_B[None, :]
    own_B = torch.arange(batch, device=items_C.device)
    masked_BC[own_B, own_B] = False
    return masked_BC


def among(items_C: torch.Tensor, history_BL: torch.Tensor) -> torch.Tensor:
    """Return bool ``[B, C]``: which items are in each row's list."""
    # One scatter over the distinct items costs B x C, comparing with the lists B x C x L.
    unique_U, column_C = items_C.unique(return_inverse=True)
    place_BL = torch.searchsorted(unique_U, history_BL.contiguous()).clamp(max=len(unique_U) - 1)
    found_BL = unique_U[place_BL] == history_BL
    seen_BU = torch.zeros(len(history_BL), len(unique_U) + 1, dtype=torch.bool, device=items_C.device)
    seen_BU.scatter_(1, torch.where(found_BL, place_BL, len(unique_U)), True)
    seen_BC: torch.Tensor = seen_BU[:, :-1][:, column_C]
    return seen_BC
