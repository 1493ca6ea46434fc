"""The kinds of index that may be tried: what they cost in memory, and how they are made.

Shapes: B queries, D dimensions, N vectors, S training vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from stages.candidate.config import IndexConfig, IndexKind
from stages.candidate.index.device import IndexDevice
from stages.contracts.progress import progress, progress_of

_POINTS_A_LIST = 39
"""With fewer training points a list, Faiss's clusters are poor (its own threshold)."""
_GRAPH_FROM = 1 << 14
"""From this number of lists on, a graph finds the nearest lists quicker than comparing with all."""
_LINKS, _BUILD_EFFORT = 32, 80
"""M and efConstruction of the graph (Malkov and Yashunin, arXiv:1603.09320)."""
_ROTATIONS = 10
"""Iterations that fit the rotation before product codes; Faiss's 50 take minutes."""
_BLOCK = 1 << 17
_GRAPH_BLOCK = 1 << 13
"""Vectors that are added at a time, and shown: a graph takes minutes."""


@dataclass(frozen=True)
class IndexType:
    """One kind of index for a given catalogue.

    Attributes:
        kind: as configured.
        factory: Faiss's name of it.
        n_lists: inverted lists, 0 without.
        estimate: expected bytes.
        refine: values to try; refine * k items are fetched, and scored again by their whole vectors.
    """

    kind: IndexKind
    factory: str
    n_lists: int
    estimate: int
    refine: tuple[int, ...] = (1,)


