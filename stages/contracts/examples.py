"""The ranking examples that both rankers train on, and the NDCG that they compare orders by.

``examples.parquet`` holds sampled candidate rows of requests; a row group holds whole requests, and requests are in the
order of time. The rankers never import each other; they share this module and files.

Shapes: R rows, F features, T tasks, W past windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.errors import DataError
from stages.contracts.files import read_json
from stages.contracts.ndcg import dcg, ideal_dcg
from stages.contracts.ragged import places_in_rows, row_offsets, run_offsets
from stages.contracts.summaries import SCHEMA_FILE

EXAMPLES_FILE = "examples.parquet"
TASK_PREFIX = "task_"


@dataclass(frozen=True)
class ExampleRows:
    """Sampled candidate rows of requests.

    Attributes:
        request_id, user_index: int64 ``[R]``.
        window: int16 ``[R]``, 0 .. W - 1: the past window of the request, in the order of time.
        item_index: int64 ``[R]``.
        score: float32 ``[R]``, retrieval score.
        rank: int32 ``[R]``, 0-based position in the retrieved list.
        source: int8 ``[R]``, see ``stages.contracts.ranking``.
        weight: float32 ``[R]``, 1 / the probability with which the row was kept; 1 for positives.
        relevance: float32 ``[R]``, graded, 0 where the candidate is not a target.
        labels: float32 ``[R, T]`` 0/1.
        features: float32 ``[R, F]``.
    """

    request_id: np.ndarray
    user_index: np.ndarray
    window: np.ndarray
    item_index: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    relevance: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    TYPES: ClassVar[dict[str, type]] = {
        "request_id": np.int64,
        "user_index": np.int64,
        "window": np.int16,
        "item_index": np.int64,
        "score": np.float32,
        "rank": np.int32,
        "source": np.int8,
        "weight": np.float32,
        "relevance": np.float32,
    }
    """Types of the columns that every examples file has."""

    def __post_init__(self) -> None:
        n = len(self.request_id)
        for field in fields(self):
            values = getattr(self, field.name)
            kind = np.dtype(self.TYPES.get(field.name, np.float32))
            dimensions = 1 if field.name in self.TYPES else 2
            if values.dtype != kind or values.ndim != dimensions or len(values) != n:
                wanted = f"{kind} [{n}]" if dimensions == 1 else f"{kind} [{n}, columns]"
                raise DataError(f"ExampleRows.{field.name} must be {wanted}, found {values.dtype} {list(values.shape)}")

    def __len__(self) -> int:
        return len(self.request_id)

    def take(self, rows: np.ndarray | slice) -> Self:
        """Return the rows selected by an index or boolean array ``[R]``, or by a slice."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


Append = Callable[[ExampleRows], None]


