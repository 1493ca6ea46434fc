"""Configuration of the two-tower model, and of the step that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import model_validator

from stages.candidate.config.sections import (
    NO_PART_OF_THE_RESULT,
    AverageConfig,
    CheckpointsConfig,
    DistributedConfig,
    LossConfig,
    ModelConfig,
    NegativesConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainingConfig,
    WarmStartConfig,
)
from stages.contracts.config import Config
from stages.features.config import FeatureConfig

_RENAMED = {
    "encoder": "model.encoder",
    "training": "training.mode",
    "dimension": "model.dimension",
    "normalisation": "model.normalisation",
    "tastes": "model.tastes",
    "blocks": "model.blocks",
    "heads": "model.heads",
    "dropout": "model.dropout",
    "time_bias": "model.time_bias",
    "distance_bias": "model.distance_bias",
    "input_scale": "model.input_scale",
    "user_id": "model.user_id",
    "user_id_dropout": "training.user_id_dropout",
    "context": "model.context",
    "category_dimension": "model.category_dimension",
    "word_buckets": "model.word_buckets",
    "word_dimension": "model.word_dimension",
    "item_age": "model.item_age",
    "hidden": "model.hidden",
    "shared_item_table": "model.shared_item_table",
    "initial_deviation": "model.initial_deviation",
    "temperature": "loss.temperature",
    "item_id_dropout": "training.item_id_dropout",
    "history_dropout": "training.history_dropout",
    "use_empty_histories": "training.use_empty_histories",
    "loss": "loss.kind",
    "logq_correction": "negatives.logq_correction",
    "in_batch_negatives": "negatives.in_batch",
    "uniform_negatives": "negatives.shared",
    "negative_sampling": "negatives.sampling",
    "popularity_power": "negatives.popularity_power",
    "mask_history": "negatives.mask_history",
    "gbce_calibration": "loss.gbce_calibration",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "windows_by_length": "training.windows_by_length",
    "sparse_optimizer": "optimizer.sparse",
    "sparse_learning_rate": "optimizer.sparse_learning_rate",
    "dense_learning_rate": "optimizer.dense_learning_rate",
    "dense_beta2": "optimizer.dense_beta2",
    "weight_decay": "optimizer.weight_decay",
    "clip_norm": "optimizer.clip_norm",
    "schedule": "schedule.kind",
    "warmup_steps": "schedule.warmup_steps",
    "final_rate": "schedule.final_rate",
    "average": "average.weights",
    "average_decay": "average.decay",
    "sharding": "distributed.sharding",
    "item_parts": "model.item_parts",
    "n_processes": "distributed.n_processes",
    "device": "distributed.device",
    "threads": "distributed.threads",
    "timeout_s": "distributed.timeout_s",
    "seed": "training.seed",
    "precision": "training.precision",
    "prefetch": "distributed.prefetch",
    "checkpoint_every_steps": "checkpoints.every_steps",
    "keep_checkpoints": "checkpoints.keep",
    "warm_start": "warm_start.path",
    "warm_start_epochs": "warm_start.epochs",
}
"""Former keys, from when the section was flat, and the present ones."""
_CCL = "the loss 'ccl' was removed: use 'softmax' and leave this key out"
_REMOVED = {
    "correction": "negatives are always corrected as with 'mixture', by an item's expected count among in-batch and "
    "shared negatives: leave this key out",
    "ccl_margin": _CCL,
    "ccl_negative_weight": _CCL,
}


class CandidateConfig(Config):
    """The two-tower model and how it is trained.

    Attributes:
        model: the towers and their tables.
        loss: what is minimised.
        negatives: what a positive is compared with.
        training: examples, batches, passes, what is hidden, and the seed.
        optimizer: of the tables and of the towers.
        schedule: of both learning rates.
        average: moving average of the weights.
        distributed: ranks, devices and how tables are distributed over them; does not change the result.
        checkpoints: when checkpoints are written; does not change the result.
        warm_start: the earlier model to start from.
    """

    renamed: ClassVar[Mapping[str, str]] = _RENAMED
    removed: ClassVar[Mapping[str, str]] = _REMOVED

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    negatives: NegativesConfig = NegativesConfig()
    training: TrainingConfig = TrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    average: AverageConfig = AverageConfig()
    distributed: Annotated[DistributedConfig, NO_PART_OF_THE_RESULT] = DistributedConfig()
    checkpoints: Annotated[CheckpointsConfig, NO_PART_OF_THE_RESULT] = CheckpointsConfig()
    warm_start: WarmStartConfig = WarmStartConfig()

    @property
    def passes(self) -> int:
        """Return the epochs to train."""
        return self.training.epochs if self.warm_start.path is None else self.warm_start.epochs

    @model_validator(mode="after")
    def _columns_need_adagrad(self) -> CandidateConfig:
        if self.distributed.sharding == "column_wise" and self.optimizer.sparse != "adagrad":
            raise ValueError(
                f"distributed.sharding = 'column_wise' needs optimizer.sparse = 'adagrad', found "
                f"{self.optimizer.sparse!r}, with which each rank would sum over its own columns of a row only; or use "
                "table_wise, row_wise or data_parallel"
            )
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> CandidateConfig:
        if self.training.mode == "sequences" and self.model.encoder != "attention":
            raise ValueError(
                f"training.mode = 'sequences' with model.encoder = {self.model.encoder!r}: it needs model.encoder = "
                "'attention'"
            )
        return self


class TrainCandidateConfig(Config):
    """Configuration of the step ``train_candidate``.

    Attributes:
        warm_start_version: tower version of the model at ``candidate.warm_start.path``; filled in.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    warm_start_version: str = ""
