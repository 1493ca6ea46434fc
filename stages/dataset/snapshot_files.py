"""Write the snapshot's files and its fingerprint, which covers the content and not the encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.files import canonical_json, write_json
from stages.contracts.id_map import IdMapVersion
from stages.contracts.ragged import row_offsets
from stages.contracts.snapshot import ContextColumn, SnapshotMeta, Targets, Task, TimeBorders
from stages.contracts.tables import EventTable, RequestTable
from stages.contracts.value_ranges import ValueRange
from stages.contracts.value_rules import FittedValueRule
from stages.dataset.events import stream_column
from stages.dataset.ids import Catalogue

_LITTLE_ENDIAN = {"i": "<i8", "f": "<f4", "b": "<i8"}


@dataclass(frozen=True)
class Contents:
    """Everything that a snapshot holds; the events are in ``events.parquet`` already."""

    signals: tuple[str, ...]
    exposure_signals: tuple[str, ...]
    tasks: tuple[Task, ...]
    borders: TimeBorders
    events: Path
    requests: RequestTable
    targets: Targets
    items: Catalogue
    user_ids: pa.Array
    aliases: Mapping[str, int]
    blocked: Mapping[str, str] = field(default_factory=dict)
    context: tuple[ContextColumn, ...] = ()
    split: str = "time"
    ids: Mapping[str, tuple[IdMapVersion, ...]] = field(default_factory=dict)
    values: tuple[FittedValueRule, ...] = ()
    value_ranges: tuple[ValueRange, ...] = ()
    contexts: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), dtype=np.int32))


class ContentHash:
    """A sha256 over typed values; each is preceded by its length, so that neighbouring values cannot be confused."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def text(self, value: str) -> None:
        """Add a string."""
        data = value.encode("utf-8")
        self._digest.update(len(data).to_bytes(8, "little") + data)

    def texts(self, values: Iterable[str]) -> None:
        """Add a list of strings."""
        for value in values:
            self.text(value)
        self.text("end of list")

    def numbers(self, values: np.ndarray) -> None:
        """Add an array: integers and booleans as 64 bits, floats as 32 with one NaN and one zero."""
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.float32(np.nan), values + 0.0)
        data = np.ascontiguousarray(values, dtype=_LITTLE_ENDIAN[values.dtype.kind])
        self._digest.update(data.nbytes.to_bytes(8, "little"))
        self._digest.update(data.tobytes())

    def stream(self, pieces: Iterable[np.ndarray], size: int) -> None:
        """Add an array of ``size`` values that comes in pieces; the hash is that of ``numbers`` of the whole array."""
        self._digest.update((8 * size).to_bytes(8, "little"))
        for values in pieces:
            self._digest.update(np.ascontiguousarray(values, dtype="<i8").data)

    def hexdigest(self) -> str:
        """Return the hash so far."""
        return self._digest.hexdigest()


def fingerprint(contents: Contents) -> str:
    """Return the hex sha256 of a snapshot's content.

    Equal content gives equal fingerprints, whichever database it came from, in whatever order the
    rows were loaded, and however the files are compressed.
    """
    digest = ContentHash()
    digest.texts(contents.signals)
    shown = [name for name in contents.signals if name in contents.exposure_signals]
    if shown:  # nothing is added if every kept event is a touch
        digest.texts(shown)
    digest.texts(contents.items.category_names)
    digest.text(canonical_json([task.model_dump(mode="json") for task in contents.tasks]))
    digest.text(canonical_json(contents.borders.model_dump(mode="json")))
    digest.texts(contents.user_ids.to_pylist())
    digest.texts(contents.items.item_id.to_pylist())
    digest.texts(contents.items.title.to_pylist())
    offsets, codes = _flatten(contents.items.categories)
    for values in (offsets, codes, contents.items.created_at_ms, contents.items.duration_s, contents.items.eligible):
        digest.numbers(values)
    for alias, index in sorted(contents.aliases.items()):
        digest.texts([alias, str(index)])
    for item_id, reason in sorted(contents.blocked.items()):
        digest.texts([item_id, reason])
    digest.text(canonical_json([column.model_dump(mode="json") for column in contents.context]))
    digest.numbers(contents.contexts.ravel())
    n_events = pq.read_metadata(contents.events).num_rows  # type: ignore[no-untyped-call]
    for name, kind in EventTable.TYPES.items():
        pieces = stream_column(contents.events, name)
        # Floats are hashed by their bits, since they are read exactly as they were stored.
        digest.stream((_bits(values) for values in pieces) if kind is np.float32 else pieces, n_events)
    for table in (contents.requests, contents.targets):
        for column in fields(table):
            digest.numbers(getattr(table, column.name))
    return digest.hexdigest()


