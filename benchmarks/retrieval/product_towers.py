"""The product's two-tower on a protocol's training rows: a snapshot, the step ``train_candidate``, its exports.

The towers are not re-implemented here. The rows become a snapshot as the dataset step would write it, and the step
trains on it under the launcher. Scores are exact dot products of the exported ONNX tower's vectors with
``item_vectors.npy``, over the whole catalogue.

Legend: R rows, U users, N items, B users of a block, D dimensions, T tastes, L history length.
"""

from __future__ import annotations

import atexit
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.retrieval.data import Interactions
from stages import __version__
from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.onnx_towers import UserTower
from stages.candidate.training.step import train_candidate
from stages.contracts.config import Config
from stages.contracts.files import write_json
from stages.contracts.results import StageResult
from stages.contracts.snapshot import ALL_PARTS, SnapshotMeta, Task, TimeBorders
from stages.contracts.steps import Outcome, run_step
from stages.contracts.summaries import TOWER_FILE, VECTORS_FILE
from stages.contracts.tables import PART_CANDIDATE, EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, TowerInputs

SECOND_MS = 1000
SIGNAL = "interaction"
_QUERIES = 256
_PROCESSES_BYTES = 1_100_000_000
"""Memory of this process, the launcher and one rank, with torch in each."""
_RANK_BYTES = 450_000_000
"""Memory of each further rank."""
_ROW_BYTES = 400
"""Memory of a training row: as an event, as an example, and in the files that ranks map."""
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


class RowsConfig(Config):
    """Configuration of the step that writes a snapshot of a protocol's rows.

    Attributes:
        users, items: U and N.
        rows: hex sha256 of the rows.
    """

    users: int
    items: int
    rows: str