def index_type(kind: IndexKind, n_items: int, dim: int, config: IndexConfig) -> IndexType:
    """Return how ``kind`` would look for N = ``n_items`` vectors of D = ``dim`` dimensions."""
    if kind == "flat":
        return IndexType(kind, "Flat", 0, n_items * (4 * dim + 8))
    if kind == "hnsw":
        return IndexType(kind, f"HNSW{_LINKS},Flat", 0, n_items * (4 * dim + 8 * _LINKS + 24))
    wanted = config.n_lists or round(4 * n_items**0.5)
    n_lists = max(1, min(wanted, n_items // _POINTS_A_LIST))
    lists = f"IVF{n_lists}" + (f"_HNSW{_LINKS}" if n_lists >= _GRAPH_FROM else "")
    centres = n_lists * (4 * dim + 16)
    if kind == "ivf_flat":
        return IndexType(kind, f"{lists},Flat", n_lists, n_items * (4 * dim + 8) + centres)
    if kind == "ivf_sq8":
        return IndexType(kind, f"{lists},SQ8", n_lists, n_items * (dim + 8) + centres)
    parts = dim // 4
    codebooks = 4 * dim * (256 + dim)
    factory = f"OPQ{parts},{lists},PQ{parts}"
    return IndexType(kind, factory, n_lists, n_items * (parts + 8) + centres + codebooks, (2, 4, 8))


def kinds_to_try(n_items: int, dim: int, config: IndexConfig) -> tuple[list[IndexType], list[IndexType]]:
    """Return the types to build, and those left out because they would exceed the memory limit."""
    names: tuple[IndexKind, ...] = config.kinds
    if not names and n_items < config.exact_below:
        names = ("flat",)
    elif not names:
        graph: tuple[IndexKind, ...] = ("hnsw",) if n_items < config.hnsw_below else ()
        names = ("flat", "ivf_flat", "ivf_sq8", *graph, "ivf_pq")
    types = [index_type(name, n_items, dim, config) for name in names]
    limit = float("inf") if config.memory_limit_mb is None else config.memory_limit_mb * 1e6
    fitting = [entry for entry in types if entry.estimate <= limit]
    lighter = any(entry.kind in ("ivf_flat", "ivf_sq8") for entry in fitting)
    if not config.kinds and lighter:
        fitting = [entry for entry in fitting if entry.kind != "ivf_pq"]
    return fitting, [entry for entry in types if entry.estimate > limit]


def make_index(
    chosen: IndexType, vectors_ND: np.ndarray, ids_N: np.ndarray, config: IndexConfig, device: IndexDevice
) -> Any:
    """Train and fill an index; equal arguments give equal lists and codes.

    Args:
        chosen: what to make.
        vectors_ND: float32.
        ids_N: int64, ids that the index returns.
        config: bounds and seeds the training.
        device: where vectors are clustered and assigned.
    """
    dim = vectors_ND.shape[1]
    index: Any = faiss.index_factory(dim, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    if not chosen.n_lists:
        return _filled(index, vectors_ND, ids_N, chosen.factory)
    ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.cp.seed = config.seed
    ivf.cp.max_points_per_centroid = config.points_a_list
    if chosen.kind == "ivf_pq":
        ivf.pq.cp.seed = config.seed
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter = _ROTATIONS
    sample_SD = _training_sample(vectors_ND, chosen.n_lists, config)
    _find_lists(index, ivf, sample_SD, device.flat(dim), chosen.factory)
    centres = device.flat(dim)
    centres.add(ivf.quantizer.reconstruct_n(0, ivf.nlist))
    with progress_of(f"build_index: fill {chosen.factory}", len(vectors_ND), "item") as advance:
        for start in range(0, len(vectors_ND), _BLOCK):
            block = np.ascontiguousarray(vectors_ND[start : start + _BLOCK], dtype=np.float32)
            block = index.chain.at(0).apply(block) if chosen.kind == "ivf_pq" else block
            nearest = np.ascontiguousarray(centres.search(block, 1)[1][:, 0])
            ids = np.ascontiguousarray(ids_N[start : start + _BLOCK], dtype=np.int64)
            pointers = faiss.swig_ptr(block), faiss.swig_ptr(ids), faiss.swig_ptr(nearest)
            ivf.add_core(len(block), *pointers)
            advance(len(block))
    index.ntotal = ivf.ntotal
    return index


def _find_lists(index: Any, ivf: Any, sample_SD: np.ndarray, comparing: Any, factory: str) -> None:
    """Train an index as ``index.train(sample_SD)`` does, with an iteration of the k-means at a time.

    Faiss says nothing while it trains. Each of these iterations begins with the centres of the one before, and Faiss
    clusters no more once the lists have their centres.

    Args:
        index: the whole of it.
        ivf: its inverted lists.
        sample_SD: float32.
        comparing: an empty index for inner products, see ``IndexDevice.flat``.
        factory: Faiss's name of the index.
    """
    points_SD = sample_SD
    if hasattr(index, "chain"):
        rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.train(sample_SD)
        points_SD = rotation.apply(sample_SD)
    clustering = faiss.Clustering(points_SD.shape[1], ivf.nlist, ivf.cp)
    n_iterations, clustering.niter = clustering.niter, 1
    for _ in progress(range(n_iterations), f"build_index: train {factory}", unit="iteration"):
        clustering.train(points_SD, comparing)
    ivf.quantizer.add(faiss.vector_to_array(clustering.centroids).reshape(ivf.nlist, -1))
    index.train(sample_SD)


def _filled(index: Any, vectors_ND: np.ndarray, ids_N: np.ndarray, factory: str) -> Any:
    """Fill a flat index or a graph; both number their vectors from 0."""
    if isinstance(index, faiss.IndexHNSWFlat):
        index.hnsw.efConstruction = _BUILD_EFFORT
    is_named = not np.array_equal(ids_N, np.arange(len(ids_N)))
    filled = faiss.IndexIDMap2(index) if is_named else index
    with progress_of(f"build_index: fill {factory}", len(vectors_ND), "item") as advance:
        for start in range(0, len(vectors_ND), _GRAPH_BLOCK):
            block_BD = np.ascontiguousarray(vectors_ND[start : start + _GRAPH_BLOCK], dtype=np.float32)
            if is_named:
                filled.add_with_ids(block_BD, np.ascontiguousarray(ids_N[start : start + _GRAPH_BLOCK], dtype=np.int64))
            else:
                filled.add(block_BD)
            advance(len(block_BD))
    return filled


def _training_sample(vectors_ND: np.ndarray, n_lists: int, config: IndexConfig) -> np.ndarray:
    """Return float32 ``[S, D]``, at most ``points_a_list`` vectors a list and at least 10,000 for codes."""
    size = min(len(vectors_ND), max(n_lists * config.points_a_list, 10_000))
    rows = np.sort(np.random.default_rng(config.seed).choice(len(vectors_ND), size, replace=False))
    return np.ascontiguousarray(vectors_ND[rows], dtype=np.float32)