def write_snapshot(contents: Contents, counts: dict[str, int], directory: Path) -> SnapshotMeta:
    """Write the files of ``stages.contracts.snapshot`` beside ``events.parquet``, ``snapshot.json`` last."""
    contents.requests.write(directory / "requests.parquet")
    targets = {
        "request_id": contents.targets.request_id,
        "item_index": contents.targets.item_index,
        "relevance": contents.targets.relevance,
    }
    for column, task in enumerate(contents.tasks):
        targets[f"task_{task.name}"] = contents.targets.labels[:, column]
    _write(targets, directory / "targets.parquet")
    items = contents.items
    offsets, codes = _flatten(items.categories)
    _write(
        {
            "item_index": np.arange(len(items), dtype=np.int64),
            "item_id": items.item_id,
            "title": items.title,
            "categories": pa.ListArray.from_arrays(offsets.astype(np.int32), pa.array(codes, pa.int32())),
            "created_at_ms": items.created_at_ms,
            "duration_s": items.duration_s,
            "eligible": items.eligible,
        },
        directory / "items.parquet",
    )
    users = {"user_index": np.arange(len(contents.user_ids), dtype=np.int64), "user_id": contents.user_ids}
    _write(users, directory / "users.parquet")
    ordered = sorted(contents.aliases.items())
    aliases = {
        "item_id": pa.array([alias for alias, _ in ordered], pa.string()),
        "item_index": pa.array([index for _, index in ordered], pa.int64()),
    }
    _write(aliases, directory / "aliases.parquet")
    refused = sorted(contents.blocked.items())
    blocked = {
        "item_id": pa.array([item_id for item_id, _ in refused], pa.string()),
        "reason": pa.array([reason for _, reason in refused], pa.string()),
    }
    _write(blocked, directory / "blocked.parquet")
    contexts = {column.name: contents.contexts[:, place] for place, column in enumerate(contents.context)}
    index = np.arange(len(contents.contexts), dtype=np.int64)
    _write({"context_index": index, **contexts}, directory / "contexts.parquet")
    meta = SnapshotMeta(
        signals=contents.signals,
        exposure_signals=contents.exposure_signals,
        categories=tuple(items.category_names),
        tasks=contents.tasks,
        borders=contents.borders,
        context=contents.context,
        split=contents.split,
        ids=dict(contents.ids),
        values=contents.values,
        value_ranges=contents.value_ranges,
        counts=counts,
        fingerprint=fingerprint(contents),
    )
    write_json(directory / "snapshot.json", meta.model_dump(mode="json"))
    return meta


def _write(columns: Mapping[str, object], path: Path) -> None:
    pq.write_table(pa.table(dict(columns)), path, compression="zstd")  # type: ignore[no-untyped-call]


def _bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of float32 values, with one NaN and one zero."""
    return np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0)).view(np.int32)


def _flatten(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets int64 ``[N + 1]``, values int32)."""
    offsets = row_offsets([len(values) for values in lists])
    return offsets, np.array([value for values in lists for value in values], dtype=np.int32)
