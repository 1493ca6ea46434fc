"""Configuration of the light ranker."""

from __future__ import annotations

from pydantic import Field

from stages.contracts.config import Config


class LightRankerConfig(Config):
    """How the light ranker is trained.

    Attributes:
        seed: of fold assignment, negative sampling and LightGBM.
        threads: LightGBM threads for training; the scorer always uses one. More than one only pays on
            idle cores: its threads wait for each other by spinning.
        folds: user folds that choose the number of rounds and give out-of-fold scores.
        negatives_per_request: negatives kept per training request, or None for all; sampled at random.
        max_rounds: largest number of boosting rounds.
        patience: rounds without a better mean NDCG@10 of the folds before they stop growing.
        learning_rate: shrinkage of each round.
        num_leaves: leaves of a tree.
        min_data_in_leaf: rows that a leaf needs.
        feature_fraction: share of the features that a tree may use.
        lambda_l2: L2 penalty on leaf values.
        truncation_level: positions at the top whose pairs give gradients.
    """

    seed: int = 0
    threads: int = Field(default=1, ge=1)
    folds: int = Field(default=4, ge=2)
    negatives_per_request: int | None = Field(default=100, ge=1)
    max_rounds: int = Field(default=500, ge=1)
    patience: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.03, gt=0.0)
    num_leaves: int = Field(default=15, ge=2)
    min_data_in_leaf: int = Field(default=50, ge=1)
    feature_fraction: float = Field(default=0.7, gt=0.0, le=1.0)
    lambda_l2: float = Field(default=5.0, ge=0.0)
    truncation_level: int = Field(default=20, ge=1)
