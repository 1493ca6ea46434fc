"""Readers of text files: delimited (CSV and its kin) and JSON lines.

Rows without quotes are split by Arrow, whole blocks at a time; only rows with quotes go through
Python's csv module, one record each, so that a stray quote spoils no other row.

Shapes: R rows of a block.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.errors import DataError
from stages.warehouse.blocks import Block, Progress, read_blocks
from stages.warehouse.chunks import Chunk, Reject, check_columns
from stages.warehouse.mapping import FileSource, ItemColumns

_BYTES_A_ROW = 32
_CSV_ROWS = 5_000
_BOM = b"\xef\xbb\xbf"


@dataclass
class _Lines:
    """Lines of a block: large_string ``[R]``, their numbers in the file, and the undecodable ones."""

    text: Any
    numbers: np.ndarray
    rejects: list[Reject] = field(default_factory=list)

    def take(self, rows: np.ndarray) -> _Lines:
        return _Lines(self.text.take(pa.array(rows)), self.numbers[rows], self.rejects)


def read_csv(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the rows of a delimited file, about ``chunk_rows`` a chunk.

    Raises:
        DataError: if the file is unreadable, empty without declared columns, or lacks a mapped column.
    """
    names = file.column_names
    if names is not None:
        check_columns(str(file.path), file.mapping, names)
    for lines in _read_lines(file, file.quote, chunk_rows, progress):
        if names is None:
            filled = np.flatnonzero(_filled(lines.text))
            if len(filled) == 0:
                continue
            names = _header(file, lines.text[int(filled[0])].as_py())
            check_columns(str(file.path), file.mapping, names)
            lines = lines.take(np.arange(filled[0] + 1, len(lines.numbers)))  # noqa: PLW2901
        yield _parse_csv(file, names, lines)
    if names is None:
        raise DataError(f"{file.path}: empty, a first line with column names is needed")


