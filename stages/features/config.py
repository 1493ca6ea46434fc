"""Configuration of features and serving state."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from stages.contracts.config import Config
from stages.contracts.touches import EXPOSURE_SIGNALS

HalfLife = Annotated[float, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FeatureConfig(Config):
    """Configuration of the serving state and of the features that are computed from it.

    Attributes:
        history_length: L, the number of newest distinct items that the user tower reads.
        history_decay: the tower's weight of position r (0 = newest) is ``exp(-r / history_decay)``,
            normalised to sum 1.
        half_lives_days: half-lives of the decayed counters, shortest first, in days.
        covisitation_window: number of a user's previous items that are linked to a new one.
        covisitation_neighbours: number of neighbours that an item keeps when its row is pruned. A row is
            pruned as soon as it holds more than twice as many.
        similarity_history: number of the user's newest items that are compared with a candidate.
        smoothing: number of pseudo-observations of the global mean in each smoothed rate.
        exposure_signals: signals of items that were shown, not chosen by the user. They count as exposures of
            the item; requests, histories, touched items and all other counters ignore them
            (``stages.contracts.touches``).
    """

    history_length: int = Field(default=50, ge=1)
    history_decay: float = Field(default=10.0, gt=0)
    half_lives_days: tuple[HalfLife, ...] = Field(default=(1.0, 7.0, 30.0), min_length=1)
    covisitation_window: int = Field(default=10, ge=0)
    covisitation_neighbours: int = Field(default=200, ge=1)
    similarity_history: int = Field(default=20, ge=1)
    smoothing: float = Field(default=10.0, gt=0)
    exposure_signals: tuple[str, ...] = EXPOSURE_SIGNALS

    @property
    def middle_half_life(self) -> int:
        """Position of the middle half-life, which decayed rates use."""
        return len(self.half_lives_days) // 2

    @field_validator("half_lives_days")
    @classmethod
    def _ascending(cls, half_lives: tuple[float, ...]) -> tuple[float, ...]:
        if any(short >= long for short, long in pairwise(half_lives)):
            raise ValueError("must be strictly ascending")
        return half_lives


class TrendingConfig(Config):
    """Short windows in which touches are counted exactly; see ``stages.features.trending``.

    Attributes:
        windows_minutes: lengths of the windows, shortest first.
        weights: weight of each window's shares in the score.
        segment: context column; touches are also counted by its values. None counts over all users only.
        segment_smoothing: number of pseudo-touches, distributed as the shares over all users, that smooth each
            segment's shares.
    """

    windows_minutes: tuple[Positive, ...] = Field(default=(10.0, 60.0, 1440.0), min_length=1)
    weights: tuple[Positive, ...] = Field(default=(1.0, 0.5, 0.01), min_length=1)
    segment: str | None = None
    segment_smoothing: Positive = 50.0

    @model_validator(mode="after")
    def _one_weight_a_window(self) -> TrendingConfig:
        if any(short >= long for short, long in pairwise(self.windows_minutes)):
            raise ValueError(f"windows_minutes = {list(self.windows_minutes)}: must be strictly ascending")
        if len(self.windows_minutes) != len(self.weights):
            raise ValueError(
                f"windows_minutes = {list(self.windows_minutes)} and weights = {list(self.weights)}: must be as many"
            )
        return self
