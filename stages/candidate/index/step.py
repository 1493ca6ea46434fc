"""The step ``build_index``: a Faiss index, published only after its recall was measured.

Items that the item policy withholds from every request are not in it.

Shapes: B queries, D dimensions, L history length, N indexed items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np

from stages.candidate.config import IndexConfig
from stages.candidate.data.examples import latest_inputs
from stages.candidate.index.choice import choose_index
from stages.candidate.onnx_towers import UserTower
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.files import sha256_file
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.summaries import (
    INDEX_FILE,
    INDEX_JSON,
    TOWER_FILE,
    TOWER_JSON,
    VECTORS_FILE,
    IndexSummary,
    TowerSummary,
    load_vectors,
    read_summary,
)
from stages.features.config import FeatureConfig


def build_index(config: IndexConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Index the item vectors for maximum inner product, with the kind of index chosen by measurement.

    Args:
        config: what may be tried, the memory, and the recall to reach.
        inputs: ``snapshot`` and ``candidate``.
        directory: receives ``index.faiss`` and ``index.json``.

    Raises:
        ConfigError: if CUDA is wanted and Faiss sees no GPU.
        DataError: if no index reaches ``wanted_recall`` within the memory; nothing is published then.
        EmptyDatasetError: if no item may be recommended.
        ReleaseError: if the tower's files are not readable by this version.
    """
    summary = read_summary(inputs["candidate"] / TOWER_JSON, TowerSummary)
    vectors_MD = load_vectors(inputs["candidate"] / VECTORS_FILE, summary)
    snapshot = Snapshot(inputs["snapshot"])
    ids_N = snapshot.items().recommendable()
    if len(ids_N) == 0:
        raise EmptyDatasetError("index: the item policy (dataset.items) withholds every item; nothing can be indexed")
    queries_BD = measuring_queries(snapshot, inputs["candidate"], summary, vectors_MD, config)
    queries_BD = queries_BD.reshape(-1, vectors_MD.shape[1])[: config.n_queries]  # several tastes are several queries
    chosen = choose_index(vectors_MD, ids_N, queries_BD, config)
    faiss.write_index(chosen.index, str(directory / INDEX_FILE))
    described = {
        **{name: value for name, value in asdict(chosen.trial).items() if name != "outcome"},
        "n_items": len(vectors_MD),
        "n_indexed": len(ids_N),
        "dim": vectors_MD.shape[1],
        "tower_version": summary.tower_version,
        "item_vectors_sha256": summary.item_vectors_sha256,
        "index_sha256": sha256_file(directory / INDEX_FILE),
        "recall_k": min(config.recall_k, len(ids_N)),
        "n_queries": len(queries_BD),
        "device": chosen.device,
        "memory_limit_mb": config.memory_limit_mb,
        "wanted_recall": config.wanted_recall,
        "tried": [asdict(trial) for trial in chosen.tried],
    }
    IndexSummary.model_validate(described).write(directory / INDEX_JSON)
    names = (
        "n_items",
        "n_indexed",
        "recall",
        "recall_lower",
        "recall_k",
        "n_queries",
        "latency_ms",
        "memory_bytes",
        "build_seconds",
    )
    metrics = {name: float(described[name]) for name in names} | {
        name: float(value) for name, value in chosen.trial.parameters.items()
    }
    return metrics, {name: described[name] for name in ("type", "tower_version", "device")}


def measuring_queries(
    snapshot: Snapshot, candidate_dir: Path, summary: TowerSummary, vectors_ND: np.ndarray, config: IndexConfig
) -> np.ndarray:
    """Return float32 ``[B, D]`` vectors of users' histories, as queries of serving will be.

    If the candidate period holds no history at all, item vectors are used as queries.
    """
    features = FeatureConfig.model_validate(summary.config.features)
    rng = np.random.default_rng(config.seed)
    try:
        inputs = latest_inputs(snapshot, features, len(vectors_ND), config.n_queries, rng)
    except EmptyDatasetError:
        rows = rng.choice(len(vectors_ND), min(config.n_queries, len(vectors_ND)), replace=False)
        return np.ascontiguousarray(vectors_ND[rows])
    queries = UserTower(candidate_dir / TOWER_FILE).embed(inputs)
    return queries.reshape(-1, queries.shape[-1])  # each taste is a query of its own
