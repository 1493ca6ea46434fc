"""The forward pass and the loss of one batch, with the catalogue's constants on the device.

Shapes: B queries and c candidates of a rank, C candidates of all ranks, D dimensions, N items, T tastes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import nn

from stages.candidate.config import CandidateConfig, NegativesConfig, TrainingConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.distributed.candidate_exchange import CandidateExchange
from stages.candidate.distributed.lookup import start_lookup
from stages.candidate.towers.encoders import ENCODERS
from stages.candidate.towers.fused_softmax import TargetFinder, fused_sampled_softmax
from stages.candidate.towers.inputs import ModelInputs
from stages.candidate.towers.losses import (
    SAMPLED_LOSSES,
    Negatives,
    full_softmax,
    mixture_log_q,
    not_negative,
)
from stages.candidate.towers.temperature import Temperature
from stages.candidate.training.batches import Batch, Batches
from stages.candidate.training.input_maker import InputMaker


def mixed_precision(device: torch.device, config: TrainingConfig) -> torch.autocast:
    """Return the context in which layers compute in ``config.precision``; on the CPU it does nothing."""
    enabled = device.type == "cuda" and config.precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


class LogQ:
    """LogQ corrections of a batch's candidates, from the expected counts of the negative sampling.

    Args:
        catalogue: how often each item is a target.
        config: kinds of negatives and the correction.
        shared_N: float64, expected copies of each item among the shared negatives.
        device: of the candidates.
    """

    def __init__(
        self, catalogue: Catalogue, config: NegativesConfig, shared_N: torch.Tensor, device: torch.device
    ) -> None:
        self._config = config
        frequency_N = torch.from_numpy(catalogue.frequency).double()
        share_N = frequency_N / frequency_N.sum().clamp(min=1)
        self._share_N = (share_N * config.in_batch).float().to(device)
        self._shared_N = shared_N.float().to(device)

    def __call__(self, items_C: torch.Tensor, batch: int) -> torch.Tensor | None:
        """Return float32 ``[C]``, or None where nothing is corrected.

        Args:
            items_C: int64, positives of all ranks' queries first.
            batch: number of queries of all ranks; the positives of the others are negatives of each.
        """
        if not self._config.logq_correction:
            return None
        return mixture_log_q((batch - 1) * self._share_N[items_C], self._shared_N[items_C])


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
        self._inputs = InputMaker(catalogue, config.model, device)
        self.temperature = Temperature(config, len(catalogue.eligible), model)
        self._log_q = LogQ(catalogue, config.negatives, torch.from_numpy(batches.shared.expected), device)

    def prepare(self, batch: Batch) -> ModelInputs:
        """Return the model's input of a batch; may be called ahead in another thread, but only once at a time."""
        return self._inputs(batch)

    def forward(
        self, batch: Batch, inputs: ModelInputs | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries ``[B, D]`` (or ``[B, T, D]``), candidates ``[c, D]`` and their items ``[c]`` of this rank."""
        query_BD, candidate_cD = self.model(self._looked_up(batch, inputs))
        return query_BD, candidate_cD, self._tensor(batch.items)

    def _looked_up(self, batch: Batch, inputs: ModelInputs | None) -> ModelInputs:
        """Return the batch's inputs; where several ranks hold the rows, their lookup has started."""
        return start_lookup(self.model, self.prepare(batch) if inputs is None else inputs)

    def __call__(self, batch: Batch, inputs: ModelInputs | None = None) -> torch.Tensor:
        """Return this rank's scalar loss; its mean over the ranks is the mean over the batch's queries.

        On CUDA the towers' layers compute in ``config.precision``, the loss in float32.
        """
        exchange, inputs = CandidateExchange(batch.share), self._looked_up(batch, inputs)
        loss_of = self._loss_of(batch)  # while the rows are on their way
        with mixed_precision(self.device, self._config.training):
            query_BD, sent = self.model(inputs, exchange.send)
        query_BD = self.temperature.scaled(query_BD.float())
        loss: torch.Tensor = batch.share.weight * loss_of(query_BD, exchange.receive(sent))
        return loss

    @cached_property
    def _targets(self) -> TargetFinder:
        return TargetFinder(len(self._catalogue), self.device)

    def _loss_of(self, batch: Batch) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the loss as a function of queries and candidates; all that needs no vectors is computed before."""
        config, items_C, temperature = self._config, self._tensor(batch.candidates), self.temperature.rest
        seen_BL = self._tensor(batch.seen(len(self._catalogue))) if config.negatives.mask_history else None
        own_place = np.arange(batch.n_queries) if batch.positive_place is None else batch.positive_place
        full, place_B = batch.positive_place is not None, self._tensor(own_place)
        log_q_C = None if full else self._log_q(items_C, batch.share.n_queries)
        plain = config.loss.kind == "softmax" and config.negatives.in_batch and batch.query_row is None
        if (full or plain) and not ENCODERS[config.model.encoder].several:
            targets = self._targets(items_C, place_B, seen_BL)
            return lambda query, candidate: fused_sampled_softmax(query, candidate, targets, temperature, log_q_C)
        if full:
            return lambda query, candidate: full_softmax(query, candidate, place_B, temperature, items_C, seen_BL)
        masked_BC = not_negative(
            items_C,
            batch.n_queries,
            seen_BL,
            config.negatives.in_batch,
            None if batch.query_row is None else self._tensor(batch.query_row),
            batch.share.n_queries,
        )
        count = max(1, batch.share.n_shared + (batch.share.n_queries - 1) * config.negatives.in_batch)
        rate = min(1.0, count / max(1, len(self._catalogue.eligible) - 1))
        negatives = Negatives(masked_BC, log_q_C, count, rate)
        loss = SAMPLED_LOSSES[config.loss.kind]
        return lambda query, candidate: loss(query, candidate, negatives, temperature, config.loss)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)
