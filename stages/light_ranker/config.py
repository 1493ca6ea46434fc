"""Configuration of the light ranker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from stages.contracts.config import Config


class LightRankerConfig(Config):
    """How the light ranker is trained.

    Attributes:
        seed: of fold assignment and LightGBM.
        threads: LightGBM threads for training; the scorer always uses one. More than one only pays on
            idle cores: its threads wait for each other by spinning.
        folds: groups of users; the scores of a group's rows come from a model that never saw its users.
        max_rounds: largest number of boosting rounds.
        patience: rounds without a better mean NDCG@10 of the last window before training stops.
        smoothing: rounds whose NDCG@10 is averaged before the best ones are chosen.
        learning_rate: shrinkage of each round.
        num_leaves: leaves of a tree.
        min_data_in_leaf: rows that a leaf needs.
        feature_fraction: share of the features that a tree may use.
        lambda_l2: L2 penalty on leaf values.
        truncation_level: positions at the top whose pairs give gradients.
    """

    removed: ClassVar[Mapping[str, str]] = {"negatives_per_request": "set examples.negatives.per_request"}

    seed: int = 0
    threads: int = Field(default=1, ge=1)
    folds: int = Field(default=2, ge=2)
    max_rounds: int = Field(default=500, ge=1)
    patience: int = Field(default=40, ge=1)
    smoothing: int = Field(default=41, ge=1)
    learning_rate: float = Field(default=0.03, gt=0.0)
    num_leaves: int = Field(default=15, ge=2)
    min_data_in_leaf: int = Field(default=50, ge=1)
    feature_fraction: float = Field(default=0.7, gt=0.0, le=1.0)
    lambda_l2: float = Field(default=5.0, ge=0.0)
    truncation_level: int = Field(default=20, ge=1)
