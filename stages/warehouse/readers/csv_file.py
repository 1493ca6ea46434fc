"""Reader of delimited text files, such as CSV and TSV.

Arrow splits the rows without quotes, a whole block at a time. Rows with quotes go through Python's csv
module, one record at a time, so that a stray quote does not spoil other rows.

Shapes: R rows of a block.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.errors import DataError
from stages.warehouse.mapping import FileSource
from stages.warehouse.readers.blocks import Progress
from stages.warehouse.readers.chunk import Chunk, Reject, check_columns
from stages.warehouse.readers.lines import BYTES_A_ROW, Lines, filled, raw_lines, read_lines

_CSV_ROWS = 5_000


def read_csv(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the rows of a delimited file, about ``chunk_rows`` a chunk.

    Raises:
        DataError: if the file is unreadable, empty without declared columns, or lacks a mapped column.
    """
    names, header = file.column_names, None
    if names is not None:
        check_columns(str(file.path), file.mapping, names)
    for lines in read_lines(file, file.quote, chunk_rows * BYTES_A_ROW, progress):
        if names is None:
            found = np.flatnonzero(filled(lines.text))
            _check_readable(file, lines, found)
            if len(found) == 0:
                continue
            header = lines.text[int(found[0])].as_py()
            names = _header(file, header)
            check_columns(str(file.path), file.mapping, names)
            lines = lines.take(np.arange(found[0] + 1, len(lines.numbers)))  # noqa: PLW2901
        yield _parse_csv(file, names, lines, header)
    if names is None:
        raise DataError(f"{file.path}: empty, a first line with column names is needed")


def _check_readable(file: FileSource, lines: Lines, found: np.ndarray) -> None:
    """Refuse a file whose header cannot be read; else the next line would be taken for the header."""
    first = lines.numbers[found[0]] if len(found) else np.inf
    for reject in lines.rejects:
        if reject.row_number < first:
            raise DataError(
                f"{file.path}: line {reject.row_number}, where the column names should be, is {reject.reason}"
                f" (encoding = {file.encoding}): {reject.raw[:200]!r}"
            )


def _header(file: FileSource, line: str) -> tuple[str, ...]:
    names = _split(line, file.delimiter, file.quote)
    if names is None:
        raise DataError(f"{file.path}: the first line is not a list of column names: {line[:200]!r}")
    return tuple(name.strip() for name in names)


def _parse_csv(file: FileSource, names: tuple[str, ...], lines: Lines, header: str | None) -> Chunk:
    wanted = [names.index(column) for column in file.mapping.columns]
    lines, quotes = _without_headers(file, lines, header)
    rejects = list(lines.rejects)
    plain = lines.take(np.flatnonzero(_outside(quotes) & (quotes == 0) & filled(lines.text)))
    columns, plain = _split_plain(plain, file.delimiter, len(names), wanted, rejects)
    if quotes.any():
        rows = _split_quoted(lines, quotes, file, len(names), rejects)
        columns, plain = _merge(columns, plain, rows, wanted)
    named = dict(zip(file.mapping.columns, columns, strict=True))
    return Chunk(named, plain.numbers, raw_lines(plain.text), rejects)


def _without_headers(file: FileSource, lines: Lines, header: str | None) -> tuple[Lines, np.ndarray]:
    """Drop repeated header lines of concatenated files; return the other lines and their quote counts."""
    quotes = _count_quotes(lines.text, file.quote)
    if header is None:
        return lines, quotes
    repeated = np.asarray(pc.equal(lines.text, header).to_numpy(zero_copy_only=False)) & _outside(quotes)
    if not repeated.any():
        return lines, quotes
    lines.rejects.extend(Reject(int(number), "repeated_header", header) for number in lines.numbers[repeated])
    return lines.take(np.flatnonzero(~repeated)), quotes[~repeated]


def _count_quotes(text: Any, quote: str | None) -> np.ndarray:
    if quote is None or len(text) == 0:
        return np.zeros(len(text), dtype=np.int64)
    return np.asarray(pc.count_substring(text, quote).to_numpy(), dtype=np.int64)


