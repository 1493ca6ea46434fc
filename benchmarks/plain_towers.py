"""The two-tower model of ``benchmarks.training`` as one writes it in plain PyTorch, to compare with.

The same towers, weights by recency, content, corrections and masks as the product's, but every entry of every
history and every candidate is looked up in ``torch.nn.EmbeddingBag``, and the loss is the cross-entropy of the
whole matrix of logits. ``tests/benchmarks/test_training.py`` holds its loss and gradients equal to the product's.

Shapes: B queries, C candidates, D dimensions, L history length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.towers.encoders import Histories, masked_softmax
from stages.candidate.towers.losses import not_negative, sampled_softmax
from stages.candidate.towers.temperature import start_of
from stages.candidate.towers.two_tower import ItemTower, QueryTower, sizes_of
from stages.candidate.training.batches import Batch, Batches
from stages.candidate.training.objective import LogQ


@dataclass(frozen=True)
class PlainInputs:
    """Tensors of one step.

    Attributes:
        histories: without rows of tables; ``slots`` are items, 0 at padding.
        categories: int64 ``[B, L]``, category of each entry.
        items: int64 ``[C]``; item_categories: int64 ``[C]``.
        named: float32 ``[C]``, 0 hides a candidate's id.
        log_duration: float32 ``[C]``; item_age_s: int64 ``[C]`` seconds.
    """

    histories: Histories
    categories: torch.Tensor
    items: torch.Tensor
    item_categories: torch.Tensor
    named: torch.Tensor
    log_duration: torch.Tensor
    item_age_s: torch.Tensor


class PlainTowers(nn.Module):  # type: ignore[misc]
    """The towers with the encoder ``mean`` on an item table and a category table.

    Args:
        catalogue: with one category an item.
        settings: of the product.
        sparse: whether the tables' gradients are sparse.

    Raises:
        ValueError: if the settings need a feature that this model lacks.
    """

    def __init__(self, catalogue: Catalogue, settings: TrainCandidateConfig, sparse: bool) -> None:
        super().__init__()
        config = settings.candidate.model
        lacking = (config.word_buckets, config.user_id, config.context, not config.shared_item_table)
        if any(lacking) or config.encoder != "mean" or config.normalisation != "cosine":
            raise ValueError("only the encoder 'mean' on one item table and one category table can be compared")
        sizes = sizes_of(catalogue, settings)
        self.item = nn.EmbeddingBag(sizes.items, config.dimension, mode="sum", sparse=sparse)
        self.category = nn.EmbeddingBag(sizes.categories, config.category_dimension, mode="sum", sparse=sparse)
        self.query_tower, self.item_tower = QueryTower(sizes, config), ItemTower(config)
        self._dimension = config.dimension

    def forward(self, inputs: PlainInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries ``[B, D]`` and candidates ``[C, D]``."""
        histories, named_BL = inputs.histories, inputs.histories.named
        assert named_BL is not None
        weights_BL = masked_softmax(self.query_tower.encoder.recency(histories), histories.kept, dim=1)
        ids_BD = self.item(histories.slots, per_sample_weights=weights_BL * named_BL)
        query_BW = torch.cat([ids_BD, self.category(inputs.categories, per_sample_weights=weights_BL)], dim=1)
        query_BD = F.normalize(self.query_tower.correction(query_BW[:, : self._dimension], query_BW), dim=-1, eps=1e-6)
        ids_CD = self.item(inputs.items[:, None], per_sample_weights=inputs.named[:, None])
        content_CK = self.category(inputs.item_categories[:, None])
        return query_BD, self.item_tower(ids_CD, content_CK, inputs.log_duration, inputs.item_age_s)


class PlainLoss:
    """The loss of one batch, as ``stages.candidate.training.objective.LossOfBatch`` gives it."""

    def __init__(self, model: PlainTowers, catalogue: Catalogue, config: CandidateConfig, batches: Batches) -> None:
        self.model, self._catalogue, self._config = model, catalogue, config
        self._temperature = start_of(config, len(catalogue.eligible))
        self._log_q = LogQ(catalogue, config.negatives, torch.from_numpy(batches.shared.expected), torch.device("cpu"))

    def prepare(self, batch: Batch) -> PlainInputs:
        """Return the model's input of a batch."""
        catalogue, nothing = self._catalogue, torch.zeros(0)
        entries_BL = batch.history % len(catalogue)  # padding has no weight
        histories = Histories(
            ids=nothing,
            content=nothing,
            slots=torch.from_numpy(entries_BL),
            signals=torch.from_numpy(batch.signals),
            ages=torch.from_numpy(batch.ages),
            kept=torch.from_numpy(batch.kept),
            named=torch.from_numpy(batch.named),
        )
        return PlainInputs(
            histories=histories,
            categories=torch.from_numpy(catalogue.codes[entries_BL]),
            items=torch.from_numpy(batch.items),
            item_categories=torch.from_numpy(catalogue.codes[batch.items]),
            named=torch.from_numpy(batch.item_named).float(),
            log_duration=torch.from_numpy(catalogue.log_duration[batch.items]),
            item_age_s=torch.from_numpy(batch.item_ages),
        )

    def forward(self, batch: Batch, inputs: PlainInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries and candidates."""
        query_BD, candidate_CD = self.model(inputs)
        return query_BD, candidate_CD

    def __call__(self, batch: Batch, inputs: PlainInputs) -> torch.Tensor:
        """Return the scalar loss."""
        query_BD, candidate_CD = self.forward(batch, inputs)
        seen_BL = torch.from_numpy(batch.seen(len(self._catalogue))) if self._config.negatives.mask_history else None
        masked_BC = not_negative(inputs.items, len(query_BD), seen_BL)
        log_q_C = self._log_q(inputs.items, len(query_BD))
        return sampled_softmax(query_BD, candidate_CD, masked_BC, self._temperature, log_q_C)
