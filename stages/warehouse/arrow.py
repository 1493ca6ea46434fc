"""Readers of data that is typed already: Parquet files and Arrow tables.

Shapes: R rows of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.contracts.errors import DataError
from stages.warehouse.blocks import Progress
from stages.warehouse.chunks import Chunk, Reject, check_columns
from stages.warehouse.mapping import ColumnMapping, FileSource, ItemColumns


def read_parquet(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the mapped columns of a Parquet file, at most ``chunk_rows`` rows a chunk.

    Raises:
        DataError: if the file is missing or not readable as Parquet, or lacks a mapped column.
    """
    try:
        size = file.path.stat().st_size
        with pq.ParquetFile(file.path) as parquet:
            check_columns(str(file.path), file.mapping, parquet.schema_arrow.names)
            total = max(1, parquet.metadata.num_rows)
            batches = parquet.iter_batches(batch_size=chunk_rows, columns=list(file.mapping.columns))
            for chunk in chunk_batches(str(file.path), file.mapping, batches):
                progress(size * len(chunk) // total)
                yield chunk
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {error}") from None


def chunk_batches(name: str, mapping: ColumnMapping, batches: Iterable[Any]) -> Iterator[Chunk]:
    """Yield one chunk for each Arrow record batch.

    Args:
        name: what to call the data in an error.
        mapping: which columns to read.
        batches: ``pa.RecordBatch`` objects of one schema.

    Raises:
        DataError: if a mapped column is missing.
    """
    separator = mapping.category_separator if isinstance(mapping, ItemColumns) else "|"
    first = 1
    for batch in batches:
        check_columns(name, mapping, batch.schema.names)
        wanted = batch.select(list(mapping.columns))
        numbers = np.arange(first, first + len(wanted), dtype=np.int64)
        first += len(wanted)
        yield _chunk(wanted, numbers, separator)


def _chunk(batch: Any, numbers: np.ndarray, separator: str) -> Chunk:
    unreadable = np.zeros(len(batch), dtype=bool)
    columns = {name: _plain(batch.column(name), separator, unreadable) for name in batch.schema.names}

    def raw(row: int) -> str:
        return json.dumps(batch.slice(int(row), 1).to_pylist()[0], default=repr, ensure_ascii=True)

    if not unreadable.any():
        return Chunk(columns, numbers, raw)
    rejects = [Reject(int(numbers[row]), "undecodable", raw(int(row))) for row in np.flatnonzero(unreadable)]
    kept = np.flatnonzero(~unreadable)
    good = {name: column.take(pa.array(kept)) for name, column in columns.items()}
    return Chunk(good, numbers[kept], lambda row: raw(int(kept[row])), rejects)


def _plain(column: Any, separator: str, unreadable: np.ndarray) -> Any:
    """Return a column as strings, numbers, timestamps or booleans, and mark what is not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.binary_join(column.cast(pa.list_(pa.string())), separator)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_timestamp, pa.types.is_boolean)
    if any(kind(column.type) for kind in kinds):
        return column
    return _text(column, unreadable)


def _text(column: Any, unreadable: np.ndarray) -> Any:
    try:
        text = column.cast(pa.large_string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        values: list[str | None] = []
        for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                values.append(None if value is None else value.decode("utf-8"))
            except UnicodeDecodeError:
                unreadable[row] = True
                values.append(None)
        text = pa.array(values, pa.large_string())
    return text
