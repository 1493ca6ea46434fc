"""The snapshot: what the dataset step writes and every training step reads.

Files below one directory:

    snapshot.json      SnapshotMeta
    events.parquet     EventTable, sorted by (event_time_ms, event id)
    requests.parquet   RequestTable, sorted by time
    targets.parquet    request_id int64, item_index int64, relevance float32, one float32 0/1
                       column a task, named ``task_<name>``; sorted by (request_id, item_index)
    items.parquet      item_index int64, item_id str, title str, categories list<int32>,
                       created_at_ms int64, duration_s float32 (NaN = unknown); canonical items
    users.parquet      user_index int64, user_id str
    aliases.parquet    item_id str, item_index int64: ids of duplicates and their canonical item
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.contracts.config import Config
from stages.contracts.files import read_json
from stages.contracts.tables import EventTable, RequestTable


class Task(Config):
    """One signal that rankers predict.

    Attributes:
        name: such as ``click`` or ``like``.
        signals: event kinds that count as a positive of this task.
        min_value: smallest ``value`` that counts, or None for any.
        relevance: what a positive adds to the graded relevance of a target.
        weight: default weight in the combined objective of a release.
    """

    name: str
    signals: tuple[str, ...]
    min_value: float | None = None
    relevance: float = 0.0
    weight: float = 1.0


class TimeBorders(Config):
    """Borders of the parts, int ms UTC; each part is [start, end)."""

    start_ms: int
    candidate_end_ms: int
    ranker_end_ms: int
    as_of_ms: int


class SnapshotMeta(Config):
    """``snapshot.json``.

    Attributes:
        signals: event kinds; ``EventTable.signal`` is a position in it.
        categories: names; ``items.categories`` holds positions in it.
        tasks: the tasks whose labels ``targets.parquet`` holds, the first is the main one.
        borders: time borders of the parts.
        counts: rows by kind, what was removed and why.
        fingerprint: hex sha256 over the content, independent of the warehouse and of file encoding.
    """

    signals: tuple[str, ...]
    categories: tuple[str, ...]
    tasks: tuple[Task, ...]
    borders: TimeBorders
    counts: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Targets:
    """What each request should have found; rows sorted by (request_id, item_index).

    Attributes:
        request_id, item_index: int64 ``[R]``.
        relevance: float32 ``[R]``, above zero.
        labels: float32 ``[R, T]`` 0/1, one column a task.
    """

    request_id: np.ndarray
    item_index: np.ndarray
    relevance: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ItemTable:
    """The canonical items of a snapshot or release, row = item index.

    Attributes:
        item_id, title: object ``[N]`` strings.
        created_at_ms: int64 ``[N]``.
        duration_s: float32 ``[N]``, NaN where unknown.
        category_offsets: int64 ``[N + 1]``; item i has
            ``category_codes[category_offsets[i]:category_offsets[i + 1]]``.
        category_codes: int32 ``[sum]``.
        n_categories: number of categories.
    """

    item_id: np.ndarray
    title: np.ndarray
    created_at_ms: np.ndarray
    duration_s: np.ndarray
    category_offsets: np.ndarray
    category_codes: np.ndarray
    n_categories: int

    def __len__(self) -> int:
        return len(self.item_id)


class Snapshot:
    """Typed access to a snapshot directory; every property reads its file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.meta = SnapshotMeta.model_validate(read_json(directory / "snapshot.json"))

    def events(self) -> EventTable:
        """Return all events in time order."""
        return EventTable.read(self.directory / "events.parquet")

    def requests(self) -> RequestTable:
        """Return all requests in time order."""
        return RequestTable.read(self.directory / "requests.parquet")

    def targets(self) -> Targets:
        """Return the targets of all requests."""
        table = pq.read_table(self.directory / "targets.parquet")  # type: ignore[no-untyped-call]
        columns = [table[f"task_{task.name}"].to_numpy() for task in self.meta.tasks]
        return Targets(
            request_id=table["request_id"].to_numpy(),
            item_index=table["item_index"].to_numpy(),
            relevance=table["relevance"].to_numpy(),
            labels=np.stack(columns, axis=1).astype(np.float32),
        )

    def items(self) -> ItemTable:
        """Return the canonical items."""
        return read_items(self.directory / "items.parquet", len(self.meta.categories))

    def user_ids(self) -> np.ndarray:
        """Return object ``[U]`` user ids by user index."""
        return _strings(pq.read_table(self.directory / "users.parquet")["user_id"])  # type: ignore[no-untyped-call]

    def aliases(self) -> dict[str, int]:
        """Return ``{duplicate item id: canonical item index}``."""
        table = pq.read_table(self.directory / "aliases.parquet")  # type: ignore[no-untyped-call]
        return dict(zip(table["item_id"].to_pylist(), table["item_index"].to_pylist(), strict=True))


def read_items(path: Path, n_categories: int) -> ItemTable:
    """Read ``items.parquet`` of a snapshot or a release."""
    table = pq.read_table(path)  # type: ignore[no-untyped-call]
    categories = table["categories"].combine_chunks()
    return ItemTable(
        item_id=_strings(table["item_id"]),
        title=_strings(table["title"]),
        created_at_ms=table["created_at_ms"].to_numpy(),
        duration_s=table["duration_s"].to_numpy(),
        category_offsets=np.asarray(categories.offsets, dtype=np.int64),
        category_codes=np.asarray(categories.values, dtype=np.int32),
        n_categories=n_categories,
    )


def _strings(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=object)
