"""Configuration of the candidate generators: a recipe's section ``sources``, and the step ``train_sources``."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from stages.candidate.generators.newcomers import newcomer_lists
from stages.candidate.generators.settings import GeneratorSettings, NotNegative, Positive
from stages.candidate.generators.table import TOWER, generator_class, generator_names
from stages.candidate.linear.config import BaselinesConfig
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.features.config import FeatureConfig, TrendsConfig


def _known(name: str) -> str:
    if name not in generator_names():
        raise ValueError(f"unknown candidate generator, allowed are {', '.join(generator_names())}")
    return name


GeneratorName = Annotated[str, AfterValidator(_known)]


class LearningConfig(Config):
    """How quotas are learned, see ``generators.quotas``.

    Attributes:
        block_share: share of ``candidate_k`` that moves from one generator to another at a time.
        max_requests: how many requests of the ranker period are read, at most.
        seed: of their choice.
    """

    block_share: float = Field(default=0.05, gt=0, le=1)
    max_requests: int = Field(default=2000, ge=1)
    seed: int = Field(default=42, ge=0)


class NewcomersConfig(Config):
    """Which list answers users without history, see ``candidate.retrieval.choose_newcomers``.

    Attributes:
        list: ``measured`` takes the best one by NDCG@10; otherwise its name: ``all_time``, ``half_life_<days>d`` with a
            half-life of ``features.half_lives_days``, or a generator in use that answers such users.
        min_requests: where fewer requests without history have targets, those of all users are measured; where these
            are fewer as well, nothing is measured.
        max_requests: how many requests of the ranker period are measured, at most.
        seed: of their choice.
    """

    list: str = "measured"
    min_requests: int = Field(default=50, ge=1)
    max_requests: int = Field(default=2000, ge=1)
    seed: int = Field(default=42, ge=0)


class MixtureConfig(Config):
    """How the generators' lists become the candidates, and how a learned mixture is trained.

    Attributes:
        kind: ``quotas`` mixes the lists by quotas and reciprocal rank fusion, see ``generators.blend``. ``learned``
            trains a network, see ``generators.mixture``, and falls back to quotas where it does not gain on the
            validation requests.
        pool: items of each generator's list that the network scores, ``candidate_k`` or more; None takes
            ``candidate_k``.
        hidden: width of its two hidden layers.
        batch_requests: requests of a training step.
        epochs: over the training requests, at most.
        learning_rate: the highest of AdamW's one-cycle schedule.
        patience: training ends after so many epochs in a row without a smaller loss on the validation requests.
        max_requests: requests of the ranker period that are read, at most.
        validation_share: share of them that is kept for validation, the latest ones.
        seed: of the choice of requests, the first weights and the order of training.
    """

    kind: Literal["quotas", "learned"] = "quotas"
    pool: int | None = Field(default=None, ge=1)
    hidden: int = Field(default=32, ge=1, le=1024)
    batch_requests: int = Field(default=32, ge=1)
    epochs: int = Field(default=20, ge=1)
    learning_rate: Positive = 0.004
    patience: int = Field(default=4, ge=1)
    max_requests: int = Field(default=4000, ge=1)
    validation_share: float = Field(default=0.3, gt=0, lt=1)
    seed: int = Field(default=42, ge=0)

    def length(self, candidate_k: int) -> int:
        """Return how many items of each generator's list are read.

        Raises:
            ConfigError: if they are fewer than ``candidate_k``, which could leave a request short of candidates.
        """
        pool = candidate_k if self.kind == "quotas" or self.pool is None else self.pool
        if pool < candidate_k:
            raise ConfigError(f"sources.mixture.pool = {pool}: allowed are candidate_k = {candidate_k} or more")
        return pool


class SourcesConfig(GeneratorSettings):
    """Which generators give candidates, and how many each.

    A generator that has settings of its own has a section of its name, such as ``trending``. Sections that are not
    given have their defaults.

    Attributes:
        names: the generators in use. ``tower``, the two-tower index, is always one of them: it fills the places that
            the others leave.
        quotas: ``learned``, or a number for each generator: a share of ``candidate_k`` below 1, a whole number of items
            from 1 on. Generators without a quota share the rest evenly.
        learning: how quotas are learned.
        mixture: whether quotas or a trained network mix the lists.
        learned_from: directory of an earlier step ``train_sources``, or of a release. The quotas or the mixture that
            were learned there are taken over, and only the generators are fitted to this run's data. None learns them.
        newcomers: which list answers users without history.
    """

    names: tuple[GeneratorName, ...] = (TOWER,)
    quotas: Literal["learned"] | dict[str, NotNegative] = {}
    learning: LearningConfig = LearningConfig()
    mixture: MixtureConfig = MixtureConfig()
    learned_from: str | None = None
    newcomers: NewcomersConfig = NewcomersConfig()

    @classmethod
    def sections(cls) -> dict[str, Any]:
        """Return the type of each key, the generators' sections among them."""
        return super().sections() | {name: field.annotation for name, field in _own_sections().model_fields.items()}

    @model_validator(mode="wrap")
    @classmethod
    def _parse_sections(cls, values: Any, parse: ModelWrapValidatorHandler[SourcesConfig]) -> SourcesConfig:
        """Parse the generators' sections, and report their faults together with those of the fields."""
        if not isinstance(values, dict):
            return parse(values)
        fields = {name: value for name, value in values.items() if name in cls.model_fields}
        faults: list[Any] = []
        try:
            own = _own_sections().model_validate({name: values[name] for name in values if name not in fields})
            fields |= {name: getattr(own, name) for name in type(own).model_fields}
        except ValidationError as error:
            faults += error.errors()
        try:
            found = parse(fields)
        except ValidationError as error:
            faults += error.errors()
        if faults:
            details = [
                InitErrorDetails(type=fault["type"], loc=fault["loc"], input=fault["input"], ctx=fault.get("ctx", {}))
                for fault in faults
            ]
            raise ValidationError.from_exception_data(cls.__name__, details)
        return found

    @field_validator("names")
    @classmethod
    def _each_once_and_the_tower(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if TOWER not in names or len(set(names)) != len(names):
            raise ValueError("allowed are different generators, one of them 'tower'")
        return names

    @model_validator(mode="after")
    def _quotas_are_of_generators_in_use(self) -> SourcesConfig:
        if self.quotas == "learned":
            return self
        unused = [name for name in self.quotas if name not in self.names]
        if unused:
            raise ValueError(f"quotas names {unused}, the generators in use are {list(self.names)}")
        broken = {name: quota for name, quota in self.quotas.items() if quota > 1 and not quota.is_integer()}
        if broken:
            raise ValueError(f"quotas = {broken}: allowed are shares below 1 and whole numbers from 1")
        return self

    @model_validator(mode="after")
    def _a_mixture_has_several_lists(self) -> SourcesConfig:
        if self.mixture.kind == "learned" and not self.blends:
            raise ValueError(
                f"mixture.kind = 'learned' mixes the lists of several generators, names = {list(self.names)}: allowed "
                "are two or more of them, or mixture.kind = 'quotas'"
            )
        return self

    @model_validator(mode="after")
    def _takes_over_what_is_learned(self) -> SourcesConfig:
        if self.learned_from is not None and not self.learns:
            raise ValueError(
                f"learned_from = {self.learned_from!r}: allowed with quotas = 'learned' or mixture.kind = 'learned'"
            )
        return self

    @property
    def learns(self) -> bool:
        """Whether quotas or a mixture are learned, here or in an earlier run."""
        return self.blends and (self.quotas == "learned" or self.mixture.kind == "learned")

    @property
    def blends(self) -> bool:
        """Whether there is a generator beside the two-tower index."""
        return len(self.names) > 1

    @property
    def read_names(self) -> tuple[str, ...]:
        """The generators whose scores are ranking features: none where there is only one."""
        return self.names if self.blends else ()

    @property
    def counted(self) -> TrendsConfig | None:
        """What the state must count of recent touches for the generators in use, None where none needs it.

        Raises:
            ConfigError: if two generators count by different segments, or one by a segment that is not named.
        """
        wanted = {name: generator_class(name).counted(self) for name in self.names if name != TOWER}
        lists = {name: windows for name, windows in wanted.items() if windows is not None}
        try:
            return TrendsConfig(lists=lists) if lists else None
        except ValidationError as error:
            said = "; ".join(fault["msg"] for fault in error.errors())
            raise ConfigError(f"sources.names: {', '.join(lists)}: {said}") from None

    def counts(self, candidate_k: int) -> dict[str, int]:
        """Return the configured quota of each generator in items, in the order of ``names``.

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
        sources: which generators, and their settings.
        candidate_k: candidates of a request.
        features: must equal the configuration that the tower was trained with.
        learned_version: sha256 of ``sources.json`` at ``sources.learned_from``; filled in.
    """

    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    candidate_k: int = Field(default=200, ge=1)
    features: FeatureConfig = FeatureConfig()
    learned_version: str = ""

    @property
    def quota_block(self) -> int:
        """Places that move at a time while quotas are learned."""
        return max(1, round(self.sources.learning.block_share * self.candidate_k))

    @model_validator(mode="after")
    def _newcomers_get_a_list(self) -> TrainSourcesConfig:
        found = self.sources.newcomers.list
        answering = [name for name in self.sources.names if name != TOWER and generator_class(name).answers_newcomers]
        allowed = ["measured", *newcomer_lists(self.features, answering)]
        if found not in allowed:
            raise ValueError(f"sources.newcomers.list = {found!r}: allowed are {', '.join(allowed)}")
        return self

    @model_validator(mode="after")
    def _pool_holds_the_candidates(self) -> TrainSourcesConfig:
        try:
            self.sources.mixture.length(self.candidate_k)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class CheckMemoryConfig(Config):
    """Configuration of the step ``check_memory``.

    Attributes:
        sources: which generators, and their settings.
        baselines: what the stage ledger's baselines may take.
        features: which signals are exposures.
    """

    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    baselines: BaselinesConfig = BaselinesConfig()
    features: FeatureConfig = FeatureConfig()


def _own_sections() -> type[Config]:
    """Return a model of the sections of all generators that have one, by the table as it stands."""
    known = {name: generator_class(name).own_settings for name in generator_names() if name != TOWER}
    return _sections_model(tuple((name, kind) for name, kind in known.items() if kind is not None))


@lru_cache(maxsize=16)
def _sections_model(kinds: tuple[tuple[str, type[Config]], ...]) -> type[Config]:
    taken = [name for name, _ in kinds if name in SourcesConfig.model_fields]
    if taken:
        raise ConfigError(f"candidate generators {taken} are named like other keys of a recipe's section sources")
    fields: dict[str, Any] = {name: (kind, kind()) for name, kind in kinds}
    return create_model("Sections", __base__=Config, **fields)
