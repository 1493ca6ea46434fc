"""Reader of JSON lines: one object a line; nested fields are addressed by dotted paths.

Shapes: R rows of a block.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stages.contracts.errors import DataError
from stages.warehouse.mapping import FileSource, ItemColumns
from stages.warehouse.readers.blocks import Progress
from stages.warehouse.readers.chunk import Chunk, Reject, check_columns
from stages.warehouse.readers.exact import exact_number, id_columns, not_exact
from stages.warehouse.readers.lines import BYTES_A_ROW, filled, raw_lines, read_lines

_Path = tuple[str, tuple[str, ...]]
_SPACE = re.compile(r"[ \t\r]*")
_DECODER = json.JSONDecoder()


def read_jsonl(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the rows of a file with one JSON object a line, about ``chunk_rows`` a chunk.

    A line with several whole objects becomes several rows with the same row number.

    Raises:
        DataError: if the file is unreadable, no row of its first chunk has a mapped column, or an id is a
            number that is not exact.
    """
    separator = file.mapping.category_separator if isinstance(file.mapping, ItemColumns) else "|"
    ids = id_columns(file.mapping)
    paths = [(name, tuple(name.split("."))) for name in file.mapping.columns]
    checked = False
    for every in read_lines(file, None, chunk_rows * BYTES_A_ROW, progress):
        lines = every.take(np.flatnonzero(filled(every.text)))
        rows: list[list[str | None]] = []
        kept: list[int] = []
        parts: dict[int, str] = {}
        keys: dict[str, None] = {}
        for position, line in enumerate(lines.text.to_pylist()):
            for text, row in split_objects(line):
                if row is not None and (fault := _inexact(row, paths, ids)) is not None:
                    raise DataError(f"{file.path}, line {lines.numbers[position]}: {fault}")
                cells = None if row is None else _cells(row, paths, separator, "\\u" in text)
                if row is None or cells is None:
                    lines.rejects.append(Reject(int(lines.numbers[position]), "malformed_json", text))
                    continue
                if not checked:
                    keys.update(dict.fromkeys(_names(row, paths)))
                if text is not line:
                    parts[len(rows)] = text
                rows.append(cells)
                kept.append(position)
        if rows and not checked:
            check_columns(str(file.path), file.mapping, list(keys))
            checked = True
        columns = {
            name: pa.array([row[place] for row in rows], pa.large_string()) for place, (name, _) in enumerate(paths)
        }
        numbers = lines.numbers[np.array(kept, dtype=np.int64)]
        yield Chunk(columns, numbers, _raw(raw_lines(lines.text), kept, parts), lines.rejects)


def _raw(line: Callable[[int], str], kept: list[int], parts: dict[int, str]) -> Callable[[int], str]:
    """Return a function that returns a row as it stands in the file: a whole line, or one object of a line."""
    return lambda row: parts[row] if row in parts else line(kept[row])


def split_objects(line: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Return (text, object) of each object of a line; the object is None if the text is no JSON object.

    Normally a line holds one object. If its writer was killed or lost a line break, it may hold several
    objects, with NUL characters or nothing between them. Each text between NUL characters is read as a
    whole or not at all.
    """
    row = _object(line)
    if row is not None:
        return [(line, row)]
    pieces = [piece.strip() for piece in line.split("\0")]
    return [part for piece in pieces if piece for part in _glued(piece)] or [(line, None)]


def _glued(text: str) -> list[tuple[str, dict[str, Any] | None]]:
    parts: list[tuple[str, dict[str, Any] | None]] = []
    start = 0
    while start < len(text):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return [(text, None)]
        if not isinstance(value, dict):
            return [(text, None)]
        parts.append((text[start:end], value))
        found = _SPACE.match(text, end)
        start = end if found is None else found.end()
    return parts


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _cells(row: dict[str, Any], paths: list[_Path], separator: str, escaped: bool) -> list[str | None] | None:
    """Return the mapped fields as text, or None if one of them cannot be encoded as UTF-8."""
    cells = [_cell(_value(row, name, path), separator) for name, path in paths]
    if escaped:
        # JSON allows lone surrogates as escapes; UTF-8 does not.
        try:
            "".join(cell for cell in cells if cell is not None).encode("utf-8")
        except UnicodeEncodeError:
            return None
    return cells


def _value(row: dict[str, Any], name: str, path: tuple[str, ...]) -> Any:
    """Return a field; a key with dots in its name takes precedence over a path."""
    if len(path) == 1 or name in row:
        return row.get(name)
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _inexact(row: dict[str, Any], paths: list[_Path], ids: dict[str, str]) -> DataError | None:
    """Return the error of the first id that is an inexact float, or None; NaN counts as missing."""
    for name, path in paths:
        if name in ids:
            value = _value(row, name, path)
            for part in value if isinstance(value, list) else (value,):
                if isinstance(part, float) and not math.isnan(part) and exact_number(part) is None:
                    return not_exact(ids[name], name, part, "a number with a fraction or an exponent")
    return None


def _names(row: dict[str, Any], paths: list[_Path]) -> list[str]:
    """Return the keys of a row and the paths that have a value in it."""
    nested = [name for name, path in paths if len(path) > 1 and _value(row, name, path) is not None]
    return [*row, *nested]


def _cell(value: Any, separator: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return separator.join(_number(part) if isinstance(part, float) else str(part) for part in value)
    if isinstance(value, float):
        return _number(value)
    return str(value) if isinstance(value, int) else json.dumps(value, sort_keys=True)


def _number(value: float) -> str:
    """Return 7.0 as ``7``, as the other readers do, and other numbers as their shortest text."""
    return exact_number(value) or repr(value)
