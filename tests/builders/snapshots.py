"""Snapshots made by hand: their tables from columns, and the files of a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.files import write_json
from stages.contracts.snapshot import ALL_PARTS, SnapshotMeta, Task, TimeBorders
from stages.contracts.tables import PART_CANDIDATE, ColumnTable, EventTable, RequestTable

Table = TypeVar("Table", bound=ColumnTable)
CLICK = Task(name="click", signals=("click",), relevance=1.0)


def event_table(
    user: Any,
    item: Any,
    time_ms: Any,
    part: Any = PART_CANDIDATE,
    *,
    signal: Any = 0,
    value: Any = 1.0,
    active: Any = True,
    context: Any = 0,
) -> EventTable:
    """Return events from columns ``[R]``; one value stands for every row."""
    columns = {"item_index": item, "event_time_ms": time_ms, "signal": signal, "value": value}
    return _table(EventTable, user_index=user, **columns, part=part, active=active, context=context)


def request_table(user: Any, time_ms: Any, part: Any, context: Any = 0) -> RequestTable:
    """Return requests from columns ``[Q]``, numbered in this order; one value stands for every row."""
    number = np.arange(len(user))
    return _table(RequestTable, user_index=user, request_id=number, request_time_ms=time_ms, part=part, context=context)


def _table(kind: type[Table], user_index: Any, **columns: Any) -> Table:
    given = {"user_index": user_index, **columns}
    size = len(user_index)
    return kind(**{name: np.array(np.broadcast_to(given[name], size), of) for name, of in kind.TYPES.items()})


def catalogue(n_items: int, **columns: Any) -> pa.Table:
    """Return items ``i0``, ``i1`` ... that are always there, without categories or durations unless columns say so."""
    names = [f"i{number}" for number in range(n_items)]
    given = {
        "item_index": np.arange(n_items),
        "item_id": names,
        "title": names,
        "categories": [[]] * n_items,
        "created_at_ms": np.zeros(n_items),
        "duration_s": np.full(n_items, np.nan),
        "eligible": np.full(n_items, ALL_PARTS),
        **columns,
    }
    categories = pa.array(list(given.pop("categories")), pa.list_(pa.int32()))
    kinds = {"item_index": np.int64, "created_at_ms": np.int64, "duration_s": np.float32, "eligible": np.int8}
    typed = {name: np.asarray(own, kinds[name]) if name in kinds else list(own) for name, own in given.items()}
    return pa.table({**typed, "categories": categories})


def write_snapshot(
    directory: Path,
    borders: Sequence[int],
    *,
    signals: Sequence[str] = ("click",),
    tasks: Sequence[Task] = (CLICK,),
    categories: Sequence[str] = (),
    events: EventTable | None = None,
    requests: RequestTable | None = None,
    targets: Mapping[str, Any] | None = None,
    items: pa.Table | None = None,
    users: Sequence[str] | None = None,
    aliases: Mapping[str, int] | None = None,
    blocked: Mapping[str, str] | None = None,
    **meta: Any,
) -> Path:
    """Write ``snapshot.json`` and the files of whatever else is given.

    Args:
        directory: made where there is none; returned.
        borders: start, ends of the candidate and the ranker part and as-of time, int ms.
        targets: columns ``request_id`` and ``item_index``; relevance and every label are 1 unless given.
        aliases: canonical item index by id.
        blocked: reason by id.
        meta: further fields of ``SnapshotMeta``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    meta = {"counts": {}, "fingerprint": "f" * 64, **meta}
    made = SnapshotMeta(
        signals=tuple(signals),
        categories=tuple(categories),
        tasks=tuple(tasks),
        borders=TimeBorders(**dict(zip(TimeBorders.model_fields, borders, strict=True))),
        **meta,
    )
    write_json(directory / "snapshot.json", made.model_dump(mode="json"))
    for name, table in (("events", events), ("requests", requests)):
        if table is not None:
            table.write(directory / f"{name}.parquet")
    files = {"items": items}
    if targets is not None:
        files["targets"] = pa.table(_targets(targets, [task.name for task in tasks]))
    if users is not None:
        files["users"] = pa.table({"user_index": np.arange(len(users)), "user_id": pa.array(users, pa.string())})
    for name, named, column, kind in (
        ("aliases", aliases, "item_index", pa.int64()),
        ("blocked", blocked, "reason", pa.string()),
    ):
        if named is not None:
            ids, values = pa.array(list(named), pa.string()), pa.array(list(named.values()), kind)
            files[name] = pa.table({"item_id": ids, column: values})
    for name, table in files.items():
        if table is not None:
            pq.write_table(table, directory / f"{name}.parquet")
    return directory


def _targets(given: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of ``targets.parquet``."""
    ones = np.ones(len(given["request_id"]))
    rows = {name: np.asarray(given[name], np.int64) for name in ("request_id", "item_index")}
    names = ("relevance", *(f"task_{task}" for task in tasks))
    return rows | {name: np.asarray(given.get(name, ones), np.float32) for name in names}
