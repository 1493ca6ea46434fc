"""Pairs of items with nearly equal vectors, found through Faiss: candidates for duplicates.

Legend: N items, D dimensions, k neighbours, P pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from stages.candidate.config import IndexConfig
from stages.candidate.index.choice import choose_index
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.files import atomic_file
from stages.contracts.progress import progress
from stages.contracts.snapshot import Snapshot
from stages.contracts.summaries import TOWER_JSON, VECTORS_FILE, TowerSummary, read_summary

_BLOCK = 4096
_MEASURED = 512


def similar_pairs(
    vectors_ND: np.ndarray, threshold: float, neighbours: int, config: IndexConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of rows whose cosine is at least ``threshold``, the most similar first.

    Args:
        vectors_ND: finite; a vector of zeros is in no pair.
        threshold: smallest cosine, in (0, 1].
        neighbours: how many neighbours of a row are searched for. If a row has more copies, some pairs are found
            only from the other copies.
        config: exact search below ``exact_below`` rows; above it the index chosen by measurement, which reaches
            ``wanted_recall`` on a sample.

    Returns:
        first, second int64 ``[P]`` with first < second, each pair once; cosine float32 ``[P]``.

    Raises:
        ConfigError: if an argument is out of range.
        DataError: if the vectors are not finite, or the recall is not reached.
    """
    if not 0 < threshold <= 1 or neighbours < 1:
        raise ConfigError(f"threshold = {threshold}, neighbours = {neighbours}: allowed are (0, 1], and 1 or more")
    if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
        raise DataError(f"vectors must be finite [N, D], found {list(vectors_ND.shape)}")
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    rows = np.flatnonzero(norms_N > 0)
    empty = np.zeros(0, dtype=np.int64)
    if len(rows) < 2:
        return empty, empty, np.zeros(0, dtype=np.float32)
    unit_ND = np.ascontiguousarray(vectors_ND[rows] / norms_N[rows, None], dtype=np.float32)
    k = min(neighbours + 1, len(rows))
    sample = unit_ND[np.linspace(0, len(rows) - 1, _MEASURED).astype(np.int64)]
    measured = config.model_copy(update={"recall_k": k})
    index = choose_index(unit_ND, np.arange(len(rows)), sample, measured).index
    keys, cosines = [], []
    for start in progress(range(0, len(rows), _BLOCK), "pairs", unit="block"):
        cosine_Bk, found_Bk = index.search(unit_ND[start : start + _BLOCK], k)
        own = np.repeat(np.arange(start, start + len(found_Bk)), k)
        other, cosine = found_Bk.ravel(), cosine_Bk.ravel()
        near = (other >= 0) & (other != own) & (cosine >= threshold)
        low, high = np.minimum(own, other)[near], np.maximum(own, other)[near]
        keys.append(low * len(rows) + high)
        cosines.append(cosine[near])
    key, place = np.unique(np.concatenate(keys), return_index=True)
    cosine = np.minimum(np.concatenate(cosines)[place], np.float32(1.0))
    order = np.lexsort((key, -cosine))
    first, second = np.divmod(key[order], len(rows))
    return rows[first], rows[second], cosine[order]


def tower_vectors(snapshot: Path, candidate: Path) -> tuple[list[str], np.ndarray]:
    """Return item ids and the released tower's float32 vectors ``[N, D]``, without retired or withheld items."""
    items = Snapshot(snapshot).items()
    summary = read_summary(candidate / TOWER_JSON, TowerSummary)
    vectors: np.ndarray = np.load(candidate / VECTORS_FILE, allow_pickle=False)
    if len(vectors) != len(items) or summary.n_items != len(items):
        raise DataError(f"{candidate}: {len(vectors)} vectors, the snapshot has {len(items)} items")
    rows = items.recommendable()
    return [str(name) for name in items.item_id[rows]], vectors[rows]


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Return item ids and float32 vectors ``[N, D]`` of a Parquet file with ``item_id`` and ``vector``.

    Raises:
        DataError: if a column is missing, or vectors differ in length.
    """
    try:
        table = pq.read_table(path, columns=["item_id", "vector"])  # type: ignore[no-untyped-call]
        vectors = np.array(table["vector"].to_pylist(), dtype=np.float32)
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}; allowed is Parquet with item_id and vector, lists of one length") from None
    return [str(name) for name in table["item_id"].to_pylist()], vectors


def write_pairs(names: list[str], pairs: tuple[np.ndarray, np.ndarray, np.ndarray], path: Path) -> int:
    """Write item_a, item_b, similarity as CSV, as ``dataset.duplicates.pairs`` reads it; return how many."""
    first, second, cosine = pairs
    columns = {
        "item_a": pa.array([names[row] for row in first], pa.string()),
        "item_b": pa.array([names[row] for row in second], pa.string()),
        "similarity": pa.array(cosine.astype(np.float64).round(6)),
    }
    with atomic_file(path) as temporary:
        pv.write_csv(pa.table(columns), temporary)
    return len(first)
