"""Readers of typed data: Parquet files and Arrow tables.

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
from stages.contracts.ragged import row_offsets
from stages.warehouse.mapping import ColumnMapping, FileSource, ItemColumns
from stages.warehouse.readers.blocks import Progress
from stages.warehouse.readers.chunk import Chunk, Reject, check_columns
from stages.warehouse.readers.exact import exact_ids, exact_text, id_columns

_LISTS = (pa.types.is_list, pa.types.is_large_list)
_TYPED = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_timestamp,
    pa.types.is_boolean,
)


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
        name: of the data, for errors.
        mapping: which columns to read.
        batches: ``pa.RecordBatch`` objects of one schema.

    Raises:
        DataError: if a mapped column is missing.
    """
    separator = mapping.category_separator if isinstance(mapping, ItemColumns) else "|"
    ids = id_columns(mapping)
    first = 1
    for batch in batches:
        check_columns(name, mapping, batch.schema.names)
        wanted = batch.select(list(mapping.columns))
        numbers = np.arange(first, first + len(wanted), dtype=np.int64)
        first += len(wanted)
        try:
            yield _chunk(wanted, numbers, separator, ids)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None


def _chunk(batch: Any, numbers: np.ndarray, separator: str, ids: dict[str, str]) -> Chunk:
    unreadable = np.zeros(len(batch), dtype=bool)
    columns = {}
    for name in batch.schema.names:
        column = batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if any(kind(column.type) for kind in _LISTS):
            column = _joined(column, separator, ids.get(name), name)
        columns[name] = _plain(column, unreadable)

    def raw(row: int) -> str:
        return json.dumps(batch.slice(int(row), 1).to_pylist()[0], default=repr, ensure_ascii=True)

    if not unreadable.any():
        return Chunk(columns, numbers, raw)
    rejects = [Reject(int(numbers[row]), "undecodable", raw(int(row))) for row in np.flatnonzero(unreadable)]
    kept = np.flatnonzero(~unreadable)
    good = {name: column.take(pa.array(kept)) for name, column in columns.items()}
    return Chunk(good, numbers[kept], lambda row: raw(int(kept[row])), rejects)


def _joined(column: Any, separator: str, id_field: str | None, name: str) -> Any:
    """Return a column of lists as text, each list joined by the separator; ids must be exact."""
    values = column.flatten()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    texts = exact_text(values) if id_field is None else exact_ids(values, id_field, name)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(row_offsets(lengths), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, texts, mask=column.is_null())
    return pc.binary_join(lists, pa.scalar(separator, pa.large_string()))


def _plain(column: Any, unreadable: np.ndarray) -> Any:
    """Return a column as strings, numbers, timestamps or booleans; rows that are not UTF-8 are marked."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if any(kind(column.type) for kind in _TYPED):
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
