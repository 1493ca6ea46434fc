"""What the dataset report looks at."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from stages.contracts.config import Config

Threshold = Annotated[int, Field(ge=1)]


class ReportConfig(Config):
    """The recipe's section ``report``.

    Attributes:
        days: how many of the last days are looked at.
        thresholds: least numbers of events to try; the recipe's own is added.
        windows_days: activity windows to try; the recipe's own is added.
        halvings: quality is measured on the whole candidate part, its latest half, quarter, and so on.
        neighbours: neighbours an item keeps in the recommender that measures quality.
        max_requests: of the ranker part; more are sampled evenly in time.
        max_users: whose events teach that recommender; more are sampled evenly.
        k: cut-off of NDCG@k.
        bootstrap_samples: of the intervals.
    """

    days: int = Field(default=14, ge=1, le=90)
    thresholds: tuple[Threshold, ...] = Field(default=(1, 2, 3, 5, 10, 20, 50), min_length=1)
    windows_days: tuple[Annotated[float, Field(gt=0)], ...] = (7.0, 30.0, 90.0)
    halvings: int = Field(default=5, ge=1, le=12)
    neighbours: int = Field(default=100, ge=1)
    max_requests: int = Field(default=2_000, ge=20)
    max_users: int = Field(default=50_000, ge=20)
    k: int = Field(default=10, ge=1)
    bootstrap_samples: int = Field(default=1_000, ge=100)

    @field_validator("thresholds", "windows_days")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(low >= high for low, high in pairwise(values)):
            raise ValueError(f"{list(values)} must be strictly ascending")
        return values
