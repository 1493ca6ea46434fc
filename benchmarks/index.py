"""The index over a million clustered vectors: choice, recall, memory and latency, with and without filters.

    python -m benchmarks.index [--items 1e6] [--dim 64] [-k 1000] [--memory-limit-mb MB] [--kinds KIND ...]

Vectors of unit length scatter around the centres of clusters. The clusters have very unequal sizes, and their
centres form groups. Queries are drawn from the same clusters. Each query is searched alone, in one thread,
through the ``ItemSearch`` that serves. Filters allow a share of the items: at random, or by whole clusters
(``category``), so that allowed items may lie far from the query. Recall is against an exact search among
the allowed items.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from dataclasses import asdict
from typing import Any

import faiss
import numpy as np

from benchmarks.environment import describe
from stages.candidate.config import IndexConfig
from stages.candidate.index.choice import choose_index, recalls
from stages.candidate.index.search import ItemSearch

SELECTIVITIES = (0.5, 0.05, 0.005)
WARM_UP = 20
_NOTHING = [np.empty(0, dtype=np.int64)]


def make_vectors(n: int, dim: int, seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 unit vectors ``[n, dim]`` and the cluster of each; the clusters do not depend on ``seed``."""
    world = np.random.default_rng(0)
    n_clusters = 2000
    groups = world.normal(size=(40, dim))
    centres = groups[world.integers(0, 40, n_clusters)] + 0.8 * world.normal(size=(n_clusters, dim))
    sizes = world.pareto(1.2, n_clusters) + 0.2
    rng = np.random.default_rng(seed)
    cluster = rng.choice(n_clusters, n, p=sizes / sizes.sum())
    vectors = np.empty((n, dim), dtype=np.float32)
    for start in range(0, n, 1 << 17):
        rows = slice(start, start + (1 << 17))
        noise = rng.normal(size=vectors[rows].shape)
        block = centres[cluster[rows]] + spread * noise
        vectors[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors, cluster


def allowed_masks(cluster: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Return bool masks that allow about ``share`` of the items, at random and by whole clusters."""
    rng = np.random.default_rng(7)
    sizes = np.bincount(cluster)
    order = rng.permutation(len(sizes))
    order = order[sizes[order] <= share * len(cluster)]  # no cluster may exceed the share alone
    taken = order[np.cumsum(sizes[order]) <= share * len(cluster) * 1.02]
    return {"random": rng.random(len(cluster)) < share, "category": np.isin(cluster, taken)}


def measure(
    search: ItemSearch, vectors: np.ndarray, queries: np.ndarray, k: int, mask: np.ndarray | None
) -> dict[str, float]:
    """Return recall@k against exact search among the allowed items, and the latency of single queries."""
    ids = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    k = min(k, len(ids))
    exact = ids[faiss.knn(queries, np.ascontiguousarray(vectors[ids]), k, metric=faiss.METRIC_INNER_PRODUCT)[1]]
    found, taken = [], []
    for number, query in enumerate(np.concatenate([queries[:WARM_UP], queries])):
        started = time.perf_counter()
        answer = search.search(query[None], k, _NOTHING, [mask])[0]
        if number >= WARM_UP:
            taken.append((time.perf_counter() - started) * 1000)
            found.append(answer.ids)
    return {
        "allowed": len(ids),
        "recall": round(float(recalls(found, exact).mean()), 4),
        "p50_ms": round(float(np.percentile(taken, 50)), 3),
        "p99_ms": round(float(np.percentile(taken, 99)), 3),
    }


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("-k", type=int, default=1000, help="items a query, as funnel.candidate_k")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.6, help="scatter around the centres")
    parser.add_argument("--memory-limit-mb", type=float, default=None)
    parser.add_argument("--kinds", nargs="*", default=())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    vectors, cluster = make_vectors(int(options.items), options.dim, 1, options.spread)
    tuning, _ = make_vectors(options.queries, options.dim, 2, options.spread)
    queries, _ = make_vectors(options.queries, options.dim, 3, options.spread)
    config = IndexConfig.model_validate(
        {"kinds": options.kinds, "recall_k": options.k, "memory_limit_mb": options.memory_limit_mb}
    )
    started = time.perf_counter()
    chosen = choose_index(vectors, np.arange(len(vectors)), tuning, config)
    seconds = time.perf_counter() - started
    search = ItemSearch(chosen.index, vectors, chosen.trial.refine)
    results: dict[str, Any] = {"unfiltered": measure(search, vectors, queries, options.k, None)}
    for share in SELECTIVITIES:
        for kind, mask in allowed_masks(cluster, share).items():
            name = f"{kind} {share:.1%}"
            results[name] = measure(search, vectors, queries, options.k, mask)
            print(name, results[name], flush=True)
    report = {
        "benchmark": "index",
        "items": len(vectors),
        "dim": options.dim,
        "k": options.k,
        "queries": options.queries,
        "spread": options.spread,
        **describe("faiss-cpu", "numpy"),
        "choice_seconds": round(seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "chosen": asdict(chosen.trial),
        "tried": [asdict(trial) for trial in chosen.tried],
        "results": results,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
