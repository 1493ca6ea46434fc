"""Configuration of features and serving state."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

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


class TrendsConfig(Config):
    """All lists of recent touches that a state makes; it counts the touches of their windows once for all lists.

    Attributes:
        lists: windows, weights and segment of each list, by the name of its generator. At most one column is a segment.
    """

    lists: dict[str, TrendingConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_segment(self) -> TrendsConfig:
        found = {(each.segment, each.segment_smoothing) for each in self.lists.values() if each.segment is not None}
        if len(found) > 1:
            raise ValueError(f"lists: segments and smoothing {sorted(found)}: allowed is one for all lists")
        return self

    @property
    def windows_minutes(self) -> tuple[float, ...]:
        """Lengths of the windows of all lists, shortest first."""
        return tuple(sorted({minutes for each in self.lists.values() for minutes in each.windows_minutes}))

    @property
    def segment(self) -> str | None:
        """The context column by whose values touches are counted as well."""
        return next((each.segment for each in self.lists.values() if each.segment is not None), None)

    @property
    def segment_smoothing(self) -> float:
        """Pseudo-touches of each segment's shares, see ``TrendingConfig``."""
        return next((each.segment_smoothing for each in self.lists.values() if each.segment is not None), 1.0)


Rank = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class NegativesConfig(Config):
    """Which candidates that are no target the rankers learn from.

    Attributes:
        per_request: how many are kept of a request, at most; None keeps all.
        by: ``uniform``: each is kept with the same probability. ``rank``: ``band_shares`` of the places go to the bands
            of the retrieved list; within a band each is kept with the same probability. ``popularity``: with a
            probability proportional to (1 + touches of the item before the ranker period) ** ``popularity_power``.
        band_ends: for ``rank``: the rank at which each band but the last ends, counted from 0 and not included.
        band_shares: for ``rank``: one more than ``band_ends``; their sum is 1, and each band gets at least one place.
            Places that a band cannot fill go to the other bands.
        popularity_power: for ``popularity``; 0 is uniform.
    """

    per_request: int | None = Field(default=100, ge=1)
    by: Literal["uniform", "rank", "popularity"] = "uniform"
    band_ends: tuple[Rank, ...] = (20, 100)
    band_shares: tuple[Share, ...] = (0.4, 0.4, 0.2)
    popularity_power: float = Field(default=0.5, ge=0, le=4)

    @model_validator(mode="after")
    def _bands_fit(self) -> NegativesConfig:
        if any(after <= before for before, after in pairwise(self.band_ends)):
            raise ValueError(f"band_ends = {list(self.band_ends)}: must be strictly ascending")
        if len(self.band_shares) != len(self.band_ends) + 1 or abs(sum(self.band_shares) - 1) > 1e-9:
            raise ValueError(
                f"band_shares = {list(self.band_shares)}: allowed are {len(self.band_ends) + 1} shares with the sum 1"
            )
        if self.by == "rank" and self.per_request is not None and 0 in self.band_places(self.per_request):
            places = self.band_places(self.per_request)
            raise ValueError(
                f"per_request = {self.per_request}: gives the bands {places} places, every band needs at least 1, "
                "since no weight can stand for rows that are never kept"
            )
        return self

    def band_places(self, per_request: int) -> list[int]:
        """Return how many of ``per_request`` places each band gets."""
        ends = [round(sum(self.band_shares[:band]) * per_request) for band in range(len(self.band_shares) + 1)]
        return [after - before for before, after in pairwise(ends)]


class ExampleRequestsConfig(Config):
    """Which requests of the ranker period the rankers learn from.

    How many requests there are at all is a matter of ``dataset.requests``.

    Attributes:
        in_all: how many, at most, chosen at random; None takes all.
        per_user: how many of a user, at most, chosen at random; None takes all.
        without_positive: whether requests are taken that have no target among their candidates. The light ranker
            learns nothing from them.
    """

    in_all: int | None = Field(default=None, ge=1)
    per_user: int | None = Field(default=None, ge=1)
    without_positive: bool = False


class SamplingConfig(Config):
    """Which candidates the rankers learn from, chosen before any feature is computed: a recipe's section ``examples``.

    Attributes:
        seed: of every choice.
        windows: past windows of the ranker period, each with as many of the chosen requests; the last one says how long
            the rankers train.
        requests: which requests.
        negatives: which of their candidates. All targets among the candidates are kept.
        inject_missed: whether targets that retrieval missed are added as the last candidates. They look like nothing
            that a served ranker sees; they are counted either way.
    """

    seed: int = Field(default=0, ge=0)
    windows: int = Field(default=5, ge=2, le=1000)
    requests: ExampleRequestsConfig = ExampleRequestsConfig()
    negatives: NegativesConfig = NegativesConfig()
    inject_missed: bool = False