class ExamplesFile:
    """A finished examples directory: ``examples.parquet`` and ``feature_schema.json``.

    Attributes:
        path: of ``examples.parquet``.
        feature_names: F names, columns of the file.
        schema_hash: hash of the feature schema that made the features.
        task_names: T names; the file's columns are ``task_<name>``.
        n_rows: R.
        group_rows: int64 ``[n_groups]``, rows of each row group.
    """

    def __init__(self, directory: Path) -> None:
        """Open the file and read its footer.

        Raises:
            DataError: if a file is missing or unreadable, a column is missing, or requests are not sorted or lie in
                two row groups.
        """
        self.path = directory / EXAMPLES_FILE
        self.feature_names, self.schema_hash = _read_schema(directory / SCHEMA_FILE)
        try:
            self._footer = pq.read_metadata(self.path)  # type: ignore[no-untyped-call]
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from None
        found = self._footer.schema.to_arrow_schema().names
        missing = [name for name in (*ExampleRows.TYPES, *self.feature_names) if name not in found]
        if missing:
            raise DataError(f"{self.path} lacks columns {missing}, found {found}")
        features = set(self.feature_names)
        tasks = [name for name in found if name.startswith(TASK_PREFIX) and name not in features]
        self.task_names = tuple(name.removeprefix(TASK_PREFIX) for name in tasks)
        sizes = [self._footer.row_group(number).num_rows for number in range(self._footer.num_row_groups)]
        self.group_rows = np.array(sizes, dtype=np.int64)
        self.n_rows = int(self.group_rows.sum())
        self._refuse_split_requests(found.index("request_id"))

    @property
    def n_groups(self) -> int:
        """Number of row groups."""
        return len(self.group_rows)

    @property
    def group_starts(self) -> np.ndarray:
        """First row of each row group and the number of rows, int64 ``[n_groups + 1]``."""
        return row_offsets(self.group_rows)

    def _refuse_split_requests(self, column: int) -> None:
        last = None
        for number in np.flatnonzero(self.group_rows):
            statistics = self._footer.row_group(int(number)).column(column).statistics
            if statistics is not None and statistics.has_min_max:
                first, final = statistics.min, statistics.max
            else:
                ids = self._columns(int(number), ["request_id"])["request_id"].to_numpy()
                first, final = int(ids.min()), int(ids.max())
            _refuse_earlier(self.path, last, first, f"row group {number}")
            last = final

    def _columns(self, number: int, names: list[str]) -> pa.Table:
        try:
            with pq.ParquetFile(self.path, metadata=self._footer) as file:
                return file.read_row_group(number, columns=names)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, error) from None

    def group(self, number: int, columns: Sequence[str] | None = None) -> ExampleRows:
        """Return the rows of one row group.

        Args:
            number: of the row group, from 0.
            columns: features to read, in this order; None for all, an empty sequence for none.

        Raises:
            DataError: if the group is unreadable, or holds a value that is not allowed.
        """
        names = list(self.feature_names if columns is None else columns)
        tasks = [TASK_PREFIX + name for name in self.task_names]
        table = self._columns(number, [*ExampleRows.TYPES, *tasks, *names])
        rows = ExampleRows(
            **{name: table[name].to_numpy().astype(kind, copy=False) for name, kind in ExampleRows.TYPES.items()},
            labels=_matrix(table, tasks),
            features=_matrix(table, names),
        )
        _refuse_faults(self.path, rows, self.task_names, names, int(self.group_starts[number]))
        return rows

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[ExampleRows]:
        """Yield the rows of each row group in turn; see ``group``."""
        for number in range(self.n_groups):
            yield self.group(number, columns)

    def read(self, with_features: bool = True) -> ExampleRows:
        """Return all rows; apart from them only one row group at a time is in memory.

        Args:
            with_features: whether to read the features; without them ``features`` is ``[R, 0]``.

        Raises:
            DataError: see ``group``.
        """
        columns = self.feature_names if with_features else ()
        widths = {"labels": len(self.task_names), "features": len(columns)}
        arrays: dict[str, np.ndarray] = {
            name: np.empty(self.n_rows, dtype=kind) for name, kind in ExampleRows.TYPES.items()
        }
        arrays |= {name: np.empty((self.n_rows, width), dtype=np.float32) for name, width in widths.items()}
        starts = self.group_starts
        for number, rows in enumerate(self.groups(columns)):
            for name, values in arrays.items():
                values[starts[number] : starts[number + 1]] = getattr(rows, name)
        return ExampleRows(**arrays)

    @staticmethod
    @contextmanager
    def writer(directory: Path, feature_names: Sequence[str], task_names: Sequence[str]) -> Iterator[Append]:
        """Yield a function that appends rows of whole requests as one row group of ``examples.parquet``.

        Values are stored without dictionaries: most features have too many different ones.

        Args:
            directory: that gets the file; ``feature_schema.json`` is written by the caller.
            feature_names: F names.
            task_names: T names.

        Raises:
            DataError: if a name is there twice; on appending, if a value is not allowed, or requests are not in order.
        """
        tasks = [TASK_PREFIX + name for name in task_names]
        kinds = [(name, pa.from_numpy_dtype(np.dtype(kind))) for name, kind in ExampleRows.TYPES.items()]
        schema = pa.schema([*kinds, *((name, pa.float32()) for name in (*tasks, *feature_names))])
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DataError(f"{EXAMPLES_FILE}: columns {twice} are there twice; features need other names")
        path = directory / EXAMPLES_FILE
        n_rows, last = 0, None
        with pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=False, write_statistics=["request_id"]
        ) as file:

            def append(rows: ExampleRows) -> None:
                nonlocal n_rows, last
                if not len(rows):
                    return
                _refuse_shape(rows, tasks, feature_names)
                _refuse_earlier(path, last, int(rows.request_id[0]), f"row {n_rows}")
                _refuse_faults(path, rows, task_names, feature_names, n_rows)
                columns = [getattr(rows, name) for name in ExampleRows.TYPES]
                columns += [*np.ascontiguousarray(rows.labels.T), *np.ascontiguousarray(rows.features.T)]
                file.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))
                n_rows, last = n_rows + len(rows), int(rows.request_id[-1])

            yield append


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a readable Parquet file: {error}")


