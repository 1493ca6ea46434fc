"""Choosing the index by measurement: the quickest that reaches the recall within the memory.

An index is searched here as serving searches it. Faiss's own ``ParameterSpace.explore`` is not used for two
reasons. It times a whole grid of parameters, although recall grows with the effort, so that halving finds the
smallest sufficient effort. And it does not know of the second scoring by whole vectors after the search.

Shapes: B queries, D dimensions, K neighbours, N indexed items, M rows of all item vectors.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from stages.candidate.config import IndexConfig
from stages.candidate.index.device import IndexDevice
from stages.candidate.index.kinds import IndexType, kinds_to_try, make_index
from stages.candidate.index.search import ItemSearch
from stages.contracts.errors import DataError
from stages.contracts.progress import Advance, progress, progress_of

log = logging.getLogger("sluice")

_ONE_SIDED = 1.645
"""How many standard errors the one-sided 95% bound lies below the mean."""
_NEARLY = 1.1
"""A smaller index is preferred if it is less than a tenth slower: such differences are noise of the clock."""
_BLOCK = 64
"""Queries that are searched before progress is shown."""
_HALVINGS = 3
"""An effort is halved towards one that is too small until an eighth of that one lies between them."""


@dataclass(frozen=True)
class Trial:
    """Measurements and outcome of one kind of index.

    Attributes:
        type: Faiss's name.
        parameters: ``nprobe`` or ``efSearch``; empty for an exact index.
        refine: refine * k items are fetched and scored again.
        recall: mean share of the exact neighbours that were found; None where it was not built.
        recall_lower: lower 95% confidence bound (one-sided, normal) of the mean over all queries. This bound has to
            reach the wanted recall: if only the sample's mean did, the true mean would fall short every other time.
        latency_ms: median of one query in one thread.
        memory_bytes: of the index; the expected size where it was not built.
        build_seconds: training and filling.
        outcome: ``chosen``, ``slower``, ``recall not reached`` or ``over the memory limit``.
    """

    type: str
    parameters: dict[str, int]
    refine: int
    recall: float | None
    recall_lower: float | None
    latency_ms: float | None
    memory_bytes: int
    build_seconds: float
    outcome: str = "slower"


@dataclass(frozen=True)
class Chosen:
    """The index to publish, with its search effort set, and all trials."""

    index: Any
    trial: Trial
    tried: tuple[Trial, ...]
    device: str


def choose_index(item_vectors_MD: np.ndarray, ids_N: np.ndarray, queries_BD: np.ndarray, config: IndexConfig) -> Chosen:
    """Build the kinds that may fit, measure them, and return the quickest that reaches the recall.

    Args:
        item_vectors_MD: float32, of all items.
        ids_N: int64, ascending: the rows to index.
        queries_BD: float32, to measure recall and latency with.
        config: what to try, and what to reach at ``recall_k``.

    Raises:
        ConfigError: if CUDA is wanted and there is none.
        DataError: if no kind fits the memory limit and reaches the recall; the message lists what was tried.
    """
    device = IndexDevice(config.device)
    vectors_ND = np.ascontiguousarray(item_vectors_MD[ids_N], dtype=np.float32)
    fitting, too_large = kinds_to_try(len(ids_N), vectors_ND.shape[1], config)
    tried = [
        Trial(each.factory, {}, 1, None, None, None, each.estimate, 0.0, "over the memory limit") for each in too_large
    ]
    bench = _Bench(item_vectors_MD, ids_N, vectors_ND, queries_BD, config, device)
    best: tuple[Any, Trial] | None = None
    for each in fitting:
        index, trial = bench.measure(each)
        trial = _judged(trial, config)
        log.info("[sluice] index: %s", trial)
        if trial.outcome == "slower" and (best is None or _preferred(trial, best[1])):
            best = index, trial
        tried.append(trial)
    if best is None:
        raise DataError(_why_none(tried, config))
    chosen = Trial(**{**vars(best[1]), "outcome": "chosen"})
    tried = [chosen if trial is best[1] else trial for trial in tried]
    return Chosen(best[0], chosen, tuple(tried), device.name)


def _judged(trial: Trial, config: IndexConfig) -> Trial:
    limit = config.memory_limit_mb
    outcome = trial.outcome
    if trial.recall_lower is None or trial.recall_lower < config.wanted_recall:
        outcome = "recall not reached"
    elif limit is not None and trial.memory_bytes > limit * 1e6:
        outcome = "over the memory limit"
    return Trial(**{**vars(trial), "outcome": outcome})


def _preferred(trial: Trial, best: Trial) -> bool:
    found, known = trial.latency_ms or 0.0, best.latency_ms or 0.0
    return found < known * _NEARLY if trial.memory_bytes < best.memory_bytes else found * _NEARLY < known


def _why_none(tried: list[Trial], config: IndexConfig) -> str:
    found = "; ".join(
        f"{trial.type}: {trial.memory_bytes / 1e6:.1f} MB, "
        + ("not built" if trial.recall is None else f"recall {trial.recall:.4f}, at least {trial.recall_lower:.4f}")
        for trial in tried
    )
    return (
        f"index: nothing reaches recall@{config.recall_k} {config.wanted_recall} within memory_limit_mb = "
        f"{config.memory_limit_mb} ({found}); raise memory_limit_mb, or add to index.kinds ('flat' is exact)"
    )


class _Bench:
    """Builds indexes of the same vectors and measures them with the same queries."""

    def __init__(
        self,
        item_vectors_MD: np.ndarray,
        ids_N: np.ndarray,
        vectors_ND: np.ndarray,
        queries_BD: np.ndarray,
        config: IndexConfig,
        device: IndexDevice,
    ) -> None:
        self._item_vectors_MD, self._ids_N, self._vectors_ND = item_vectors_MD, ids_N, vectors_ND
        self._queries_BD, self._config, self._device = queries_BD, config, device
        self._k = min(config.recall_k, len(ids_N))
        self._threads = faiss.omp_get_max_threads()
        self._exact_BK: np.ndarray | None = None

    def measure(self, chosen: IndexType) -> tuple[Any, Trial]:
        """Return the index with the smallest sufficient effort set, and what it costs."""
        faiss.omp_set_num_threads(self._threads)
        started = time.perf_counter()
        index = make_index(chosen, self._vectors_ND, self._ids_N, self._config, self._device)
        seconds = time.perf_counter() - started
        trials = []
        for refine in chosen.refine:
            parameters, recall, lower = self._tune(index, refine, chosen.factory)
            costs = self._latency_ms(index, refine, chosen.factory), index_bytes(index), round(seconds, 3)
            trials.append(Trial(chosen.factory, parameters, refine, recall, lower, *costs))
        good = [trial for trial in trials if (trial.recall_lower or 0.0) >= self._config.wanted_recall]
        best = min(good, key=lambda trial: trial.latency_ms or 0.0) if good else trials[-1]
        for value in best.parameters.values():
            set_effort(index, value)
        return index, best

    def _tune(self, index: Any, refine: int, factory: str) -> tuple[dict[str, int], float, float]:
        """Set the smallest effort that reaches the recall, or the largest; return it, the recall and its bound."""
        name, low, high = effort(index, self._k * refine)
        if not name:
            return {}, 1.0, 1.0
        wanted, value, below = self._config.wanted_recall, low, low - 1
        most = _most_trials(low, high) * len(self._queries_BD)
        with progress_of(f"build_index: search {factory}", most, "query") as advance:
            while (measured := self._recall(index, refine, value, advance))[1] < wanted and value < high:
                below, value = value, min(2 * value, high)
            while measured[1] >= wanted and value - below > max(1, below // 8):
                middle = (below + value) // 2
                if (closer := self._recall(index, refine, middle, advance))[1] >= wanted:
                    value, measured = middle, closer
                else:
                    below = middle
        set_effort(index, value)
        return {name: value}, *measured

    def _recall(self, index: Any, refine: int, value: int, advance: Advance) -> tuple[float, float]:
        if self._exact_BK is None:
            faiss.omp_set_num_threads(self._threads)
            self._exact_BK = self._ids_N[self._device.nearest(self._queries_BD, self._vectors_ND, self._k)]
        set_effort(index, value)
        search, found = ItemSearch(index, self._item_vectors_MD, refine), []
        for start in range(0, len(self._queries_BD), _BLOCK):
            block_BD = self._queries_BD[start : start + _BLOCK]
            found += search.search(block_BD, self._k, [np.empty(0, dtype=np.int64)] * len(block_BD))
            advance(len(block_BD))
        shares_B = recalls([items.ids for items in found], self._exact_BK)
        error = shares_B.std(ddof=1) / len(shares_B) ** 0.5 if len(shares_B) > 1 else 0.0
        return float(shares_B.mean()), float(shares_B.mean() - _ONE_SIDED * error)

    def _latency_ms(self, index: Any, refine: int, factory: str) -> float:
        search, nothing = ItemSearch(index, self._item_vectors_MD, refine), [np.empty(0, dtype=np.int64)]
        taken = []
        for query_D in progress(self._queries_BD[: self._config.n_timed], f"build_index: time {factory}", unit="query"):
            started = time.perf_counter()
            search.search(query_D[None], self._k, nothing)
            taken.append(time.perf_counter() - started)
        return round(float(np.median(taken)) * 1000, 4)


def effort(index: Any, k: int) -> tuple[str, int, int]:
    """Return the parameter that trades time for recall, its smallest and largest value; an empty name if exact."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        return "nprobe", 1, int(ivf.nlist)
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    return ("efSearch", k, max(64 * k, 4096)) if isinstance(inner, faiss.IndexHNSW) else ("", 0, 0)


def _most_trials(low: int, high: int) -> int:
    """Return how many efforts are tried at most: doubled from the smallest to the largest, then halved."""
    return 1 + math.ceil(math.log2(high / low)) + _HALVINGS


def set_effort(index: Any, value: int) -> None:
    """Set ``nprobe`` or ``efSearch``."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = value
        return
    inner: Any = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    inner.hnsw.efSearch = value


def recalls(found: list[np.ndarray], exact_BK: np.ndarray) -> np.ndarray:
    """Return float64 ``[B]``, the share of each query's exact neighbours that were found."""
    return np.array([np.isin(exact, ids).mean() for ids, exact in zip(found, exact_BK, strict=True)])


def index_bytes(index: Any) -> int:
    """Return the size of an index as a file, in bytes; it takes as much in memory."""
    size = 0

    def count(block: bytes) -> None:
        nonlocal size
        size += len(block)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count, 1 << 20))  # type: ignore[attr-defined]
    return size
