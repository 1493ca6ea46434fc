"""The forward pass and the loss of one batch, with the catalogue's constants on the device.

Shapes: B queries, C candidates, D dimensions, N items, T tastes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from stages.candidate.batches import Batch, Batches
from stages.candidate.catalogue import Catalogue
from stages.candidate.config import CandidateConfig
from stages.candidate.inputs import InputMaker
from stages.candidate.losses import (
    bpr,
    by_kind_log_q,
    candidate_scores,
    cosine_contrastive,
    gbce_exponent,
    generalised_bce,
    mixture_log_q,
    not_negative,
    sampled_softmax,
)


class LogQ:
    """Log corrections of a batch's candidates, by what the sampling of negatives expects.

    Args:
        catalogue: how often each item is a target.
        config: kinds of negatives and the correction.
        shared_N: float64, expected copies of each item among the shared negatives.
        device: of the candidates.
    """

    def __init__(
        self, catalogue: Catalogue, config: CandidateConfig, shared_N: torch.Tensor, device: torch.device
    ) -> None:
        self._config = config
        frequency_N = torch.from_numpy(catalogue.frequency).double()
        share_N = frequency_N / frequency_N.sum().clamp(min=1)
        self._share_N = (share_N * config.in_batch_negatives).float().to(device)
        self._shared_N = shared_N.float().to(device)

    def __call__(self, items_C: torch.Tensor, batch: int) -> torch.Tensor | None:
        """Return float32 ``[C]``, or None where nothing is corrected.

        Args:
            items_C: int64, positives of the queries first.
            batch: B, of which B - 1 are negatives of any one query.
        """
        if not self._config.logq_correction:
            return None
        in_batch_C, shared_C = (batch - 1) * self._share_N[items_C], self._shared_N[items_C]
        if self._config.correction == "mixture":
            return mixture_log_q(in_batch_C, shared_C)
        return by_kind_log_q(in_batch_C, shared_C, batch, len(items_C) - batch)


class LossOfBatch:
    """The forward pass and the loss, with the catalogue's constants on the device."""

    def __init__(
        self,
        model: nn.Module,
        catalogue: Catalogue,
        config: CandidateConfig,
        batches: Batches,
        device: torch.device,
    ) -> None:
        self.model, self._catalogue, self._config, self.device = model, catalogue, config, device
        self._inputs = InputMaker(catalogue, config, device)
        self._log_q = LogQ(catalogue, config, torch.from_numpy(batches.shared.expected), device)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries ``[B, D]`` (or ``[B, T, D]``), candidates ``[C, D]`` and the candidates' items ``[C]``."""
        query_BD, candidate_CD = self.model(self._inputs(batch))
        return query_BD, candidate_CD, torch.from_numpy(batch.items).to(self.device)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the scalar loss."""
        query_BD, candidate_CD, items_C = self.forward(batch)
        size, config = len(query_BD), self._config
        masked_BC = not_negative(
            items_C,
            size,
            self._tensor(batch.seen(len(self._catalogue))) if config.mask_history else None,
            config.in_batch_negatives,
            None if batch.query_row is None else self._tensor(batch.query_row),
        )
        return self.loss(query_BD, candidate_CD, masked_BC, self._log_q(items_C, size))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)

    def loss(
        self,
        query_BD: torch.Tensor,
        candidate_CD: torch.Tensor,
        masked_BC: torch.Tensor,
        log_q_C: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the configured loss of queries and candidates, the positives first."""
        config = self._config
        if config.loss == "softmax":
            return sampled_softmax(query_BD, candidate_CD, masked_BC, config.temperature, log_q_C)
        scores_BC = candidate_scores(query_BD, candidate_CD)
        if config.loss == "ccl":
            return cosine_contrastive(scores_BC, masked_BC, log_q_C, config.ccl_margin, config.ccl_negative_weight)
        logits_BC = scores_BC / config.temperature
        if config.loss == "bpr":
            return bpr(logits_BC, masked_BC, log_q_C)
        size = len(query_BD)
        n_negatives = max(1, len(candidate_CD) - size + (size - 1) * config.in_batch_negatives)
        rate = min(1.0, n_negatives / max(1, len(self._catalogue.eligible) - 1))
        exponent = gbce_exponent(rate, config.gbce_calibration)
        return generalised_bce(logits_BC, masked_BC, log_q_C, n_negatives, exponent)
