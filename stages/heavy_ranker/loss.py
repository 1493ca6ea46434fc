"""The losses of the heavy ranker, as they would be on the lists that were not sampled.

A row that was kept with probability p has the weight 1 / p: a weighted sum over the sampled rows of a request is an
unbiased estimate of the sum over all of its rows (Horvitz and Thompson, 1952).

Shapes: B requests, K rows of the longest of them, n rows of all of them, T tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pointwise_loss(logits_nT: Tensor, labels_nT: Tensor, weight_n: Tensor, n_requests: int) -> Tensor:
    """Return the binary cross-entropy summed over a request's rows, averaged over tasks and requests."""
    losses_n = F.binary_cross_entropy_with_logits(logits_nT, labels_nT, reduction="none").mean(dim=-1)
    return (losses_n * weight_n).sum() / n_requests


def log_score(logits_nT: Tensor, log_weights_T: Tensor) -> Tensor:
    """Return ``log sum_t weight_t * p_t`` ``[n]``, stable for tiny probabilities."""
    return torch.logsumexp(F.logsigmoid(logits_nT) + log_weights_T, dim=-1)


def listwise_loss(log_score_BK: Tensor, relevance_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Return the cross-entropy between the shares of relevance and the shares of the score.

    A candidate's share is its combined score divided by the sum of its request's scores: the listwise loss of Bai et
    al. (2023). Only ratios count, so it does not pull a probability away from where the pointwise loss puts it.
    Requests without a relevant row are left out; the loss is 0 if no request has one.

    The sum of a request's scores is estimated from the sampled rows by adding the log of each weight to its log score
    (Bengio and Senecal, 2003). Where negatives are sampled uniformly and a request has one positive, the uncorrected
    softmax has the same minimum (McFadden, 1978); with several positives or other samples only the corrected one
    estimates the loss of the whole list.

    Args:
        log_score_BK: finite, also at padding.
        relevance_BK: 0 at padding.
        weight_BK: 0 at padding; each request has a row.
    """
    relevance_BK = relevance_BK * weight_BK
    total_B = relevance_BK.sum(dim=1)
    log_sum_B = torch.logsumexp(log_score_BK + weight_BK.log(), dim=1)
    share_BK = relevance_BK / total_B.clamp_min(1e-9).unsqueeze(1)
    losses_B = (share_BK * (log_sum_B.unsqueeze(1) - log_score_BK)).sum(dim=1)
    return losses_B.sum() / (total_B > 0).sum().clamp_min(1)
