"""Configuration of the candidate stage: the model, its training, the index and retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.manifest import RECALL_FLOOR
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
        batch_size: examples a rank and step; cut where the data is smaller.
        sparse_optimizer: the fused optimizer of the embedding tables; fbgemm has no fused Adam on the CPU.
        sparse_learning_rate: its learning rate.
        dense_learning_rate: Adam's learning rate for the towers.
        weight_decay: decoupled weight decay of the dense part.
        sharding: how tables are laid over the ranks; ``auto`` leaves it to the planner. Row-wise needs CUDA.
        n_processes: ranks that torchrun starts.
        device: ``auto`` takes CUDA where there is one device a rank, else the CPU.
        threads: threads a rank on the CPU.
        timeout_s: seconds after which a collective that waits for another rank gives up.
        seed: of the initial weights, the order of examples and the sampling.
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
    sharding: Literal["auto", "table_wise", "column_wise", "row_wise"] = "auto"
    n_processes: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    timeout_s: int = Field(default=300, ge=1)
    seed: int = Field(default=42, ge=0)


class TrainCandidateConfig(Config):
    """Configuration of the step ``train_candidate``."""

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()


IndexKind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"]


class IndexConfig(Config):
    """The nearest-neighbour index over the item vectors, chosen by measurement.

    Every kind that may fit ``memory_limit_mb`` is built, searched at the smallest effort that reaches
    ``wanted_recall``, and timed; the quickest is published.

    Attributes:
        kinds: what is tried: ``flat`` compares with every vector; ``ivf_*`` are inverted lists over
            k-means clusters whose vectors are whole, of 8 bits a dimension, or product codes of 2 bits
            a dimension behind a rotation (OPQ); ``hnsw`` is a graph. Empty: as the size suggests.
        exact_below: with fewer items than this only ``flat`` is tried, unless ``kinds`` says otherwise.
        hnsw_below: with at least this many items the graph is not tried unless ``kinds`` names it: it
            takes minutes to build.
        n_lists: inverted lists, or None for about 4 sqrt(N).
        points_a_list: training vectors for each list, at most; bounds the training's time and memory.
        memory_limit_mb: 10^6 bytes that the index may take; None = no limit. Product codes are tried
            only where the other lists exceed it.
        wanted_recall: recall@recall_k against exact search that the index must reach, by the lower bound of the
            mean over the queries (95%, one-sided).
        recall_k: neighbours compared. A run sets it to ``funnel.candidate_k``, what is served.
        n_queries: queries that measure the recall, at most.
        n_timed: of these are timed, one at a time in one thread.
        device: trains lists and searches exactly on CUDA; ``auto`` where Faiss sees a GPU. The index
            itself always serves from the CPU.
        seed: of the samples and of the clustering.
    """

    kinds: tuple[IndexKind, ...] = ()
    exact_below: int = Field(default=50_000, ge=0)
    hnsw_below: int = Field(default=200_000, ge=0)
    n_lists: int | None = Field(default=None, ge=1)
    points_a_list: int = Field(default=64, ge=39, le=256)
    memory_limit_mb: Positive | None = None
    wanted_recall: float = Field(default=RECALL_FLOOR, ge=RECALL_FLOOR, le=1.0)
    recall_k: int = Field(default=100, ge=1)
    n_queries: int = Field(default=1000, ge=1)
    n_timed: int = Field(default=200, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
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
