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
from stages.candidate.config.steps import FoldInConfig, IndexConfig, IndexKind, RefreshVectorsConfig, RetrieveConfig
from stages.candidate.config.two_tower import CandidateConfig, TrainCandidateConfig

__all__ = [
    "GIVES_SHAPE",
    "NO_PART_OF_THE_RESULT",
    "AverageConfig",
    "CandidateConfig",
    "CheckpointsConfig",
    "DistributedConfig",
    "EarlyStoppingConfig",
    "FoldInConfig",
    "IndexConfig",
    "IndexKind",
    "LossConfig",
    "ModelConfig",
    "NegativesConfig",
    "OptimizerConfig",
    "RefreshVectorsConfig",
    "RetrieveConfig",
    "ScheduleConfig",
    "TrainCandidateConfig",
    "TrainingConfig",
    "WarmStartConfig",
]
