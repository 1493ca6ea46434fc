"""The snapshot: what the dataset step writes and every training step reads.

Files below one directory:

    snapshot.json      SnapshotMeta
    events.parquet     EventTable, sorted by (event_time_ms, event id)
    requests.parquet   RequestTable, sorted by time
    targets.parquet    request_id int64, item_index int64, relevance float32, one float32 0/1
                       column a task, named ``task_<name>``; sorted by (request_id, item_index)
    items.parquet      item_index int64, item_id str, title str, categories list<int32>,
                       created_at_ms int64, duration_s float32 (NaN = unknown), eligible int8;
                       canonical items
    users.parquet      user_index int64, user_id str
    aliases.parquet    item_id str, item_index int64: ids of duplicates and their canonical item
    blocked.parquet    item_id str, reason str: ids that the content policy keeps out of everything
    review_pairs.csv   pairs of items near the duplicate threshold, for people to judge
    contexts.parquet   context_index int64, one int32 column per context column: 0 where it is unknown,
                       c for ``values[c - 1]`` of ``SnapshotMeta.context``; row 0 is all unknown
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.contracts.config import Config
from stages.contracts.errors import DataError
from stages.contracts.files import read_json
from stages.contracts.id_map import IdMapVersion
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, SERVING, EventTable, RequestTable, row_groups
from stages.contracts.touches import EXPOSURE_SIGNALS, touching
from stages.contracts.value_ranges import ValueRange
from stages.contracts.value_rules import FittedValueRule


class Task(Config):
    """One signal that rankers predict.

    Attributes:
        name: such as ``click`` or ``like``.
        signals: event kinds that count as a positive of this task.
        min_value: smallest ``value`` that counts, after the signal's value rule; None for any.
        relevance: what a positive adds to the graded relevance of a target.
        weight: default weight in the combined objective of a release.
    """

    name: str
    signals: tuple[str, ...]
    min_value: float | None = None
    relevance: float = 0.0
    weight: float = 1.0


class TimeBorders(Config):
    """Borders of the periods (``part`` columns), int ms UTC; each period is [start, end)."""

    start_ms: int
    candidate_end_ms: int
    ranker_end_ms: int
    as_of_ms: int


class ContextColumn(Config):
    """One property of a request's context, such as the device.

    Attributes:
        name: of the key in the events' context.
        values: in the order of their first appearance; code c means ``values[c - 1]``.
    """

    name: str
    values: tuple[str, ...]


def context_faults(old: Sequence[ContextColumn], new: Sequence[ContextColumn]) -> list[str]:
    """Return in words why a snapshot does not keep the context columns of an earlier model; nothing if it does.

    It keeps them if each earlier column is still there, and its values are the first of the column's values.

    Args:
        old: columns of the model.
        new: columns of the snapshot, which may have more values, and further columns.
    """
    values, faults = {column.name: column.values for column in new}, []
    for column in old:
        n, name = len(column.values), column.name
        if name not in values:
            faults.append(f"its context column {name!r} is none of the snapshot's, which are {list(values)}")
        elif values[name][:n] != column.values:
            faults.append(
                f"its {n} values of the context column {name!r} are not the first of the snapshot's "
                f"{len(values[name])}; build the snapshot with the model's snapshot as dataset.base, which keeps them"
            )
    return faults


class SnapshotMeta(Config):
    """``snapshot.json``.

    Attributes:
        signals: event kinds; ``EventTable.signal`` is a position in it.
        categories: names; ``items.categories`` holds positions in it.
        exposure_signals: event kinds that say that an item was shown, and are not touches: the recipe's
            ``features.exposure_signals``. They need not be among ``signals``.
        tasks: the tasks whose labels ``targets.parquet`` holds, the first is the main one.
        borders: time borders of the periods.
        context: columns of ``contexts.parquet``.
        split: ``time``, or the method that assigned user-item pairs to the parts; then both inner borders are the as-of
            time, and the parts are not in order of time.
        ids: versions of the id maps ``users`` and ``items``; a map's rows are those of its file.
        values: rules that have been applied to the values of ``events.parquet``, and that serving
            applies to posted events.
        value_ranges: allowed values of each signal before the rules, learnt from the events; empty in snapshots of
            older versions.
        counts: rows by kind, what was removed and why.
        fingerprint: hex sha256 over the content, independent of the warehouse and of file encoding.
    """

    signals: tuple[str, ...]
    exposure_signals: tuple[str, ...] = EXPOSURE_SIGNALS
    categories: tuple[str, ...]
    tasks: tuple[Task, ...]
    borders: TimeBorders
    context: tuple[ContextColumn, ...] = ()
    split: str = "time"
    ids: dict[str, tuple[IdMapVersion, ...]] = {}
    values: tuple[FittedValueRule, ...] = ()
    value_ranges: tuple[ValueRange, ...] = ()
    counts: dict[str, int]
    fingerprint: str

    @property
    def touching(self) -> np.ndarray:
        """Return bool ``[S]`` by signal code: which events are touches, see ``stages.contracts.touches``."""
        return touching(self.signals, self.exposure_signals)


NEVER_AVAILABLE_MS = (1 << 62) - 1
"""Later than every request."""

ALL_PARTS = 0b111
"""``ItemTable.eligible`` of an item that passed the item policy at the end of every period."""


@dataclass(frozen=True)
class Targets:
    """The target items of each request; rows sorted by (request_id, item_index).

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
        eligible: int8 ``[N]``, bit p is set where the item passed the item policy as of the end of period p; all bits
            by default. See ``withheld``.
    """

    item_id: np.ndarray
    title: np.ndarray
    created_at_ms: np.ndarray
    duration_s: np.ndarray
    category_offsets: np.ndarray
    category_codes: np.ndarray
    n_categories: int
    eligible: np.ndarray = None  # type: ignore[assignment]  # filled when it is made

    def __post_init__(self) -> None:
        if self.eligible is None:
            object.__setattr__(self, "eligible", np.full(len(self.item_id), ALL_PARTS, dtype=np.int8))  # type: ignore[unreachable]

    def __len__(self) -> int:
        return len(self.item_id)

    def withheld(self, part: int) -> np.ndarray:
        """Return bool ``[N]``: items that must not be recommended in the period ``part``.

        The item policy is judged at the end of the period before, with what a release of that time knew.

        Args:
            part: PART_RANKER, PART_EVALUATION or SERVING.
        """
        mask: np.ndarray = (self.eligible >> (part - 1)) & 1 == 0
        return mask

    def available_from_ms(self, part: int) -> np.ndarray:
        """Return int64 ``[N]``: from when on each item may be recommended in the period ``part``, ms UTC.

        That is its creation time, or NEVER_AVAILABLE_MS where the item is withheld.
        """
        return np.where(self.withheld(part), NEVER_AVAILABLE_MS, self.created_at_ms)

    def recommendable(self) -> np.ndarray:
        """Return the items that may be recommended in any period, int64, ascending; only they are indexed."""
        return np.flatnonzero(~(self.withheld(PART_RANKER) & self.withheld(PART_EVALUATION) & self.withheld(SERVING)))


class Snapshot:
    """Typed access to a snapshot directory; every property reads its file."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        """Open a snapshot.

        Args:
            directory: of a finished ``dataset`` step.

        Raises:
            DataError: if its ``snapshot.json`` cannot be opened.
        """
        self.directory = Path(directory)
        try:
            self.meta = SnapshotMeta.model_validate(read_json(self.directory / "snapshot.json"))
        except OSError as error:
            raise DataError(f"snapshot {directory}: snapshot.json: {error.strerror}") from None

    def events(self) -> EventTable:
        """Return all events in time order."""
        return EventTable.read(self.directory / "events.parquet")

    def requests(self) -> RequestTable:
        """Return all requests in time order."""
        return RequestTable.read(self.directory / "requests.parquet")

    def targets(self) -> Targets:
        """Return the targets of all requests."""
        table = pq.read_table(self.directory / "targets.parquet")  # type: ignore[no-untyped-call]
        return self._targets({name: table[name].to_numpy() for name in table.column_names})

    def stream_events(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield columns of the events in time order, a row group at a time."""
        return row_groups(self.directory / "events.parquet", names)

    def stream_requests(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield columns of the requests in time order, a row group at a time."""
        return row_groups(self.directory / "requests.parquet", names)

    def targets_of(self, request_id: np.ndarray) -> Targets:
        """Return the targets of some requests; apart from them only one row group at a time is in memory."""
        names = ["request_id", "item_index", "relevance", *(f"task_{task.name}" for task in self.meta.tasks)]
        kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for rows in row_groups(self.directory / "targets.parquet", names):
            chosen = np.isin(rows["request_id"], request_id)
            for name, values in rows.items():
                kept[name].append(values[chosen])
        return self._targets({name: np.concatenate(pieces) for name, pieces in kept.items()})

    def _targets(self, columns: dict[str, np.ndarray]) -> Targets:
        labels = [columns[f"task_{task.name}"] for task in self.meta.tasks]
        return Targets(
            request_id=columns["request_id"],
            item_index=columns["item_index"],
            relevance=columns["relevance"],
            labels=np.stack(labels, axis=1).astype(np.float32),
        )

    def n_items(self) -> int:
        """Return the number of canonical items N, without reading them."""
        return int(pq.read_metadata(self.directory / "items.parquet").num_rows)  # type: ignore[no-untyped-call]

    def n_events(self) -> int:
        """Return the number of events, without reading them."""
        return EventTable.count(self.directory / "events.parquet")

    def n_users(self) -> int:
        """Return the number of users U, without reading their ids."""
        return int(pq.read_metadata(self.directory / "users.parquet").num_rows)  # type: ignore[no-untyped-call]

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

    def blocked(self) -> dict[str, str]:
        """Return ``{id of an item that is kept out of everything: reason}``."""
        table = pq.read_table(self.directory / "blocked.parquet")  # type: ignore[no-untyped-call]
        return dict(zip(table["item_id"].to_pylist(), table["reason"].to_pylist(), strict=True))

    def contexts(self) -> np.ndarray:
        """Return int32 ``[X, C]`` codes of the contexts, one column a context column; row 0 is zeros."""
        if not self.meta.context:
            return np.zeros((1, 0), dtype=np.int32)
        table = pq.read_table(self.directory / "contexts.parquet")  # type: ignore[no-untyped-call]
        columns = [table[column.name].to_numpy() for column in self.meta.context]
        return np.stack(columns, axis=1).astype(np.int32)


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
        eligible=table["eligible"].to_numpy().astype(np.int8, copy=False),
    )


def _strings(column: Any) -> np.ndarray:
    return np.array(column.to_pylist(), dtype=object)
