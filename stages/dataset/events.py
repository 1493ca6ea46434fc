"""Write ``events.parquet`` as the warehouse streams it, and read back the rows that requests need.

Shapes: R rows of a batch, U users, N items, P = 3 periods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.progress import progress_of
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER, EventTable, row_groups
from stages.contracts.value_ranges import SeenValues
from stages.dataset.ids import check_time_order

PART_NAMES = {PART_CANDIDATE: "candidate", PART_RANKER: "ranker", PART_EVALUATION: "evaluation"}
ROW_GROUP = 1 << 20
"""Rows of a row group; so many rows are in memory at a time."""

_ENCODINGS = dict.fromkeys(("user_index", "item_index", "event_time_ms"), "DELTA_BINARY_PACKED")
"""Compared with dictionaries, which outgrow their page: less than half the time to write, two thirds of the size."""
_FEW_VALUES = ["signal", "value", "part", "context"]
_SCHEMA = pa.schema([(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in EventTable.TYPES.items()])


@dataclass
class Tally:
    """Counts of the written rows, by period.

    Attributes:
        events, inactive: int64 ``[P]``: number of rows, and of rows that training leaves out.
        users, active_users: bool ``[P, U]``: users with a row, and users with a row that training reads.
        used_items: bool ``[N]``: items with a row.
        values: statistics of the values, by code of the signal.
    """

    events: np.ndarray
    inactive: np.ndarray
    users: np.ndarray
    active_users: np.ndarray
    used_items: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    values: dict[int, SeenValues] = field(default_factory=dict)

    @classmethod
    def empty(cls, n_users: int, n_items: int) -> Tally:
        """Return a tally of nothing."""
        counts, flags = np.zeros((2, len(PART_NAMES)), dtype=np.int64), np.zeros((2, len(PART_NAMES), n_users), bool)
        return cls(counts[0], counts[1], flags[0], flags[1], np.zeros(n_items, dtype=bool))

    def add(self, events: EventTable) -> None:
        """Count more rows."""
        for part in PART_NAMES:
            rows = events.part == part
            if not rows.any():
                continue
            active = rows & events.active
            self.events[part] += int(rows.sum())
            self.inactive[part] += int(rows.sum() - active.sum())
            self.users[part, events.user_index[rows]] = True
            self.active_users[part, events.user_index[active]] = True
        self.used_items[events.item_index] = True
        for code in np.flatnonzero(np.bincount(events.signal)).tolist():
            self.values.setdefault(code, SeenValues()).add(events.value[events.signal == code])

    def counts(self) -> dict[str, int]:
        """Return the numbers for ``SnapshotMeta.counts``."""
        counts = {"events": int(self.events.sum())}
        for part, name in PART_NAMES.items():
            counts[f"{name}_events"] = int(self.events[part])
            counts[f"{name}_events_not_trained_on"] = int(self.inactive[part])
            counts[f"{name}_users"] = int(self.users[part].sum())
            counts[f"{name}_active_users"] = int(self.active_users[part].sum())
        return counts


def label_events(
    batches: Iterable[pa.RecordBatch], ends: Sequence[int], user_bits: np.ndarray, item_bits: np.ndarray
) -> Iterator[EventTable]:
    """Add the period to the warehouse's rows, and mark the rows that training reads.

    Args:
        batches: with the columns of ``stages.warehouse.selection.selection.EVENTS_SCHEMA``, in time order.
        ends: ends of the periods, int ms UTC; not needed if the batches have a column ``part``.
        user_bits: int8 ``[U]``; bit p is set if the user is active at the end of period p.
        item_bits: int8 ``[N]``; bit p is set if the item is eligible at the end of period p.

    Yields:
        Tables of ``ROW_GROUP`` rows, the last one shorter.

    Raises:
        DataError: if the times decrease.
    """
    latest = None
    for rows in _regroup(batches):
        times = rows["event_time_ms"].to_numpy()
        check_time_order(times if latest is None else np.concatenate([[latest], times]))
        latest = times[-1]
        if "part" in rows.column_names:
            part = rows["part"].to_numpy()
        else:
            part = np.searchsorted(np.asarray(ends[:-1]), times, side="right").astype(np.int8)
        user, item = rows["user_index"].to_numpy(), rows["item_index"].to_numpy()
        yield EventTable(
            user_index=user,
            item_index=item,
            event_time_ms=times,
            signal=rows["signal"].to_numpy(),
            value=rows["value"].to_numpy().astype(np.float32),
            part=part,
            active=(user_bits[user] & item_bits[item]) >> part & 1 == 1,
            context=rows["context"].to_numpy(),
        )


def write_events(tables: Iterable[EventTable], path: Path, tally: Tally) -> None:
    """Write tables to one Parquet file, a row group each, and count them.

    A table is encoded in a thread while the next one is made.
    """
    form: dict[str, Any] = {"use_dictionary": _FEW_VALUES, "column_encoding": _ENCODINGS, "compression": "zstd"}
    with (
        pq.ParquetWriter(path, _SCHEMA, **form) as writer,
        ThreadPoolExecutor(1) as encoder,
        progress_of("dataset", None, "event") as advance,
    ):
        written: Future[None] | None = None
        for table in tables:
            tally.add(table)
            advance(len(table))
            rows = pa.table({name: getattr(table, name) for name in EventTable.TYPES}, schema=_SCHEMA)
            if written is not None:
                written.result()
            written = encoder.submit(writer.write_table, rows)
        if written is not None:
            written.result()


def read_for_requests(path: Path, n_items: int) -> EventTable:
    """Read the rows that requests depend on: the later periods, and the candidate period's rows of the same pairs.

    Of the candidate period, which is most of the file, a request only needs to know whether its user
    touched an item before.

    Args:
        path: ``events.parquet``, in time order.
        n_items: N.
    """
    later = _take(path, lambda rows: rows["part"] != PART_CANDIDATE)
    among = _membership(np.unique(later.user_index * n_items + later.item_index))

    def touched_again(rows: dict[str, np.ndarray]) -> np.ndarray:
        chosen: np.ndarray = rows["part"] == PART_CANDIDATE
        chosen[chosen] = among(rows["user_index"][chosen] * n_items + rows["item_index"][chosen])
        return chosen

    earlier = _take(path, touched_again)
    columns = {name: np.concatenate([getattr(earlier, name), getattr(later, name)]) for name in EventTable.TYPES}
    return EventTable(**columns)


def _membership(keys: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of int64 ``[R]`` that finds the values that are among the keys (ascending, none negative).

    A table of the keys' low bits first rules out most other values: a binary search in millions of keys
    misses the cache at every step.
    """
    mask = (1 << (8 * len(keys)).bit_length()) - 1
    marks = np.zeros(mask + 1, dtype=bool)
    marks[keys & mask] = True

    def among(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = marks[values & mask]
        left = values[found]
        found[found] = keys[np.minimum(np.searchsorted(keys, left), len(keys) - 1)] == left
        return found

    return among


def stream_column(path: Path, name: str) -> Iterator[np.ndarray]:
    """Yield one column of a Parquet file, a batch at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP, columns=[name]):
            values: np.ndarray = batch.column(0).to_numpy(zero_copy_only=False)
            yield values


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the rows in tables of ``ROW_GROUP`` rows, so that the file does not depend on the batches' sizes."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += len(batch)
        while size >= ROW_GROUP:
            whole = pa.Table.from_batches(held)
            yield whole.slice(0, ROW_GROUP)
            held = whole.slice(ROW_GROUP).to_batches()
            size -= ROW_GROUP
    if size:
        yield pa.Table.from_batches(held)


def _take(path: Path, choose: Any) -> EventTable:
    """Read the rows that ``choose`` (columns by name -> bool ``[R]``) marks."""
    kept: dict[str, list[np.ndarray]] = {name: [np.zeros(0, kind)] for name, kind in EventTable.TYPES.items()}
    for rows in row_groups(path, list(EventTable.TYPES)):
        chosen = choose(rows)
        for name, values in rows.items():
            kept[name].append(values[chosen])
    return EventTable(**{name: np.concatenate(pieces) for name, pieces in kept.items()})