def in_time_order(rows: Interactions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, item and time in ms, int64 ``[R]``, in time order; rows of equal or no time keep the file's order.

    One unit of the protocol's time becomes a second. So ages are positions where the protocol has positions only.
    """
    time = np.arange(len(rows)) if rows.time is None else np.asarray(rows.time, dtype=np.int64)
    order = np.argsort(time, kind="stable")
    return rows.user[order], rows.item[order], (time[order] - time.min()) * SECOND_MS


def shuffled(rows: Interactions, orders: int, seed: int) -> Interactions:
    """Return ``orders`` copies of each user, each a separate user with the rows in a new random order."""
    rng = np.random.default_rng(seed)
    time = np.concatenate([rng.permutation(len(rows)) for _ in range(orders)])
    user = np.concatenate([rows.user + copy * rows.users for copy in range(orders)])
    return Interactions(user, np.tile(rows.item, orders), time, orders * rows.users, rows.items)


def event_table(user: np.ndarray, item: np.ndarray, time_ms: np.ndarray) -> EventTable:
    """Return events of one signal, all of them in the candidate period."""
    n = len(user)
    return EventTable(
        user_index=np.asarray(user, np.int64),
        item_index=np.asarray(item, np.int64),
        event_time_ms=np.asarray(time_ms, np.int64),
        signal=np.zeros(n, np.int16),
        value=np.ones(n, np.float32),
        part=np.full(n, PART_CANDIDATE, np.int8),
        active=np.ones(n, bool),
    )


def write_snapshot(directory: Path, events: EventTable, users: int, items: int, fingerprint: str) -> None:
    """Write a snapshot that has a candidate period only: no requests, no titles, no categories."""
    none = np.zeros(0, np.int64)
    events.write(directory / "events.parquet")
    RequestTable(none, none, none, np.zeros(0, np.int8)).write(directory / "requests.parquet")
    names = [str(index) for index in range(max(users, items))]
    parts = {
        "targets": {"request_id": none, "item_index": none, "relevance": none.astype(np.float32)},
        "items": {
            "item_index": np.arange(items),
            "item_id": names[:items],
            "title": [""] * items,
            "categories": pa.array([[]] * items, pa.list_(pa.int32())),
            "created_at_ms": np.zeros(items, np.int64),
            "duration_s": np.full(items, np.nan, np.float32),
            "eligible": np.full(items, ALL_PARTS, np.int8),
        },
        "users": {"user_index": np.arange(users), "user_id": names[:users]},
        "aliases": {"item_id": pa.array([], pa.string()), "item_index": none},
        "blocked": {"item_id": pa.array([], pa.string()), "reason": pa.array([], pa.string())},
    }
    parts["targets"][f"task_{SIGNAL}"] = np.zeros(0, np.float32)
    for name, columns in parts.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    end_ms = int(events.event_time_ms[-1]) + 1
    meta = SnapshotMeta(
        signals=(SIGNAL,),
        categories=(),
        tasks=(Task(name=SIGNAL, signals=(SIGNAL,), relevance=1.0),),
        borders=TimeBorders(start_ms=0, candidate_end_ms=end_ms, ranker_end_ms=end_ms, as_of_ms=end_ms),
        counts={"events": len(events)},
        fingerprint=fingerprint,
    )
    write_json(directory / "snapshot.json", meta.model_dump(mode="json"))


@dataclass(frozen=True)
class Trained:
    """What the step exported.

    Attributes:
        tower: the ONNX user tower.
        vectors: float32 ``[N, D]``.
    """

    tower: UserTower
    vectors: np.ndarray

    def queries(self, inputs: TowerInputs) -> np.ndarray:
        """Return float32 ``[B, D]`` or ``[B, T, D]``."""
        return self.tower.embed(inputs)

    def scores(self, query_BD: np.ndarray) -> np.ndarray:
        """Return float32 ``[B, N]``; of several tastes the best counts."""
        product: np.ndarray = query_BD @ self.vectors.T
        return product if product.ndim == 2 else product.max(axis=1)


def towers_gigabytes(rows: int, items: int, candidate: CandidateConfig, features: FeatureConfig) -> float:
    """Return roughly how many 10^9 bytes all processes of ``train_towers`` take: measured, not counted.

    Args:
        rows: R.
        items: N.
        candidate: of the training; on a GPU the model lies in the GPU's memory, which is not included.
        features: ``history_length`` is L.
    """
    width, ranks = candidate.model.dimension, candidate.distributed.n_processes
    # Weights, their sums of squares, the average, and the written copy; of one table or of two.
    tables = 16 * (1 if candidate.model.shared_item_table else 2) * items * width
    stopping = candidate.training.early_stopping
    if stopping is not None and stopping.then == "keep":
        tables *= 2  # the best epoch's
    # What attention keeps of each position for the backward pass; other encoders keep the vectors of the history.
    kept = 128 * candidate.model.blocks if candidate.model.encoder == "attention" else 4
    batch = 4 * candidate.training.batch_size * features.history_length * width * kept
    if candidate.training.mode == "sequences":  # batch_size counts positions
        batch //= features.history_length
    processes = _PROCESSES_BYTES + _RANK_BYTES * (ranks - 1)
    return (processes + _ROW_BYTES * rows + ranks * (tables + batch)) / 1e9


def train_towers(rows: Interactions, candidate: CandidateConfig, features: FeatureConfig) -> Trained:
    """Run the step on the rows, or find it finished in the workplace.

    Raises:
        SluiceError: what ``train_candidate`` raises.
    """
    user, item, time_ms = in_time_order(rows)
    events = event_table(user, item, time_ms)
    digest = hashlib.sha256(b"".join(column.tobytes() for column in (user, item, time_ms))).hexdigest()
    root = _WORK.get() or _passing()

    def write(config: RowsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        write_snapshot(directory, events, config.users, config.items, config.rows)
        return {"events": float(len(events))}, {}

    described = RowsConfig(users=rows.users, items=rows.items, rows=digest)
    inputs: dict[str, StageResult] = {"snapshot": run_step("rows", __version__, write, described, {}, root)}
    config = TrainCandidateConfig(candidate=candidate, features=features)
    found = run_step("train_candidate", __version__, train_candidate, config, inputs, root).directory
    vectors_ND = np.load(found / VECTORS_FILE, allow_pickle=False)
    return Trained(UserTower(found / TOWER_FILE), vectors_ND)


class TouchHistories:
    """Users' first touches of items, and the tower's inputs of any range of them.

    Args:
        user, item, time_ms: int64 ``[R]``, in the order in which they happened; a repeated pair counts once.
        length: L.
        items: N, also the id of padding.
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, time_ms: np.ndarray, length: int, items: int) -> None:
        _, first = np.unique(user * items + item, return_index=True)
        place = first[np.lexsort((first, user[first]))]
        self._item, self._time_ms = item[place], time_ms[place]
        self._key, self._span = user[place] * (len(user) + 1) + place, len(user) + 1
        self._length, self._n_items = length, items

    def before(self, user_B: np.ndarray, place_B: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Return start and end, int64 ``[B]`` each, of each user's touches before a position in the rows."""
        start_B = np.searchsorted(self._key, user_B * self._span)
        return start_B, np.searchsorted(self._key, user_B * self._span + np.minimum(place_B, self._span - 1))

    def inputs(self, start_B: np.ndarray, end_B: np.ndarray, time_ms_B: np.ndarray | None) -> TowerInputs:
        """Return the tower's inputs of ranges of touches at given times; None means a second after the latest touch."""
        touch_BL = end_B[:, None] - 1 - np.arange(self._length)
        kept_BL = touch_BL >= start_B[:, None]
        touch_BL = np.where(kept_BL, touch_BL, 0)
        touched_ms_BL = self._time_ms[touch_BL]
        asked_ms_B = touched_ms_BL[:, 0] + SECOND_MS if time_ms_B is None else time_ms_B
        ages_BL = np.maximum(asked_ms_B[:, None] - touched_ms_BL, 0) // SECOND_MS
        return TowerInputs(
            items=np.where(kept_BL, self._item[touch_BL], self._n_items).astype(np.int64),
            signals=np.zeros(kept_BL.shape, dtype=np.int64),
            ages=np.where(kept_BL, ages_BL, 0).astype(np.int64),
            users=np.full(len(end_B), UNKNOWN_USER, dtype=np.int64),
            context=np.zeros((len(end_B), 0), dtype=np.int64),
        )


def latest_queries(trained: Trained, rows: Interactions, length: int) -> np.ndarray:
    """Return the vectors of all users, ``[U, D]`` or ``[U, T, D]``, a second after their latest row."""
    histories = TouchHistories(*in_time_order(rows), length, rows.items)
    start_U, end_U = histories.before(np.arange(rows.users), len(rows))
    blocks = [slice(start, start + _QUERIES) for start in range(0, rows.users, _QUERIES)]
    return np.concatenate([trained.queries(histories.inputs(start_U[b], end_U[b], None)) for b in blocks])
