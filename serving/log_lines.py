"""Reads lines of a log that may be damaged, in bounded memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

PIECE = 8 << 20
"""Bytes that are read at a time; no post is as long (a body has at most 1 MiB)."""


@dataclass(frozen=True)
class Line:
    """One line of a file.

    Attributes:
        start: offset of its first byte.
        length: in bytes, the newline included.
        content: its bytes; of a line longer than three pieces only the first piece and the last two.
        ended: whether it has a newline.
    """

    start: int
    length: int
    content: bytes
    ended: bool


def read_lines(stream: BinaryIO, start: int, end: int, piece: int = PIECE) -> Iterator[Line]:
    """Yield the lines from byte offset ``start`` to ``end``; the last one may lack its newline."""
    stream.seek(start)
    while start < end:
        first = read = stream.readline(min(piece, end - start))
        last: deque[bytes] = deque(maxlen=2)
        length = len(first)
        while read and not read.endswith(b"\n") and start + length < end:
            read = stream.readline(min(piece, end - start - length))
            last.append(read)
            length += len(read)
        if not length:
            return
        yield Line(start, length, b"".join([first, *last]), read.endswith(b"\n"))
        start += length


def values_in(line: bytes, marker: bytes) -> list[Any]:
    """Return the whole JSON values in a damaged line that begin with ``marker`` and end before the next one."""
    values = []
    for piece in line.split(marker)[1:]:
        try:
            values.append(json.loads((marker + piece).strip(b"\0 \t\r\n")))
        except (ValueError, RecursionError):
            continue
    return values
