"""Reader of lines of ``user item item …``, the form in which many benchmarks publish their splits.

Such a file has no times, so they are made up to keep the order within a line: the first item is at the
file's ``start_ms``, each later one a millisecond after the one before. The order of events of different
users has no meaning.

Shapes: R items of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.contracts.ragged import places_in_rows, row_offsets
from stages.warehouse.mapping import FileSource
from stages.warehouse.readers.blocks import Progress
from stages.warehouse.readers.chunk import Chunk, Reject, check_columns
from stages.warehouse.readers.lines import Lines, filled, read_lines

COLUMNS = ("user", "item", "time")
"""Names of the columns in a mapping; ``time`` is int ms."""

_BYTES_AN_ITEM = 6


def read_sequences(file: FileSource, chunk_rows: int, progress: Progress) -> Iterator[Chunk]:
    """Yield one row an item, about ``chunk_rows`` a chunk; a line without an item is quarantined.

    Raises:
        DataError: if the file is unreadable or the mapping asks for a column other than ``COLUMNS``.
    """
    check_columns(str(file.path), file.mapping, COLUMNS)
    for lines in read_lines(file, None, chunk_rows * _BYTES_AN_ITEM, progress):
        yield _items(file, lines)


def _items(file: FileSource, lines: Lines) -> Chunk:
    trimmed = pc.utf8_trim_whitespace(lines.text)
    kept = np.flatnonzero(filled(trimmed))
    words = pc.utf8_split_whitespace(trimmed.take(pa.array(kept)))
    counts = pc.list_value_length(words).to_numpy(zero_copy_only=False).astype(np.int64)
    rejects = list(lines.rejects)
    for row in kept[counts == 1]:
        rejects.append(Reject(int(lines.numbers[row]), "no_items", lines.text[int(row)].as_py()))
    starts = np.cumsum(counts) - counts
    starts, flat = row_offsets(counts)[:-1], words.flatten()
    place = places_in_rows(counts)
    is_item = place > 0
    users = flat.take(pa.array(np.repeat(starts, counts)[is_item]))
    items = flat.take(pa.array(np.flatnonzero(is_item)))
    times = pa.array(file.start_ms + place[is_item] - 1)
    columns = dict(zip(COLUMNS, (users, items, times), strict=True))
    columns = {name: columns[name] for name in file.mapping.columns}
    numbers = np.repeat(lines.numbers[kept], counts)[is_item]
    return Chunk(columns, numbers, lambda row: f"{users[int(row)]} {items[int(row)]}", rejects)