def _outside(quotes: np.ndarray) -> np.ndarray:
    """Return bool ``[R]``: whether a line begins outside an open quote."""
    return np.asarray((np.cumsum(quotes) - quotes) % 2 == 0)


def _split_plain(
    lines: Lines, delimiter: str, n_fields: int, wanted: list[int], rejects: list[Reject]
) -> tuple[list[Any], Lines]:
    fields = pc.split_pattern(lines.text, delimiter)
    fits = pc.list_value_length(fields).to_numpy(zero_copy_only=False) == n_fields
    for position in np.flatnonzero(~fits):
        rejects.append(Reject(int(lines.numbers[position]), "field_count", lines.text[int(position)].as_py()))
    if not fits.all():
        kept = np.flatnonzero(fits)
        lines, fields = lines.take(kept), fields.take(pa.array(kept))
    flat = fields.flatten()
    return [flat.take(pa.array(np.arange(column, len(flat), n_fields))) for column in wanted], lines


def _split_quoted(
    lines: Lines, quotes: np.ndarray, file: FileSource, n_fields: int, rejects: list[Reject]
) -> list[tuple[int, str, list[str]]]:
    """Return (row number, raw text, fields) of each record that has a quote."""
    rows: list[tuple[int, str, list[str]]] = []

    def keep(numbers: list[int], texts: list[str]) -> None:
        for number, text, values in zip(numbers, texts, _split_all(texts, file), strict=True):
            if values is not None and len(values) == n_fields:
                rows.append((number, text, values))
            else:
                rejects.append(Reject(number, "malformed_quotes" if values is None else "field_count", text))

    closed = np.flatnonzero(_outside(quotes) & (quotes > 0) & (quotes % 2 == 0))
    for start in range(0, len(closed), _CSV_ROWS):
        some = lines.take(closed[start : start + _CSV_ROWS])
        keep(some.numbers.tolist(), some.text.to_pylist())
    odd = np.flatnonzero(quotes % 2)
    for start, end in zip(odd[::2], [*odd[1::2], len(quotes) - 1][: len(odd[::2])], strict=True):
        texts, numbers = lines.text.slice(start, end + 1 - start).to_pylist(), lines.numbers[start : end + 1].tolist()
        record = "\n".join(texts)
        values = _split(record, file.delimiter, file.quote)
        if values is not None and len(values) == n_fields:
            rows.append((numbers[0], record, values))
        else:
            # The lines are not one record: a quote was left open. Each line is a record of its own.
            filled = [row for row, text in enumerate(texts) if text]
            keep([numbers[row] for row in filled], [texts[row] for row in filled])
    return rows


def _split_all(records: list[str], file: FileSource) -> list[list[str] | None]:
    try:
        found = csv.reader(records, delimiter=file.delimiter, quotechar=file.quote, strict=True)
        rows: list[list[str] | None] = list(found)
    except csv.Error:
        rows = []
    # With as many rows as records, no record continues into the next one.
    return rows if len(rows) == len(records) else [_split(record, file.delimiter, file.quote) for record in records]


def _split(record: str, delimiter: str, quote: str | None) -> list[str] | None:
    if quote is None:
        return record.split(delimiter)
    try:
        rows = list(csv.reader([record], delimiter=delimiter, quotechar=quote, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _merge(
    columns: list[Any], plain: Lines, rows: list[tuple[int, str, list[str]]], wanted: list[int]
) -> tuple[list[Any], Lines]:
    numbers = np.concatenate([plain.numbers, np.array([row[0] for row in rows], dtype=np.int64)])
    order = np.argsort(numbers, kind="stable")

    def joined(array: Any, extra: list[str]) -> Any:
        return pa.concat_arrays([array, pa.array(extra, pa.large_string())]).take(pa.array(order))

    merged = [joined(array, [row[2][field] for row in rows]) for array, field in zip(columns, wanted, strict=True)]
    return merged, Lines(joined(plain.text, [row[1] for row in rows]), numbers[order])
