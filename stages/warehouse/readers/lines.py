"""Decode the lines of a text file and number them; lines that cannot be decoded are quarantined.

Shapes: R lines of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.warehouse.mapping import FileSource
from stages.warehouse.readers.blocks import Block, Progress, read_blocks
from stages.warehouse.readers.chunk import Reject

BYTES_A_ROW = 32
"""Assumed bytes of text a row, to size blocks."""

_BOM = b"\xef\xbb\xbf"


@dataclass
class Lines:
    """Lines of a block: large_string ``[R]``, their numbers in the file, and the undecodable ones."""

    text: Any
    numbers: np.ndarray
    rejects: list[Reject] = field(default_factory=list)

    def take(self, rows: np.ndarray) -> Lines:
        """Return the lines at these positions."""
        return Lines(self.text.take(pa.array(rows)), self.numbers[rows], self.rejects)


def read_lines(file: FileSource, quote: str | None, size: int, progress: Progress) -> Iterator[Lines]:
    """Yield the lines of a file, whole records in about ``size`` bytes of text at a time.

    Args:
        file: a text file; line breaks, and carriage returns before them, are cut off.
        quote: quote character, or None; a line break between two quotes belongs to the record, see ``read_blocks``.
        size: bytes.
        progress: called with the number of bytes read from disk.

    Raises:
        DataError: as ``read_blocks`` does.
    """
    first = 1
    for block in read_blocks(file.path, size, quote, progress):
        data = block.data.removeprefix(_BOM) if first == 1 and file.encoding == "utf-8" else block.data
        lines = _decode(data, file.encoding, first)
        first += data.count(b"\n")
        if block.fault is not None:
            lines.rejects.append(_broken(block, first, file.encoding))
        yield lines


def _broken(block: Block, number: int, encoding: str) -> Reject:
    return Reject(number, str(block.fault), block.tail.decode(encoding, errors="backslashreplace"))


def _decode(data: bytes, encoding: str, first: int) -> Lines:
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
    return Lines(text, numbers, rejects)


def filled(text: Any) -> np.ndarray:
    """Return bool ``[R]``: which strings are not empty."""
    return np.asarray(pc.binary_length(text).to_numpy() > 0)


def raw_lines(text: Any) -> Callable[[int], str]:
    """Return a function that returns a line by its position, for ``Chunk.raw``."""
    return lambda row: text[int(row)].as_py()
