"""The losses of the heavy ranker.

Shapes: B requests, K candidates of a request (padded), T tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pointwise_loss(logits_BKT: Tensor, labels_BKT: Tensor, mask_BK: Tensor) -> Tensor:
    """Return the binary cross-entropy summed over a request's rows, averaged over tasks and requests."""
    losses = F.binary_cross_entropy_with_logits(logits_BKT, labels_BKT, reduction="none").mean(dim=-1)
    return (losses * mask_BK).sum() / len(mask_BK)


def log_score(logits_BKT: Tensor, log_weights_T: Tensor) -> Tensor:
    """Return ``log sum_t weight_t * p_t`` ``[B, K]``, stable for tiny probabilities."""
    return torch.logsumexp(F.logsigmoid(logits_BKT) + log_weights_T, dim=-1)


def listwise_loss(log_score_BK: Tensor, relevance_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Return the cross-entropy between the shares of relevance and the shares of the score.

    A candidate's share is its combined score divided by the sum of its request's scores: the listwise loss of Bai et
    al. (2023). Only ratios count, so it does not pull a probability away from where the pointwise loss puts it.
    Requests without a relevant row are left out; the loss is 0 if no request has one.
    """
    total_B = relevance_BK.sum(dim=1)
    log_share_BK = log_score_BK.masked_fill(mask_BK == 0, -torch.inf).log_softmax(dim=1).masked_fill(mask_BK == 0, 0.0)
    share_BK = relevance_BK / total_B.clamp_min(1e-9).unsqueeze(1)
    losses_B = -(share_BK * log_share_BK).sum(dim=1)
    return losses_B.sum() / (total_B > 0).sum().clamp_min(1)
