"""Configuration of the heavy ranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from stages.contracts.config import Config


class NetworkConfig(Config):
    """The shape of one DCN-v2 network.

    Attributes:
        cross_layers: explicit feature-crossing layers.
        cross_rank: rank of each cross layer's matrix, or None for a full one.
        deep_layers: widths of the deep network.
        structure: whether the deep network reads the input (``parallel``) or the crosses (``stacked``).
        dropout: share of the deep network's units dropped in training.
    """

    cross_layers: int = Field(default=2, ge=0)
    cross_rank: int | None = Field(default=32, ge=1)
    deep_layers: tuple[int, ...] = (64, 32)
    structure: Literal["parallel", "stacked"] = "parallel"
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)


class HeavyRankerConfig(Config):
    """How the heavy ranker is trained.

    Attributes:
        seed: of initialisation, dropout and batch order.
        threads: torch threads; more than one only pays on idle cores.
        device: ``auto`` takes CUDA where there is one.
        light_k: candidates of a request that the light ranker passes on; equals the release's.
        network: the shape of each network.
        ensemble: networks whose logits are averaged inside the exported model.
        objective: weight of each task in the score that the listwise loss trains, or empty for the
            weights of the snapshot's tasks. A release may use other weights without training again.
        pointwise_weight: weight of the binary cross-entropy of all tasks.
        listwise_weight: weight of the listwise loss on the combined score.
        batch_requests: whole requests in a batch.
        memory_rows: examples with at most so many chosen rows are held in memory; of larger ones a few row groups at a
            time are.
        max_epochs: largest number of passes over the training requests.
        patience: epochs without a better validation NDCG@10 before training stops.
        learning_rate: of AdamW.
        weight_decay: of AdamW, on matrices only.
    """

    removed: ClassVar[Mapping[str, str]] = {"validation_share": "the last window of examples.windows is held out"}

    seed: int = 0
    threads: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    light_k: int = Field(default=200, ge=1)
    network: NetworkConfig = NetworkConfig()
    ensemble: int = Field(default=2, ge=1)
    objective: dict[str, float] = {}
    pointwise_weight: float = Field(default=1.0, ge=0.0)
    listwise_weight: float = Field(default=1.0, ge=0.0)
    batch_requests: int = Field(default=32, ge=1)
    memory_rows: int = Field(default=2_000_000, ge=0)
    max_epochs: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
