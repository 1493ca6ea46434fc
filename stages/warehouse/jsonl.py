"""Reader of JSON lines: one object a line, fields of nested objects by a dotted path.

Shapes: R rows of a block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stages.warehouse.blocks import Progress
from stages.warehouse.chunks import Chunk, Reject, check_columns
from stages.warehouse.lines import BYTES_A_ROW, filled, raw_lines, read_lines
from stages.warehouse.mapping import FileSource, ItemColumns

_Path = tuple[str, tuple[str, ...]]


def read_jsonl(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield the rows of a file with one JSON object a line, about ``chunk_rows`` a chunk.

    Raises:
        DataError: if the file is unreadable or no row of its first chunk has a mapped column.
    """
    separator = file.mapping.category_separator if isinstance(file.mapping, ItemColumns) else "|"
    paths = [(name, tuple(name.split("."))) for name in file.mapping.columns]
    checked = False
    for every in read_lines(file, None, chunk_rows * BYTES_A_ROW, progress):
        lines = every.take(np.flatnonzero(filled(every.text)))
        rows: list[list[str | None]] = []
        kept: list[int] = []
        keys: dict[str, None] = {}
        for position, text in enumerate(lines.text.to_pylist()):
            row = _object(text)
            cells = None if row is None else _cells(row, paths, separator, "\\u" in text)
            if row is None or cells is None:
                lines.rejects.append(Reject(int(lines.numbers[position]), "malformed_json", text))
                continue
            if not checked:
                keys.update(dict.fromkeys(_names(row, paths)))
            rows.append(cells)
            kept.append(position)
        if rows and not checked:
            check_columns(str(file.path), file.mapping, list(keys))
            checked = True
        good = lines.take(np.array(kept, dtype=np.int64))
        columns = {
            name: pa.array([row[place] for row in rows], pa.large_string()) for place, (name, _) in enumerate(paths)
        }
        yield Chunk(columns, good.numbers, raw_lines(good.text), lines.rejects)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _cells(row: dict[str, Any], paths: list[_Path], separator: str, escaped: bool) -> list[str | None] | None:
    """Return the mapped fields as text, or None where one is no text that an encoding could hold."""
    cells = [_cell(_value(row, name, path), separator) for name, path in paths]
    if escaped:
        # A lone surrogate is legal among JSON's escapes.
        try:
            "".join(cell for cell in cells if cell is not None).encode("utf-8")
        except UnicodeEncodeError:
            return None
    return cells


def _value(row: dict[str, Any], name: str, path: tuple[str, ...]) -> Any:
    """Return a field; a key that holds dots itself comes before a path."""
    if len(path) == 1 or name in row:
        return row.get(name)
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _names(row: dict[str, Any], paths: list[_Path]) -> list[str]:
    """Return the keys of a row and the paths that lead to something in it."""
    nested = [name for name, path in paths if len(path) > 1 and _value(row, name, path) is not None]
    return [*row, *nested]


def _cell(value: Any, separator: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return separator.join(str(part) for part in value)
    return repr(value) if isinstance(value, (int, float)) else json.dumps(value, sort_keys=True)