def read_jsonl(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the rows of a file with one JSON object a line, about ``chunk_rows`` a chunk.

    Raises:
        DataError: if the file is unreadable or no row of its first chunk has a mapped column.
    """
    separator = file.mapping.category_separator if isinstance(file.mapping, ItemColumns) else "|"
    checked = False
    for every in _read_lines(file, None, chunk_rows, progress):
        lines = every.take(np.flatnonzero(_filled(every.text)))
        rejects = lines.rejects
        rows, kept = [], []
        for position, text in enumerate(lines.text.to_pylist()):
            row = _json_object(text)
            if row is None:
                rejects.append(Reject(int(lines.numbers[position]), "malformed_json", text))
            else:
                rows.append(row)
                kept.append(position)
        if rows and not checked:
            check_columns(str(file.path), file.mapping, list(dict.fromkeys(key for row in rows for key in row)))
            checked = True
        good = lines.take(np.array(kept, dtype=np.int64))
        columns = {
            name: pa.array([_cell(row.get(name), separator) for row in rows], pa.large_string())
            for name in file.mapping.columns
        }
        yield Chunk(columns, good.numbers, _raw(good.text), rejects)


def _read_lines(file: FileSource, quote: str | None, chunk_rows: int, progress: Progress) -> Iterator[_Lines]:
    first = 1
    for block in read_blocks(file.path, chunk_rows * _BYTES_A_ROW, quote, progress):
        data = block.data.removeprefix(_BOM) if first == 1 and file.encoding == "utf-8" else block.data
        lines = _decode(data, file.encoding, first)
        first += data.count(b"\n")
        if block.fault is not None:
            lines.rejects.append(_broken(block, first, file.encoding))
        yield lines


def _broken(block: Block, number: int, encoding: str) -> Reject:
    return Reject(number, str(block.fault), block.tail.decode(encoding, errors="backslashreplace"))


def _decode(data: bytes, encoding: str, first: int) -> _Lines:
    rejects: list[Reject] = []
    try:
        text = pc.split_pattern(pa.array([data.decode(encoding)], pa.large_string()), "\n").values
        numbers = np.arange(first, first + len(text), dtype=np.int64)
    except UnicodeDecodeError:
        good, kept = [], []
        for number, line in enumerate(data.split(b"\n"), start=first):
            try:
                good.append(line.decode(encoding))
                kept.append(number)
            except UnicodeDecodeError:
                raw = line.rstrip(b"\r").decode(encoding, errors="backslashreplace")
                rejects.append(Reject(number, "undecodable", raw))
        text, numbers = pa.array(good, pa.large_string()), np.array(kept, dtype=np.int64)
    if b"\r" in data:
        text = pc.utf8_rtrim(text, "\r")
    return _Lines(text, numbers, rejects)


def _filled(text: Any) -> np.ndarray:
    return np.asarray(pc.binary_length(text).to_numpy() > 0)


def _header(file: FileSource, line: str) -> tuple[str, ...]:
    names = _split(line, file.delimiter, file.quote)
    if names is None:
        raise DataError(f"{file.path}: the first line is not a list of column names: {line[:200]!r}")
    return tuple(name.strip() for name in names)


def _parse_csv(file: FileSource, names: tuple[str, ...], lines: _Lines) -> Chunk:
    rejects = list(lines.rejects)
    wanted = [names.index(column) for column in file.mapping.columns]
    quotes = _count_quotes(lines.text, file.quote)
    plain = lines.take(np.flatnonzero(_outside(quotes) & (quotes == 0) & _filled(lines.text)))
    columns, plain = _split_plain(plain, file.delimiter, len(names), wanted, rejects)
    if quotes.any():
        rows = _split_quoted(lines, quotes, file, len(names), rejects)
        columns, plain = _merge(columns, plain, rows, wanted)
    named = dict(zip(file.mapping.columns, columns, strict=True))
    return Chunk(named, plain.numbers, _raw(plain.text), rejects)


def _count_quotes(text: Any, quote: str | None) -> np.ndarray:
    if quote is None or len(text) == 0:
        return np.zeros(len(text), dtype=np.int64)
    return np.asarray(pc.count_substring(text, quote).to_numpy(), dtype=np.int64)


def _outside(quotes: np.ndarray) -> np.ndarray:
    """Return bool ``[R]``: whether a line begins outside an open quote."""
    return np.asarray((np.cumsum(quotes) - quotes) % 2 == 0)


def _split_plain(
    lines: _Lines, delimiter: str, n_fields: int, wanted: list[int], rejects: list[Reject]
) -> tuple[list[Any], _Lines]:
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
    lines: _Lines, quotes: np.ndarray, file: FileSource, n_fields: int, rejects: list[Reject]
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
            # Not one record after all: a quote was left open, so each line stands for itself.
            filled = [row for row, text in enumerate(texts) if text]
            keep([numbers[row] for row in filled], [texts[row] for row in filled])
    return rows


def _split_all(records: list[str], file: FileSource) -> list[list[str] | None]:
    try:
        found = csv.reader(records, delimiter=file.delimiter, quotechar=file.quote, strict=True)
        rows: list[list[str] | None] = list(found)
    except csv.Error:
        rows = []
    # As many rows as records: no record ran on into the next one.
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
    columns: list[Any], plain: _Lines, rows: list[tuple[int, str, list[str]]], wanted: list[int]
) -> tuple[list[Any], _Lines]:
    numbers = np.concatenate([plain.numbers, np.array([row[0] for row in rows], dtype=np.int64)])
    order = np.argsort(numbers, kind="stable")

    def joined(array: Any, extra: list[str]) -> Any:
        return pa.concat_arrays([array, pa.array(extra, pa.large_string())]).take(pa.array(order))

    merged = [joined(array, [row[2][field] for row in rows]) for array, field in zip(columns, wanted, strict=True)]
    return merged, _Lines(joined(plain.text, [row[1] for row in rows]), numbers[order])


def _raw(text: Any) -> Any:
    return lambda row: text[int(row)].as_py()


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        if "\\u" in text:
            # A lone surrogate is legal among JSON's escapes, but no encoding can hold it.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _cell(value: Any, separator: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return separator.join(str(part) for part in value)
    return repr(value) if isinstance(value, (int, float)) else json.dumps(value, sort_keys=True)
