"""Configuration of the steps beside the training: index and retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.summaries import RECALL_FLOOR
from stages.features.config import FeatureConfig

Positive = Annotated[float, Field(gt=0.0)]


FEWEST_KNOWN = 20
"""Items of the training that a regression of ``fold_in`` needs; with fewer, a smaller number of touches counts."""
IndexKind = Literal["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"]


class IndexConfig(Config):
    """The nearest-neighbour index over the item vectors, chosen by measurement.

    Every kind that may fit ``memory_limit_mb`` is built, searched at the smallest effort that reaches
    ``wanted_recall``, and timed; the quickest is published.

    Attributes:
        kinds: kinds to try. ``flat`` compares with every vector. ``ivf_*`` are inverted lists over k-means
            clusters: ``ivf_flat`` holds whole vectors, ``ivf_sq8`` 8 bits a dimension, ``ivf_pq`` product codes of
            2 bits a dimension behind a rotation (OPQ). ``hnsw`` is a graph. Empty: chosen by the number of items.
        exact_below: with fewer items than this only ``flat`` is tried, unless ``kinds`` says otherwise.
        hnsw_below: with at least this many items the graph is not tried unless ``kinds`` contains it, because it
            takes minutes to build.
        n_lists: inverted lists, or None for about 4 sqrt(N).
        points_a_list: training vectors for each list, at most; bounds the training's time and memory.
        memory_limit_mb: 10^6 bytes that the index may take; None = no limit. Product codes are tried
            only where the other lists exceed it.
        wanted_recall: recall@recall_k against exact search that the index must reach. It is compared with the lower
            confidence bound of the mean over the queries (95%, one-sided).
        recall_k: neighbours compared. A run sets it to ``funnel.candidate_k``, what is served.
        n_queries: queries that measure the recall, at most.
        n_timed: how many of these queries are timed, one at a time in one thread.
        device: where lists are trained and exact searches run; ``auto`` takes CUDA where Faiss sees a GPU. The index
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


class FoldInConfig(Config):
    """How a refresh embeds items that were touched but not trained.

    Attributes:
        touches: newest touches of an item that make its vector, at most; 0 embeds such items by their content alone.
        known_items: items of the training that are learnt from, at most.
        seed: of the choice of these.
    """

    touches: int = Field(default=64, ge=0)
    known_items: int = Field(default=2000, ge=FEWEST_KNOWN)
    seed: int = Field(default=42, ge=0)


class RefreshVectorsConfig(Config):
    """Configuration of ``refresh_vectors``; the release and the snapshot define everything else.

    Attributes:
        fold_in: how items that were touched after the training are embedded.
    """

    fold_in: FoldInConfig = FoldInConfig()


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
