"""The step ``build_index``: a Faiss index whose recall was measured before anyone may use it.

Items that the item policy withholds from every request are not in it.

Shapes: B queries, D dimensions, L history length, N indexed items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from stages.candidate.config import IndexConfig
from stages.candidate.data import latest_inputs
from stages.candidate.scorer import INDEX_FILE, INDEX_JSON, TOWER_FILE, TOWER_JSON, UserTower, load_vectors
from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.features.config import FeatureConfig

_POINTS_A_LIST = 39
"""Fewer training points a list than this make Faiss's clustering poor (its own threshold)."""


def build_index(config: IndexConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Index the item vectors for maximum inner product.

    Args:
        config: exact or approximate, and the recall to reach.
        inputs: ``snapshot`` and ``candidate``.
        directory: receives ``index.faiss`` and ``index.json``.

    Raises:
        DataError: if the approximate index does not reach ``wanted_recall``; nothing is published then.
    """
    summary = read_json(inputs["candidate"] / TOWER_JSON)
    all_vectors_ND = np.ascontiguousarray(load_vectors(inputs["candidate"], summary))
    snapshot = Snapshot(inputs["snapshot"])
    ids_N = snapshot.items().recommendable()
    if len(ids_N) == 0:
        raise EmptyDatasetError("index: the item policy (dataset.items) withholds every item; nothing can be indexed")
    vectors_ND = all_vectors_ND[ids_N]
    if len(vectors_ND) < config.exact_below:
        index, recall, n_queries = exact_index(vectors_ND), 1.0, 0
        if len(ids_N) < len(all_vectors_ND):
            index = with_ids(vectors_ND, ids_N)
    else:
        queries_BD = measuring_queries(snapshot, inputs["candidate"], summary, all_vectors_ND, config)
        index = approximate_index(vectors_ND, ids_N, config)
        recall, n_queries = tune_probes(index, vectors_ND, ids_N, queries_BD, config), len(queries_BD)
    faiss.write_index(index, str(directory / INDEX_FILE))
    described = {
        "type": "exact" if n_queries == 0 else f"IVF{index.nlist},{config.codec.upper()}",
        "n_items": len(all_vectors_ND),
        "n_indexed": len(vectors_ND),
        "dim": vectors_ND.shape[1],
        "tower_version": summary["tower_version"],
        "index_sha256": sha256_file(directory / INDEX_FILE),
        "nprobe": getattr(index, "nprobe", 0),
        "recall": recall,
        "recall_k": min(config.recall_k, len(vectors_ND)),
        "n_queries": n_queries,
    }
    write_json(directory / INDEX_JSON, described)
    names = ("n_items", "n_indexed", "nprobe", "recall", "recall_k", "n_queries")
    return {name: float(described[name]) for name in names}, {
        name: described[name] for name in ("type", "tower_version")
    }


def exact_index(vectors_ND: np.ndarray) -> Any:
    """Return an index that compares with every vector."""
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(vectors_ND)
    return index


def with_ids(vectors_ND: np.ndarray, ids_N: np.ndarray) -> Any:
    """Return an exact index that answers with ``ids_N`` instead of row numbers."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors_ND.shape[1]))
    index.add_with_ids(vectors_ND, ids_N)
    return index


def approximate_index(vectors_ND: np.ndarray, ids_N: np.ndarray, config: IndexConfig) -> Any:
    """Return inverted lists over k-means clusters, searched ``n_probe`` lists at a time."""
    n_items, dim = vectors_ND.shape
    wanted = config.n_lists or round(4 * n_items**0.5)
    n_lists = max(1, min(wanted, n_items // _POINTS_A_LIST))
    quantizer = faiss.IndexFlatIP(dim)
    index: Any
    if config.codec == "sq8":
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, n_lists, kind, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFFlat(quantizer, dim, n_lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = config.seed
    index.train(vectors_ND)
    index.add_with_ids(vectors_ND, ids_N)
    index.nprobe = min(config.n_probe, n_lists)
    return index


def tune_probes(
    index: Any, vectors_ND: np.ndarray, ids_N: np.ndarray, queries_BD: np.ndarray, config: IndexConfig
) -> float:
    """Double ``nprobe`` until the recall is reached and return that recall.

    Raises:
        DataError: if searching every list does not reach it either.
    """
    k = min(config.recall_k, len(vectors_ND))
    exact_BK = ids_N[exact_index(vectors_ND).search(queries_BD, k)[1]]
    while True:
        recall = recall_at(index.search(queries_BD, k)[1], exact_BK)
        if recall >= config.wanted_recall:
            return recall
        if index.nprobe >= index.nlist:
            raise DataError(
                f"index: recall@{k} = {recall:.4f} with all {index.nlist} lists searched, wanted_recall = "
                f"{config.wanted_recall}; set codec = 'flat' or raise exact_below above {len(vectors_ND)}"
            )
        index.nprobe = min(2 * index.nprobe, index.nlist)


def recall_at(found_BK: np.ndarray, exact_BK: np.ndarray) -> float:
    """Return the mean share of each query's exact neighbours that were found."""
    shares = [np.isin(exact, found).mean() for found, exact in zip(found_BK, exact_BK, strict=True)]
    return float(np.mean(shares))


def measuring_queries(
    snapshot: Snapshot, candidate_dir: Path, summary: dict[str, Any], vectors_ND: np.ndarray, config: IndexConfig
) -> np.ndarray:
    """Return float32 ``[B, D]`` vectors of users' histories, as serving will ask.

    Where the candidate part holds no history at all, item vectors stand in for queries.
    """
    features = FeatureConfig.model_validate(summary["config"]["features"])
    rng = np.random.default_rng(config.seed)
    try:
        inputs = latest_inputs(snapshot, features, len(vectors_ND), config.n_queries, rng)
    except EmptyDatasetError:
        rows = rng.choice(len(vectors_ND), min(config.n_queries, len(vectors_ND)), replace=False)
        return np.ascontiguousarray(vectors_ND[rows])
    queries = UserTower(candidate_dir / TOWER_FILE).embed(inputs)
    return queries.reshape(-1, queries.shape[-1])  # each taste asks for itself