def _matrix(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Return float32 ``[R, columns]``."""
    matrix = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        matrix[:, place] = table[name].to_numpy()
    return matrix


def _refuse_shape(rows: ExampleRows, tasks: Sequence[str], feature_names: Sequence[str]) -> None:
    found, wanted = (rows.labels.shape[1], rows.features.shape[1]), (len(tasks), len(feature_names))
    if found != wanted:
        raise DataError(
            f"{EXAMPLES_FILE}: rows have {found[0]} labels and {found[1]} features, the columns are {wanted[0]} tasks "
            f"and {wanted[1]} features"
        )


def _refuse_earlier(path: Path, last: int | None, first: int, place: str) -> None:
    if last is not None and first <= last:
        raise DataError(
            f"{path}: request_id = {first} in {place} follows {last}; rows must be sorted by request_id, and a request "
            "must lie in one row group"
        )


def _refuse_faults(
    path: Path, rows: ExampleRows, task_names: Sequence[str], feature_names: Sequence[str], first_row: int
) -> None:
    """Raise a DataError that names file, column, row, value and what is allowed, if any value is not allowed."""
    request, weight, relevance = rows.request_id, rows.weight, rows.relevance
    step = np.diff(request, prepend=request[:1] - 1)
    columns: list[tuple[str, np.ndarray, str]] = [
        ("request_id", step < 0, "must not decrease"),
        ("user_index", (step == 0) & _changes(rows.user_index), "must be the same within a request"),
        ("window", (step == 0) & _changes(rows.window), "must be the same within a request"),
        ("window", rows.window < 0, "must be 0 or more"),
        ("score", ~np.isfinite(rows.score), "must be finite"),
        ("weight", ~(np.isfinite(weight) & (weight >= 1)), "must be finite and at least 1"),
        ("relevance", ~(np.isfinite(relevance) & (relevance >= 0)), "must be finite and not negative"),
    ]
    for name, bad, rule in columns:
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"{path}: {name} = {getattr(rows, name)[row]} in row {first_row + row}, {rule}")
    tasks = [TASK_PREFIX + name for name in task_names]
    for names, values, bad, rule in (
        (tasks, rows.labels, (rows.labels != 0) & (rows.labels != 1), "must be 0 or 1"),
        (feature_names, rows.features, ~np.isfinite(rows.features), "every feature must be finite"),
    ):
        if bad.any():
            row, place = (int(found) for found in np.argwhere(bad)[0])
            raise DataError(f"{path}: {names[place]} = {values[row, place]} in row {first_row + row}, {rule}")


def _changes(values: np.ndarray) -> np.ndarray:
    """Return bool ``[R]``: whether a row differs from the row before it."""
    changes: np.ndarray = np.diff(values, prepend=values[:1]) != 0
    return changes


def _read_schema(path: Path) -> tuple[tuple[str, ...], str]:
    try:
        schema = read_json(path)
        return tuple(str(name) for name in schema["names"]), str(schema["hash"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} must hold the keys names and hash: {error!r}") from None


def read_array(path: Path) -> np.ndarray:
    """Memory-map one ``.npy`` file, read-only and without pickle.

    Raises:
        DataError: if it is missing or not a plain array.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not a readable .npy array: {error}") from None
    return array


def mean_ndcg(request_id: np.ndarray, relevance: np.ndarray, scores: np.ndarray, k: int = 10) -> float:
    """Return the mean NDCG@k over requests that have a relevant row.

    The ideal order is that of the request's own rows: this compares two orders of the same candidates. The held-out
    metric is another one: it also counts the targets that retrieval missed.

    Args:
        request_id: int64 ``[R]``, equal ids side by side.
        relevance: float ``[R]``, not negative.
        scores: float ``[R]``; ties keep row order.
        k: cut-off.

    Raises:
        DataError: if no request has a relevant row.
    """
    lengths = np.diff(run_offsets(request_id))
    request = np.repeat(np.arange(len(lengths)), lengths)
    ideal = ideal_dcg(request, relevance, k, len(lengths))
    counted = ideal > 0
    if not counted.any():
        raise DataError(f"NDCG@{k}: none of {len(ideal)} requests has a relevant row")
    order = np.lexsort((-scores, request))
    found = dcg(request, relevance[order], places_in_rows(lengths), k, len(lengths))
    return float(np.mean(found[counted] / ideal[counted]))
