"""Configuration of the candidate stage: the two-tower and its training, the index and retrieval."""

from stages.candidate.config.sections import (
    GIVES_SHAPE,
    NO_PART_OF_THE_RESULT,
    AverageConfig,
    CheckpointsConfig,
    DistributedConfig,
    EarlyStoppingConfig,
    LossConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    WarmStartConfig,
)
from stages.candidate.config.steps import IndexConfig, IndexKind, RetrieveConfig
from stages.candidate.config.two_tower import CandidateConfig, TrainCandidateConfig

__all__ = [
    "GIVES_SHAPE",
    "NO_PART_OF_THE_RESULT",
    "AverageConfig",
    "CandidateConfig",
    "CheckpointsConfig",
    "DistributedConfig",
    "EarlyStoppingConfig",
    "IndexConfig",
    "IndexKind",
    "LossConfig",
    "ModelConfig",
    "NegativesConfig",
    "OptimizerConfig",
    "RetrieveConfig",
    "ScheduleConfig",
    "TrainCandidateConfig",
    "TrainingConfig",
    "WarmStartConfig",
]
