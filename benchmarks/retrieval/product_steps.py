"""The product's candidate stage on a protocol's rows: a snapshot, and the steps of a run from towers to answers.

Nothing of the product is re-implemented here. The rows become a snapshot as the step ``dataset`` would write it, with a
request for each question of the protocol. ``train_candidate``, ``build_index``, ``train_sources`` and ``retrieve`` run
on it as in a run, with the sections of a recipe as their settings.

Legend: R rows, U users, N items, Q requests, X contexts, C context columns.
"""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages import __version__
from stages.candidate.config import CandidateConfig, IndexConfig, RetrieveConfig, TrainCandidateConfig
from stages.candidate.generators.config import SourcesConfig, TrainSourcesConfig
from stages.candidate.generators.generator import FitSize
from stages.candidate.generators.table import TOWER, generator_class
from stages.candidate.index.step import build_index
from stages.candidate.retrieval.check_memory import refuse_what_does_not_fit
from stages.candidate.retrieval.earlier_learning import learned_version
from stages.candidate.retrieval.fit_generators import train_sources
from stages.candidate.retrieval.step import retrieve
from stages.candidate.training.step import train_candidate
from stages.contracts.candidate_blocks import CANDIDATES_FILE
from stages.contracts.config import Config
from stages.contracts.files import write_json
from stages.contracts.results import StageResult
from stages.contracts.snapshot import ALL_PARTS, ContextColumn, SnapshotMeta, Task, TimeBorders
from stages.contracts.steps import Outcome, run_step
from stages.contracts.tables import CandidateTable, EventTable, RequestTable
from stages.features.config import FeatureConfig

SECOND_MS = 1000
SIGNAL = "interaction"
_PROCESSES_BYTES = 1_100_000_000
"""Memory of this process, the launcher and one rank, with torch in each."""
_RANK_BYTES = 450_000_000
"""Memory of each further rank."""
_ROW_BYTES = 400
"""Memory of a training row: as an event, as an example, and in the files that ranks map."""
_CANDIDATE_BYTES = 64
"""Memory of a candidate of a block of requests while it is found, mixed and written, in all lists together."""
_WORK: ContextVar[Path | None] = ContextVar("work", default=None)


@contextmanager
def workplace(directory: Path | None) -> Iterator[None]:
    """Keep finished steps below ``directory``, where a later call finds them; None forgets them at exit."""
    token = _WORK.set(directory)
    try:
        yield
    finally:
        _WORK.reset(token)


