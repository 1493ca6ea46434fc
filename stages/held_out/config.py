"""Configuration of the step ``rank_held_out``."""

from __future__ import annotations

from pydantic import Field

from stages.contracts.config import Config
from stages.features.config import FeatureConfig, TrendsConfig


class RankHeldOutConfig(Config):
    """How the held-out requests are ranked.

    Attributes:
        features: configuration of the state and the features.
        sources: candidate generators whose scores are features; empty if there is only one generator.
        trending: recent touches that the state counts for trending generators; None without any.
        light_k: items of a request that the light ranker passes on.
        objective: weight of each task in a score; empty means the weights that a stage was trained for.
        threads: how many blocks are scored at a time while the features of the next ones are computed.
    """

    features: FeatureConfig = FeatureConfig()
    sources: tuple[str, ...] = ()
    trending: TrendsConfig | None = None
    light_k: int = Field(default=200, ge=1)
    objective: dict[str, float] = {}
    threads: int = Field(default=1, ge=1)
