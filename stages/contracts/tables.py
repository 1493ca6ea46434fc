"""The tables that flow between stages: frozen, checked once when they are made.

Shapes: N items, D vector dimensions, R rows, Q requests. Times are int64 milliseconds since
1970-01-01 UTC and carry the suffix ``_ms``. Indices are dense, 0-based rows of the id maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.errors import DataError
from stages.contracts.top_k import top_k

PART_CANDIDATE, PART_RANKER, PART_EVALUATION = 0, 1, 2
"""Codes of the ``part`` columns, the periods of a snapshot: the oldest period trains the candidate generator, the next
one the rankers, the latest one is held out."""

SERVING = 3
"""The period after the last one: live requests."""

DAY_MS = 86_400_000


def row_groups(path: Path, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """Yield columns of a Parquet file by name, a row group at a time; no more is in memory.

    Raises:
        DataError: if the file is missing, unreadable or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            _refuse_missing(path, names, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(names))
                yield {name: table[name].to_numpy() for name in names}
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a readable Parquet file: {error}")


def _refuse_missing(path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{path} lacks columns {missing}, found {list(found)}")


@dataclass(frozen=True)
class ColumnTable:
    """A table of equally long one-dimensional arrays with declared types.

    Attributes:
        TYPES: type of each column.
        SCATTERED: columns of floats that hardly ever repeat; a file is smaller, and quicker to write and to read, if it
            splits them into streams of bytes in place of a dictionary.
    """

    TYPES: ClassVar[dict[str, type]] = {}
    SCATTERED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        lengths = set()
        for field in fields(self):
            values = getattr(self, field.name)
            if values is None:
                values = np.zeros(len(getattr(self, fields(self)[0].name)), dtype=self.TYPES[field.name])
                object.__setattr__(self, field.name, values)
            wanted = np.dtype(self.TYPES[field.name])
            if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != wanted:
                found = getattr(values, "dtype", type(values).__name__)
                raise DataError(f"{type(self).__name__}.{field.name} must be a 1-D {wanted} array, found {found}")
            lengths.add(len(values))
        if len(lengths) > 1:
            raise DataError(f"{type(self).__name__}: columns differ in length: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the declared columns of a Parquet file.

        Raises:
            DataError: if the file is missing, unreadable or lacks a column.
        """
        names = [field.name for field in fields(cls)]
        try:
            table = pq.read_table(path, columns=names)  # type: ignore[no-untyped-call]
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None
        _refuse_missing(path, names, table.column_names)
        columns: dict[str, Any] = {name: table[name].to_numpy().astype(cls.TYPES[name], copy=False) for name in names}
        return cls(**columns)

    @staticmethod
    def count(path: Path) -> int:
        """Return the number of rows of a Parquet file, without reading them.

        Raises:
            DataError: if the file is missing or unreadable.
        """
        try:
            return int(pq.read_metadata(path).num_rows)  # type: ignore[no-untyped-call]
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None

    @classmethod
    def groups(cls, path: Path) -> Iterator[Self]:
        """Yield the declared columns of a Parquet file, a row group at a time; empty row groups are left out.

        Raises:
            DataError: if the file is missing, unreadable or lacks a column.
        """
        for columns in row_groups(path, list(cls.TYPES)):
            table = cls(**{name: columns[name].astype(kind, copy=False) for name, kind in cls.TYPES.items()})
            if len(table):
                yield table

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """Return the rows of one or more tables, one after the other."""
        return cls(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in cls.TYPES})

    def write(self, path: Path) -> None:
        """Write the table as Parquet (zstd)."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        pq.write_table(pa.table(columns), path, **self._encoding())  # type: ignore[no-untyped-call]

    @classmethod
    def _encoding(cls) -> dict[str, Any]:
        repeated = [name for name in cls.TYPES if name not in cls.SCATTERED]
        return {"compression": "zstd", "use_dictionary": repeated, "use_byte_stream_split": list(cls.SCATTERED)}

    @classmethod
    @contextmanager
    def writer(cls, path: Path) -> Iterator[Callable[[Self], None]]:
        """Yield a function that appends a table's rows to a Parquet file (zstd)."""
        schema = pa.schema([(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in cls.TYPES.items()])
        with pq.ParquetWriter(path, schema, **cls._encoding()) as file:  # type: ignore[no-untyped-call]

            def append(table: Self) -> None:
                columns = {name: getattr(table, name) for name in cls.TYPES}
                file.write_table(pa.table(columns, schema=schema))  # type: ignore[no-untyped-call]

            yield append

    def take(self, rows: np.ndarray) -> Self:
        """Return the rows selected by an index or boolean array ``[R]``."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class EventTable(ColumnTable):
    """De-duplicated events in time order (``events.parquet``).

    Attributes:
        user_index, item_index: rows of the id maps; items are canonical.
        event_time_ms: when it happened, non-decreasing.
        signal: code into ``SnapshotMeta.signals``.
        value: strength of the signal (rating, watched share, 1 for plain events).
        part: PART_CANDIDATE, PART_RANKER or PART_EVALUATION by the time borders.
        active: whether the user was active as of the end of the row's period. Training reads only active rows; serving
            state (histories, counters) is advanced by all of them.
        context: row of ``contexts.parquet``, 0 where the context is unknown (the default).
    """

    user_index: np.ndarray
    item_index: np.ndarray
    event_time_ms: np.ndarray
    signal: np.ndarray
    value: np.ndarray
    part: np.ndarray
    active: np.ndarray
    context: np.ndarray = None  # type: ignore[assignment]  # filled when it is made
    TYPES: ClassVar[dict[str, type]] = {
        "user_index": np.int64,
        "item_index": np.int64,
        "event_time_ms": np.int64,
        "signal": np.int16,
        "value": np.float32,
        "part": np.int8,
        "active": np.bool_,
        "context": np.int32,
    }


@dataclass(frozen=True)
class RequestTable(ColumnTable):
    """Requests to answer from the state strictly before ``request_time_ms`` (``requests.parquet``).

    Sorted by (request_time_ms, request_id); ``request_id`` equals the row number. ``part`` is
    PART_RANKER or PART_EVALUATION; ``context`` as in ``EventTable``.
    """

    request_id: np.ndarray
    user_index: np.ndarray
    request_time_ms: np.ndarray
    part: np.ndarray
    context: np.ndarray = None  # type: ignore[assignment]  # filled when it is made
    TYPES: ClassVar[dict[str, type]] = {
        "request_id": np.int64,
        "user_index": np.int64,
        "request_time_ms": np.int64,
        "part": np.int8,
        "context": np.int32,
    }


@dataclass(frozen=True)
class CandidateTable(ColumnTable):
    """Candidates of requests, sorted by (request_id, rank) (``candidates.parquet``).

    Attributes:
        request_id, item_index: which request, which item; unique as a pair.
        score: retrieval score, non-increasing within a request.
        rank: 0-based position within the request.
        source: code of the candidate generator (0 = two-tower index).
    """

    request_id: np.ndarray
    item_index: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    source: np.ndarray
    TYPES: ClassVar[dict[str, type]] = {
        "request_id": np.int64,
        "item_index": np.int64,
        "score": np.float32,
        "rank": np.int32,
        "source": np.int8,
    }
    SCATTERED: ClassVar[tuple[str, ...]] = ("score",)


@dataclass(frozen=True)
class RankedTable(ColumnTable):
    """A stage's ranking (``<stage>.parquet``): items by request, best first, sorted by request, rank 0-based."""

    request_id: np.ndarray
    item_index: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    TYPES: ClassVar[dict[str, type]] = {
        "request_id": np.int64,
        "item_index": np.int64,
        "score": np.float32,
        "rank": np.int32,
    }
    SCATTERED: ClassVar[tuple[str, ...]] = ("score",)


@dataclass(frozen=True)
class ScoredItems:
    """One request's items with scores, best first, no duplicates.

    Attributes:
        ids: int64 ``[N]`` item indices.
        scores: float32 ``[N]``, non-increasing.
    """

    ids: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape or self.ids.ndim != 1:
            raise DataError(f"ScoredItems: ids {self.ids.shape} and scores {self.scores.shape} must be equal [N]")
        if len(np.unique(self.ids)) != len(self.ids):
            raise DataError("ScoredItems: an item appears twice")
        if np.any(np.diff(self.scores) > 0) or np.isnan(self.scores).any():
            raise DataError("ScoredItems: scores must not increase and must not be NaN")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def sort(cls, ids: np.ndarray, scores: np.ndarray, k: int | None = None) -> ScoredItems:
        """Sort by score, best first; ties keep the order of ``ids`` (stable); keep the first ``k``."""
        order = top_k(scores, len(scores) if k is None else k)
        return cls(ids=ids[order].astype(np.int64), scores=scores[order].astype(np.float32))