@cache
def _passing() -> Path:
    """Return a directory that lasts as long as this process."""
    directory = tempfile.TemporaryDirectory(prefix="sluice-retrieval-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


def _root() -> Path:
    return (_WORK.get() or _passing()).absolute()


class RowsConfig(Config):
    """Configuration of the step that writes a snapshot of a protocol's rows.

    Attributes:
        users, items: U and N.
        rows: hex sha256 of the rows.
    """

    users: int
    items: int
    rows: str


@dataclass(frozen=True)
class SnapshotRows:
    """What a snapshot is made of.

    Attributes:
        events: R, in time order.
        requests: Q, in time order.
        target_request, target_item: int64, what each request is to be answered with, sorted; requests may have none.
        users, items: U and N.
        borders: of the periods.
        created_at_ms: int64 ``[N]``, from when each item may be an answer.
        context: columns of the contexts.
        contexts: int32 ``[X, C]``, as ``Snapshot.contexts``.
        split: how the parts were cut, see ``SnapshotMeta``.
    """

    events: EventTable
    requests: RequestTable
    target_request: np.ndarray
    target_item: np.ndarray
    users: int
    items: int
    borders: TimeBorders
    created_at_ms: np.ndarray
    context: tuple[ContextColumn, ...] = ()
    contexts: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), dtype=np.int32))
    split: str = "time"

    def digest(self) -> str:
        """Return the hex sha256 of everything."""
        columns = [getattr(table, name) for table in (self.events, self.requests) for name in type(table).TYPES]
        digest = hashlib.sha256(repr((self.users, self.items, self.borders, self.context)).encode())
        for column in (*columns, self.target_request, self.target_item, self.created_at_ms, self.contexts):
            digest.update(f"{column.dtype} {column.shape}".encode() + np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def write(self, directory: Path, fingerprint: str) -> None:
        """Write the snapshot; there are no titles and no categories."""
        self.events.write(directory / "events.parquet")
        self.requests.write(directory / "requests.parquet")
        users, items, n_targets = self.users, self.items, len(self.target_item)
        names = [str(index) for index in range(max(users, items))]
        tables = {
            "targets": {
                "request_id": self.target_request,
                "item_index": self.target_item,
                "relevance": np.ones(n_targets, np.float32),
                f"task_{SIGNAL}": np.ones(n_targets, np.float32),
            },
            "items": {
                "item_index": np.arange(items),
                "item_id": names[:items],
                "title": [""] * items,
                "categories": pa.array([[]] * items, pa.list_(pa.int32())),
                "created_at_ms": self.created_at_ms,
                "duration_s": np.full(items, np.nan, np.float32),
                "eligible": np.full(items, ALL_PARTS, np.int8),
            },
            "users": {"user_index": np.arange(users), "user_id": names[:users]},
            "aliases": {"item_id": pa.array([], pa.string()), "item_index": np.zeros(0, np.int64)},
            "blocked": {"item_id": pa.array([], pa.string()), "reason": pa.array([], pa.string())},
        }
        if self.context:
            codes = {column.name: self.contexts[:, place] for place, column in enumerate(self.context)}
            tables["contexts"] = {"context_index": np.arange(len(self.contexts)), **codes}
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), directory / f"{name}.parquet")
        meta = SnapshotMeta(
            signals=(SIGNAL,),
            categories=(),
            tasks=(Task(name=SIGNAL, signals=(SIGNAL,), relevance=1.0),),
            borders=self.borders,
            context=self.context,
            counts={"events": len(self.events)},
            fingerprint=fingerprint,
        )
        write_json(directory / "snapshot.json", meta.model_dump(mode="json"))

    def snapshot(self) -> StageResult:
        """Run the step that writes the snapshot, or find it finished in the workplace."""

        def write(config: RowsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
            self.write(directory, config.rows)
            return {"events": float(len(self.events)), "requests": float(len(self.requests))}, {}

        config = RowsConfig(users=self.users, items=self.items, rows=self.digest())
        return run_step("rows", __version__, write, config, {}, _root())


def events_of(
    user: np.ndarray, item: np.ndarray, time_ms: np.ndarray, part: np.ndarray | int, context: np.ndarray | None = None
) -> EventTable:
    """Return events of one signal of active users, in the order given."""
    n = len(user)
    return EventTable(
        user_index=np.asarray(user, np.int64),
        item_index=np.asarray(item, np.int64),
        event_time_ms=np.asarray(time_ms, np.int64),
        signal=np.zeros(n, np.int16),
        value=np.ones(n, np.float32),
        part=np.broadcast_to(np.asarray(part, np.int8), n).copy(),
        active=np.ones(n, bool),
        context=None if context is None else context.astype(np.int32),
    )


def requests_of(
    user: np.ndarray, time_ms: np.ndarray | int, part: np.ndarray | int, context: np.ndarray | None = None
) -> RequestTable:
    """Return requests in the order given, which is that of time."""
    n = len(user)
    return RequestTable(
        request_id=np.arange(n),
        user_index=np.asarray(user, np.int64),
        request_time_ms=np.broadcast_to(np.asarray(time_ms, np.int64), n).copy(),
        part=np.broadcast_to(np.asarray(part, np.int8), n).copy(),
        context=None if context is None else context.astype(np.int32),
    )


class CandidateStage(Config):
    """The sections of a recipe that make a candidate stage.

    Attributes:
        candidate: the two-tower model and its training.
        features: ``history_length`` is what the tower reads; the state's counters.
        index: its kind is chosen by measurement; exact below ``exact_below`` items.
        sources: the other generators, and what mixes the lists.
        candidate_k: items of an answer.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    index: IndexConfig = IndexConfig()
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    candidate_k: Annotated[int, Field(ge=1)] = 200

    def seeded(self, seed: int) -> CandidateStage:
        """Return the settings with the seed of everything that is drawn."""
        sources = {"learning": {"seed": seed}, "mixture": {"seed": seed}}
        if "ials" in self.sources.names:
            sources["ials"] = {"seed": seed}
        return self.model_copy(
            update={
                "candidate": self.candidate.changed(training={"seed": seed}),
                "sources": self.sources.changed(**sources),
            }
        )

    def check(self, size: FitSize) -> None:
        """Refuse generators that need more than their ``memory_gb``, as the step ``check_memory`` does.

        Raises:
            ConfigError: naming them and what they need.
        """
        refuse_what_does_not_fit(self.sources, self._needed(size), size)

    def gigabytes(self, size: FitSize, requests: int) -> float:
        """Return roughly the 10^9 bytes of all processes.

        Args:
            size: of what is fitted.
            requests: Q.
        """
        candidates = _CANDIDATE_BYTES * min(self.candidate_k, size.items) * requests / 1e9
        fitted = max(self._needed(size).values(), default=0.0)
        return max(_towers_gigabytes(size, self.candidate, self.features), fitted) + candidates

    def _needed(self, size: FitSize) -> dict[str, float]:
        names = [name for name in self.sources.names if name != TOWER]
        return {name: generator_class(name).needs(self.sources, size) for name in names}


def _towers_gigabytes(size: FitSize, candidate: CandidateConfig, features: FeatureConfig) -> float:
    """Return the 10^9 bytes of a training; on a GPU the model lies in the GPU's memory, which is not included."""
    width, ranks = candidate.model.dimension, candidate.distributed.n_processes
    # Weights, their sums of squares, the average, and the written copy; of one table or of two.
    tables = 16 * (1 if candidate.model.shared_item_table else 2) * size.items * width
    stopping = candidate.training.early_stopping
    if stopping is not None and stopping.then == "keep":
        tables *= 2  # the best epoch's
    # What attention keeps of each position for the backward pass; other encoders keep the vectors of the history.
    kept = 128 * candidate.model.blocks if candidate.model.encoder == "attention" else 4
    batch = 4 * candidate.training.batch_size * features.history_length * width * kept
    if candidate.training.mode == "sequences":  # batch_size counts positions
        batch //= features.history_length
    processes = _PROCESSES_BYTES + _RANK_BYTES * (ranks - 1)
    return (processes + _ROW_BYTES * size.touches + ranks * (tables + batch)) / 1e9


def train_stage(rows: SnapshotRows, stage: CandidateStage) -> dict[str, StageResult]:
    """Run the steps from the towers to the generators, or find them finished in the workplace.

    Returns:
        The results by the names of the inputs of ``retrieve``.

    Raises:
        SluiceError: what the steps raise.
    """
    root, sources, k = _root(), stage.sources, stage.candidate_k
    found = {"snapshot": rows.snapshot()}
    towers = TrainCandidateConfig(candidate=stage.candidate, features=stage.features)
    found["candidate"] = run_step("train_candidate", __version__, train_candidate, towers, found, root)
    index = stage.index.changed(recall_k=k)
    found["index"] = run_step("build_index", __version__, build_index, index, found, root)
    mixing = TrainSourcesConfig(
        sources=sources, candidate_k=k, features=stage.features, learned_version=learned_version(sources)
    )
    found["sources"] = run_step("train_sources", __version__, train_sources, mixing, found, root)
    return found


def answers_of(trained: Mapping[str, StageResult], stage: CandidateStage) -> Iterator[CandidateTable]:
    """Run the step ``retrieve``, or find it finished; yield its candidates, some requests at a time."""
    config = RetrieveConfig(candidate_k=stage.candidate_k, features=stage.features)
    found = run_step("retrieve", __version__, retrieve, config, trained, _root())
    return CandidateTable.groups(found.directory / CANDIDATES_FILE)
