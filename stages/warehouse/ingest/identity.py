"""The id of a row: a hash of its content, or of the id that its event has in the file.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from stages.warehouse.ingest.report import FileReport
from stages.warehouse.ingest.row_ids import Occurrences, combine, hash_numbers, hash_strings, hash_text
from stages.warehouse.mapping import InteractionColumns
from stages.warehouse.readers.chunk import Reject


def event_ids(rows: Any, source_name: str, mapping: InteractionColumns, seen: Occurrences) -> tuple[Any, np.ndarray]:
    """Return the distinct events, without ``event_key``, and their int64 ids.

    Args:
        rows: ``pa.Table [R]`` as ``normalise`` returns it.
        source_name: name of the data source, hashed into each id.
        mapping: says whether events have an id of their own.
        seen: numbers the identical rows of the file.
    """
    if mapping.event_id is not None:
        return _by_event_id(rows, source_name, mapping)
    parts: list[np.ndarray | np.uint64] = [
        hash_text(source_name),
        hash_strings(rows["user_id"]),
        hash_strings(rows["item_id"]),
        hash_strings(rows["signal"]),
        hash_numbers(rows["value"]),
        hash_numbers(rows["event_time_ms"]),
        # Only with a context column: the ids of events without context stay as in earlier versions.
        *([hash_strings(rows["context"])] if mapping.context else []),
    ]
    return rows, _identity(combine(parts, len(rows)), seen)


def quarantine_rows(
    rejects: list[Reject], source_name: str, report: FileReport, load_id: int, seen: Occurrences
) -> Any:
    """Return the rows of table ``quarantine`` for a file's quarantined rows."""
    size = len(rejects)
    reasons = pa.array([reject.reason for reject in rejects], pa.large_string())
    raws = pa.array([reject.raw.replace("\0", "\\x00") for reject in rejects], pa.large_string())
    names = [hash_text(source_name), hash_text(report.table)]
    hashes = combine([*names, hash_strings(reasons), hash_strings(raws)], size)
    columns = {
        "quarantine_id": _identity(hashes, seen),
        "batch_id": pa.repeat(pa.scalar(report.batch_id), size),
        "file": pa.repeat(pa.scalar(report.file), size),
        "table_name": pa.repeat(pa.scalar(report.table), size),
        "row_number": pa.array([reject.row_number for reject in rejects], pa.int64()),
        "reason": reasons,
        "raw": raws,
        "load_id": pa.repeat(pa.scalar(load_id), size),
    }
    return pa.table(columns)


def _by_event_id(rows: Any, source_name: str, mapping: InteractionColumns) -> tuple[Any, np.ndarray]:
    """Return the first event of each own id, and int64 ids hashed from it."""
    parts: list[np.ndarray | np.uint64] = [hash_text(source_name), hash_text("event_id")]
    parts.append(hash_strings(rows["event_key"]))
    if mapping.item_separator is not None:
        parts += [hash_strings(rows["item_id"]), hash_strings(rows["signal"])]
    ids = combine(parts, len(rows)).view(np.int64)
    first = np.sort(np.unique(ids, return_index=True)[1])
    return rows.drop_columns(["event_key"]).take(pa.array(first)), ids[first]


def _identity(hashes: np.ndarray, seen: Occurrences) -> np.ndarray:
    """Return int64 ids: a hash of the row's hash and its number among identical rows."""
    numbers = seen.number(hashes).astype(np.uint64)
    return combine([hashes, numbers], len(hashes)).view(np.int64)
