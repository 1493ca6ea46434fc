"""Configuration of the sources that candidates come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.features.config import FeatureConfig, TrendingConfig

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SourceName = Literal["tower", "covisitation", "trending", "ease", "ials", "content"]
TOWER: Literal["tower"] = "tower"


class EaseConfig(Config):
    """As in ``linear.Ease.fit``.

    Attributes:
        regularisation: above 0; some hundreds for a million touches.
        memory_gb: what its dense item-item matrix may take while it is fitted.
    """

    regularisation: Positive = 200.0
    memory_gb: Positive = 4.0


class IalsConfig(Config):
    """As in ``linear.ImplicitAls.fit``.

    Attributes:
        factors: D.
        confidence: of a touch.
        regularisation: above 0.
        iterations: pairs of half-steps.
        seed: of the first factors.
    """

    factors: int = Field(default=64, ge=1)
    confidence: Positive = 5.0
    regularisation: Positive = 10.0
    iterations: int = Field(default=15, ge=1)
    seed: int = Field(default=42, ge=0)


class LearningConfig(Config):
    """How quotas are learned, see ``quotas``.

    Attributes:
        block_share: share of ``candidate_k`` that is given away at a time.
        max_requests: requests of the ranker part that are looked at, at most.
        seed: of their choice.
    """

    block_share: float = Field(default=0.05, gt=0, le=1)
    max_requests: int = Field(default=2000, ge=1)
    seed: int = Field(default=42, ge=0)


class SourcesConfig(Config):
    """Which sources name candidates, and how many each.

    Attributes:
        names: the sources in use. ``tower`` is always one of them: it fills what the others leave.
        quotas: ``learned``, or a number by source: below 1 a share of ``candidate_k``, from 1 on a whole number of
            items. Sources that are not named share the rest evenly.
        history_length: newest items of a history that ``covisitation``, ``ease``, ``ials`` and ``content`` read.
        history_decay: the weight of position r (0 = newest) is ``exp(-r / history_decay)``.
        neighbours: neighbours kept of each item for ``ease``, ``ials`` and ``content``.
        covisitation_smoothing: added to an item's popularity in its normalisation, so that a link with a rare item
            does not count more than many with a common one.
        trending: windows and segment.
        ease, ials, learning: settings of each.
    """

    names: tuple[SourceName, ...] = (TOWER,)
    quotas: Literal["learned"] | dict[SourceName, NotNegative] = {}
    history_length: int = Field(default=20, ge=1)
    history_decay: Positive = 5.0
    neighbours: int = Field(default=100, ge=1)
    covisitation_smoothing: NotNegative = 10.0
    trending: TrendingConfig = TrendingConfig()
    ease: EaseConfig = EaseConfig()
    ials: IalsConfig = IalsConfig()
    learning: LearningConfig = LearningConfig()

    @field_validator("names")
    @classmethod
    def _each_once_and_the_tower(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if TOWER not in names or len(set(names)) != len(names):
            raise ValueError("allowed are different sources, one of them 'tower'")
        return names

    @model_validator(mode="after")
    def _quotas_are_of_sources_in_use(self) -> SourcesConfig:
        if self.quotas == "learned":
            return self
        unused = [name for name in self.quotas if name not in self.names]
        if unused:
            raise ValueError(f"quotas names {unused}, the sources in use are {list(self.names)}")
        broken = {name: quota for name, quota in self.quotas.items() if quota > 1 and not quota.is_integer()}
        if broken:
            raise ValueError(f"quotas = {broken}: allowed are shares below 1 and whole numbers from 1")
        return self

    @property
    def blends(self) -> bool:
        """Whether there is anything beside the two-tower index."""
        return len(self.names) > 1

    @property
    def read_names(self) -> tuple[str, ...]:
        """The sources that the ranking features tell apart: none where there is one only."""
        return self.names if self.blends else ()

    @property
    def counted(self) -> TrendingConfig | None:
        """What the state has to count for ``trending``, None where it is not in use."""
        return self.trending if "trending" in self.names else None

    def counts(self, candidate_k: int) -> dict[str, int]:
        """Return the configured quota of each source in items, in the order of ``names``.

        Raises:
            ConfigError: if they are learned, or are more than ``candidate_k``.
        """
        if self.quotas == "learned":
            raise ConfigError("sources.quotas = 'learned': they are known only after the step train_sources")
        given = {name: round(quota * candidate_k) if quota < 1 else int(quota) for name, quota in self.quotas.items()}
        left = candidate_k - sum(given.values())
        if left < 0:
            raise ConfigError(
                f"sources.quotas = {dict(self.quotas)}: {given} are {sum(given.values())} items, allowed are "
                f"candidate_k = {candidate_k}"
            )
        others = [name for name in self.names if name not in given]
        return {name: given[name] if name in given else left // len(others) for name in self.names}


class TrainSourcesConfig(Config):
    """Configuration of the step ``train_sources``.

    Attributes:
        sources: which sources, and their settings.
        candidate_k: items retrieved for each request.
        features: must equal the configuration that the tower was trained with.
    """

    sources: SourcesConfig = SourcesConfig()
    candidate_k: int = Field(default=200, ge=1)
    features: FeatureConfig = FeatureConfig()
