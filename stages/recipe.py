"""The recipe: one configuration that describes a whole funnel, stage by stage.

Each section belongs to its stage; this file only combines them. ``configs/`` holds recipes as YAML, and
every release contains its resolved recipe.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.auto.config import AutoConfig
from stages.candidate.config import CandidateConfig, IndexConfig, RefreshVectorsConfig
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.linear.config import BaselinesConfig
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.manifest import FunnelSpec
from stages.dataset.checks.config import ContractsConfig
from stages.dataset.config import DatasetConfig
from stages.evaluation.evaluate import EvaluationConfig
from stages.features.config import FeatureConfig, SamplingConfig
from stages.heavy_ranker.config import HeavyRankerConfig
from stages.light_ranker.config import LightRankerConfig
from stages.release.gate import GateConfig
from stages.simulator.config import WorldConfig
from stages.sufficiency.config import ReportConfig


class Recipe(Config):
    """A whole funnel.

    Attributes:
        seed: of every random choice that has no seed of its own.
        auto: whether settings that the recipe leaves out follow from the data.
        world: the synthetic world, which is made if a run's data is ``synthetic``.
        contracts: data contracts: conditions that the warehouse must meet before training.
        report: the dataset report.
        dataset: selection, de-duplication, tasks, splits and requests.
        features: histories, counters and ranking features.
        candidate: the two-tower model and its training.
        index: the Faiss index.
        refresh: how a refresh embeds items that came after the training.
        sources: the candidate generators beside the index, and how many candidates each returns.
        examples: which requests and candidates the rankers learn from.
        light_ranker: the LightGBM ranker.
        heavy_ranker: the DCN-v2 ranker.
        baselines: EASE and implicit ALS, rows of the stage ledger.
        evaluation: the stage ledger.
        funnel: sizes and stages of the served funnel, and the objective's weights.
        gate: the gain that a release needs before it is promoted.
    """

    seed: int = 0
    auto: AutoConfig = AutoConfig()
    world: WorldConfig = WorldConfig()
    contracts: ContractsConfig = ContractsConfig()
    dataset: DatasetConfig
    report: ReportConfig = ReportConfig()
    features: FeatureConfig = FeatureConfig()
    candidate: CandidateConfig = CandidateConfig()
    index: IndexConfig = IndexConfig()
    refresh: RefreshVectorsConfig = RefreshVectorsConfig()
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    examples: SamplingConfig = SamplingConfig()
    light_ranker: LightRankerConfig = LightRankerConfig()
    heavy_ranker: HeavyRankerConfig = HeavyRankerConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    funnel: FunnelSpec = FunnelSpec()
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _objective_names_tasks(self) -> Recipe:
        tasks = [task.name for task in self.dataset.tasks]
        unknown = sorted(set(self.funnel.objective) - set(tasks))
        if unknown:
            raise ValueError(f"funnel.objective names {unknown}, the tasks are {tasks}")
        unknown = sorted(set(self.contracts.label_rates.share) - set(tasks))
        if unknown:
            raise ValueError(f"contracts.label_rates.share names {unknown}, the tasks are {tasks}")
        if self.funnel.light_k > self.funnel.candidate_k:
            raise ValueError(
                f"funnel.light_k = {self.funnel.light_k} must not exceed candidate_k = {self.funnel.candidate_k}"
            )
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Recipe:
        counted, columns = self.sources.counted, list(self.dataset.context.columns)
        if counted is not None and counted.segment is not None and counted.segment not in columns:
            raise ValueError(
                f"sources.trending.segment = {counted.segment!r} must be one of dataset.context.columns = {columns}"
            )
        try:
            self.sources.mixture.length(self.funnel.candidate_k)
            if self.sources.blends and self.sources.quotas != "learned":
                self.sources.counts(self.funnel.candidate_k)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self
