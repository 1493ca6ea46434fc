"""Configuration of the candidate stage: the model, its training, the index and retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.contracts.config import Config
from stages.features.config import FeatureConfig

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


class CandidateConfig(Config):
    """The two-tower model and how it is trained.

    Attributes:
        dimension: D, width of the item embeddings and of the towers' outputs.
        category_dimension: width of the category embeddings.
        hidden: widths of each tower's hidden layers; empty makes the towers linear.
        shared_item_table: one item table for histories and for candidates; otherwise two.
        temperature: divides the cosine of the two vectors before the softmax.
        item_id_dropout: probability of hiding an item's id in training, so that the rest of the
            towers learns to speak for items without training rows.
        history_dropout: probability of leaving an item out of a training history.
        use_empty_histories: train also on a user's first events, whose history is empty.
        logq_correction: subtract the log of the sampling probability from the logits.
        uniform_negatives: negatives a step drawn uniformly from the catalogue and shared by the
            batch, beside the in-batch ones. At least the catalogue's size means every item.
        mask_history: an item of a user's history is no negative for that user.
        epochs: passes over the examples.
        batch_size: examples a step, over all ranks; cut where the data is smaller.
        sparse_optimizer: the fused optimizer of the embedding tables; fbgemm has no fused Adam on the CPU.
        sparse_learning_rate: its learning rate.
        dense_learning_rate: Adam's learning rate for the towers.
        weight_decay: decoupled weight decay of the dense part.
        sharding: how tables are laid over the ranks; ``auto`` leaves it to the planner, among the kinds
            whose result does not depend on the number of ranks. Column-wise needs ``adagrad``: row-wise
            Adagrad keeps one sum a row, of which each rank would see its columns only.
        n_processes: ranks that torchrun starts.
        device: ``auto`` takes CUDA where there is one device a rank, else the CPU.
        threads: threads a rank on the CPU.
        timeout_s: seconds after which a collective that waits for another rank gives up.
        seed: of the initial weights, the order of examples and the sampling.
        precision: of the towers' layers on CUDA (autocast); tables, loss and optimizers keep float32. On
            the CPU everything is float32, whatever is set.
        prefetch: batches prepared ahead by a thread; 0 prepares each when it is needed.
        checkpoint_every_steps: steps between two checkpoints inside an epoch; 0 = at its end only.
        keep_checkpoints: the newest so many are kept until the step is finished.
        warm_start: directory of a finished ``train_candidate`` step, or of a release that was made of one,
            to go on from on grown tables; None starts anew.
        warm_start_epochs: passes over the examples in that case, in place of ``epochs``.
    """

    dimension: int = Field(default=64, ge=4, le=1024, multiple_of=4)
    category_dimension: int = Field(default=16, ge=4, le=1024, multiple_of=4)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    shared_item_table: bool = True
    temperature: Positive = 0.15
    item_id_dropout: Probability = 0.1
    history_dropout: Probability = 0.1
    use_empty_histories: bool = False
    logq_correction: bool = True
    uniform_negatives: int = Field(default=1024, ge=0)
    mask_history: bool = True
    epochs: int = Field(default=8, ge=1)
    batch_size: int = Field(default=512, ge=2)
    sparse_optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    sparse_learning_rate: Positive = 0.1
    dense_learning_rate: Positive = 1e-3
    weight_decay: float = Field(default=0.0, ge=0.0)
    sharding: Literal["auto", "table_wise", "column_wise", "row_wise", "data_parallel"] = "auto"
    n_processes: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    timeout_s: int = Field(default=300, ge=1)
    seed: int = Field(default=42, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    prefetch: int = Field(default=2, ge=0, le=64)
    checkpoint_every_steps: int = Field(default=0, ge=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    warm_start: str | None = None
    warm_start_epochs: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _columns_need_adagrad(self) -> CandidateConfig:
        if self.sharding == "column_wise" and self.sparse_optimizer != "adagrad":
            raise ValueError(
                f"sharding = 'column_wise' needs sparse_optimizer = 'adagrad', found {self.sparse_optimizer!r}, whose "
                "one sum a row would be of each rank's columns only; or use table_wise, row_wise or data_parallel"
            )
        return self

    @property
    def passes(self) -> int:
        """Return the epochs to train."""
        return self.epochs if self.warm_start is None else self.warm_start_epochs


class TrainCandidateConfig(Config):
    """Configuration of the step ``train_candidate``.

    Attributes:
        warm_start_version: filled in: tower version of the model at ``candidate.warm_start``.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    warm_start_version: str = ""


class IndexConfig(Config):
    """The nearest-neighbour index over the item vectors.

    Attributes:
        exact_below: with fewer items than this the index is exact.
        n_lists: inverted lists of the approximate index, or None for about 4 sqrt(N).
        codec: how the approximate index stores vectors: 8 bits a dimension, or as they are.
        n_probe: lists searched at first; doubled until the recall is reached.
        wanted_recall: recall@recall_k against exact search that the index must reach.
        recall_k: neighbours compared.
        n_queries: queries that measure the recall, at most.
        seed: of the sample of queries and of the clustering.
    """

    exact_below: int = Field(default=50_000, ge=0)
    n_lists: int | None = Field(default=None, ge=1)
    codec: Literal["sq8", "flat"] = "sq8"
    n_probe: int = Field(default=8, ge=1)
    wanted_recall: float = Field(default=0.95, gt=0.0, le=1.0)
    recall_k: int = Field(default=100, ge=1)
    n_queries: int = Field(default=1000, ge=1)
    seed: int = Field(default=42, ge=0)


class RetrieveConfig(Config):
    """Configuration of the step ``retrieve``.

    Attributes:
        candidate_k: items retrieved for each request.
        block: requests answered at a time; bounds the memory.
        features: must equal the configuration that the tower was trained with.
    """

    candidate_k: int = Field(default=200, ge=1)
    block: int = Field(default=1024, ge=1)
    features: FeatureConfig = FeatureConfig()
