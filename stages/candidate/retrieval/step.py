"""The step ``retrieve``: candidates of every request, from the state at its time.

Shapes: D dimensions, Q requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.candidate.config import RetrieveConfig
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.files import SOURCES_DIRECTORY, read_summary
from stages.candidate.generators.table import TOWER
from stages.candidate.retrieval.retriever import Answers, Retriever, check_features, empty_state
from stages.candidate.scorer import CandidateScorer
from stages.contracts.artifacts import made_by
from stages.contracts.candidate_blocks import CANDIDATES_FILE, candidate_bytes
from stages.contracts.compiled import compiled
from stages.contracts.disk import require_disk
from stages.contracts.item_lists import ItemLists
from stages.contracts.newcomers import NewcomerList
from stages.contracts.progress import progress_of
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.release_check import Claim, check_steps
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable, RequestTable
from stages.features.needs import require_replay_memory

_BLEND = ""
"""Key of the blend of all generators in ``Recalls``."""


def retrieve(config: RetrieveConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Answer every request with ``candidate_k`` unseen items that existed at its time.

    A request without history gets the popular list instead.

    Args:
        config: sizes; its features must be those of the tower.
        inputs: ``snapshot``, ``candidate`` and ``index``; ``sources`` where there may be several generators.
        directory: receives ``candidates.parquet`` and ``queries.npy``, with several generators
            ``source_scores.parquet``.

    Raises:
        ConfigError: if the tower was trained with other history features.
        ReleaseError: if tower, vectors, index and generators do not belong together.
        OutOfSpaceError: if the disk is too small for the candidates.
        ConfigError: if the log and its state will not fit the memory.
    """
    snapshot = Snapshot(inputs["snapshot"])
    scorer, blend, newcomers = _load(config, inputs, snapshot)
    check_features(config.features, scorer)
    requests, state = snapshot.requests(), empty_state(snapshot, config.features, blend)
    retriever = Retriever(scorer, state, snapshot, config.candidate_k, blend, newcomers)
    queries_QD = np.zeros((len(requests), scorer.dim), dtype=np.float32)
    require_replay_memory("retrieve", snapshot, state.config, None if blend is None else blend.trending)
    n_sources = 1 if blend is None else len(blend.names)
    needed = candidate_bytes(len(requests), config.candidate_k, n_sources, scorer.dim)
    require_disk("retrieve", directory, needed)
    names = () if blend is None else blend.names
    measured = Recalls(snapshot.targets(), len(requests), scorer.n_items, names, config.candidate_k)
    with (
        CandidateTable.writer(directory / CANDIDATES_FILE) as write,
        source_writer(directory / SOURCE_SCORES_FILE) as write_sources,
        progress_of("retrieve", len(requests), "request") as advance,
    ):
        if blend is not None:
            write_sources(SourceScores.nothing(blend.names, 0).table())
        for answers in retriever.answers(snapshot.events(), config.block):
            queries_QD[answers.rows] = answers.queries
            write(answers.table())
            if answers.sources is not None:
                write_sources(answers.sources.table())
            measured.add(answers)
            advance(len(answers.rows))
    np.save(directory / "queries.npy", queries_QD)
    return measured.metrics(requests), {"tower_version": scorer.tower_version}


def _load(
    config: RetrieveConfig, inputs: Mapping[str, Path], snapshot: Snapshot
) -> tuple[CandidateScorer, Blend | None, NewcomerList | None]:
    """Load the two-tower index, the generators beside it where there are any, and the list for newcomers.

    Raises:
        ReleaseError: naming what does not belong together, and what to do.
    """
    given = [
        Claim("candidate_k", "the configuration", config.candidate_k),
        Claim("data_fingerprint", "snapshot.json", snapshot.meta.fingerprint),
    ]
    checked = check_steps(made_by("candidate", "index", "sources"), inputs, given)
    scorer = CandidateScorer.of(checked)
    if "sources" not in inputs:
        return scorer, None, None
    directory = inputs["sources"] / SOURCES_DIRECTORY
    blend = Blend.load(directory, scorer.n_items, checked.files.hashes)
    return scorer, blend, read_summary(directory, scorer.n_items).newcomers


@contextmanager
def source_writer(path: Path) -> Iterator:
    """Yield a function that appends an Arrow table to a Parquet file; the first table creates the file."""
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


class Recalls:
    """Recall of each request's answer, and of every generator's list alone where there are several.

    For a request without history the popular list counts for every generator, so that the figures are comparable.

    Args:
        targets: of all requests.
        n_requests: Q.
        n_items: N.
        names: the generators, where there are several.
        candidate_k: items of a generator's list that count.
    """

    def __init__(self, targets: Targets, n_requests: int, n_items: int, names: Sequence[str], candidate_k: int) -> None:
        self._items = targets.item_index
        self._starts = np.searchsorted(targets.request_id, np.arange(n_requests + 1))
        self._n_items, self._k = n_items, candidate_k
        self._popular = np.zeros(n_requests, dtype=bool)
        self._values = {name: np.full(n_requests, np.nan) for name in (_BLEND, *names)}

    def add(self, answers: Answers) -> None:
        """Measure the answers of a block."""
        rows, popular = answers.rows, answers.popular
        self._popular[rows] = popular
        answered = self._recalls(rows, answers.items)
        self._values[_BLEND][rows] = answered
        for name, lists in answers.lists.items():
            self._values[name][rows] = np.where(popular, answered, self._recalls(rows, lists.first(self._k)))

    def _recalls(self, rows: np.ndarray, lists: ItemLists) -> np.ndarray:
        """Return float64 ``[B]``: the share of each request's targets that its list holds; NaN without targets."""
        counts = self._starts[rows + 1] - self._starts[rows]
        targets = self._items[ranges(self._starts[rows], counts)]
        hits = np.zeros(len(rows), dtype=np.int64)
        _count_hits(lists.offsets, lists.ids, row_offsets(counts), targets, self._n_items, hits)
        recalls: np.ndarray = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
        return recalls

    def metrics(self, requests: RequestTable) -> dict[str, float]:
        """Return recalls of each period's requests with targets, the blend's first, and counts."""
        metrics = {"requests": float(len(requests))}
        names = sorted(self._values, key=lambda name: (name != _BLEND, name != TOWER))
        parts = {"ranker": PART_RANKER, "evaluation": PART_EVALUATION}
        for part, code in parts.items():
            of_part = requests.part == code
            for name in names[:2]:
                metrics[f"{part}_recall" + (f"_{name}" if name else "")] = self._mean(name, of_part)
        for part, code in parts.items():
            of_part = requests.part == code
            metrics[f"{part}_requests"] = float(of_part.sum())
            metrics |= {f"{part}_recall_{name}": self._mean(name, of_part) for name in names[2:]}
        metrics["popular_share"] = float(self._popular.mean()) if len(requests) else 0.0
        return metrics

    def _mean(self, name: str, of_part: np.ndarray) -> float:
        values = self._values[name][of_part & ~np.isnan(self._values[name])]
        return float(values.mean()) if len(values) else 0.0


@compiled
def _count_hits(
    offsets: np.ndarray,
    ids: np.ndarray,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    n_items: int,
    hits: np.ndarray,
) -> None:
    """Count the targets of each request that its list holds."""
    listed_in = np.full(n_items, -1, dtype=np.int32)  # the last request that lists the item
    for row in range(len(hits)):
        for entry in range(offsets[row], offsets[row + 1]):
            listed_in[ids[entry]] = row
        for entry in range(target_offsets[row], target_offsets[row + 1]):
            hits[row] += listed_in[targets[entry]] == row
