"""Configuration of the dataset report."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from stages.contracts.config import Config

Threshold = Annotated[int, Field(ge=1)]


class ReportConfig(Config):
    """The recipe's section ``report``.

    Attributes:
        days: number of last days whose coverage is measured.
        thresholds: smallest numbers of events to try; the recipe's own number is added.
        windows_days: activity windows to try; the recipe's own window is added.
        halvings: number of halvings of the candidate period: quality is measured on all of it, its latest
            half, quarter, and so on.
        neighbours: number of neighbours of an item in the recommender that measures quality.
        max_requests: largest number of requests of the ranker period; if there are more, they are sampled
            evenly in time.
        max_users: largest number of users that the recommender is fitted on, besides those of the requests;
            if there are more, they are sampled evenly.
        k: cut-off of NDCG@k.
        bootstrap_samples: number of bootstrap samples for the intervals.
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
