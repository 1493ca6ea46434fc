"""The forward pass and the loss of one batch, with the catalogue's constants on the device.

Shapes: B queries, C candidates, D dimensions.
"""

from __future__ import annotations

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.batches import Batch, Batches
from stages.candidate.config import CandidateConfig
from stages.candidate.data import Catalogue
from stages.candidate.exchange import gather_candidates
from stages.candidate.fused_loss import fused_sampled_softmax
from stages.candidate.losses import log_expected_count
from stages.candidate.model import jagged_features


def mixed_precision(device: torch.device, config: CandidateConfig) -> torch.autocast:
    """Return the context in which layers compute in ``config.precision``; on the CPU it does nothing."""
    enabled = device.type == "cuda" and config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def n_categories(catalogue: Catalogue) -> int:
    """Return the rows that the category table needs."""
    return int(catalogue.codes.max()) + 1 if len(catalogue.codes) else 1


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
        self._log_duration_N = torch.from_numpy(catalogue.log_duration).to(device)
        eligible_N = torch.zeros(len(catalogue), dtype=torch.bool)
        eligible_N[torch.from_numpy(catalogue.eligible)] = True
        frequency_N = torch.from_numpy(catalogue.frequency)
        self._log_q_N = log_expected_count(frequency_N, batches.size, batches.n_uniform, eligible_N).to(device)

    def prepare(self, batch: Batch) -> KeyedJaggedTensor:
        """Return the model's input of a batch; it may be made ahead, in another thread."""
        return jagged_features(
            batch.history,
            batch.weights,
            batch.id_weights,
            batch.items,
            batch.item_id_weights,
            self._catalogue,
            self.device,
        )

    def forward(
        self, batch: Batch, features: KeyedJaggedTensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return this rank's queries ``[B, D]``, candidates ``[C, D]`` and the candidates' items ``[C]``."""
        features = self.prepare(batch) if features is None else features
        items_C = torch.from_numpy(batch.items).to(self.device)
        query_BD, candidate_CD = self.model(features, self._log_duration_N[items_C], len(batch.history))
        return query_BD, candidate_CD, items_C

    def __call__(self, batch: Batch, features: KeyedJaggedTensor | None = None) -> torch.Tensor:
        """Return this rank's scalar loss; its mean over the ranks is the mean over the batch's queries.

        On CUDA the towers' layers compute in ``config.precision``, the loss in float32.
        """
        with mixed_precision(self.device, self._config):
            query_BD, candidate_cD, _ = self.forward(batch, features)
        query_BD, candidate_CD = query_BD.float(), gather_candidates(candidate_cD.float(), batch.share)
        items_C = torch.from_numpy(batch.candidates).to(self.device)
        return batch.share.weight * fused_sampled_softmax(
            query_BD,
            candidate_CD,
            items_C,
            self._config.temperature,
            self._log_q_N[items_C] if self._config.logq_correction else None,
            torch.from_numpy(batch.history).to(self.device) if self._config.mask_history else None,
        )
