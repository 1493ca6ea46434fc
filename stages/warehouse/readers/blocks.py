"""Read a plain or gzipped file in blocks that end at the end of a record.

If a compressed stream is truncated or corrupt, the whole lines before the fault are still yielded. The last
block has the fault and the rest of the broken line. The checksum of a gzip member stands at its end, so its
lines are yielded before the checksum is verified.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from stages.contracts.errors import DataError

Progress = Callable[[int], object]
"""Called with the number of bytes of the file that were just read."""

_READ = 1 << 20
_LONGEST_RECORD = 64 << 20
_GZIP = 31


@dataclass(frozen=True)
class Block:
    """Whole records of a file.

    Attributes:
        data: bytes; they end with a line break, except perhaps at the end of the file.
        fault: the reason why the stream breaks off after this block, or None.
        tail: the bytes that were read of the broken record.
    """

    data: bytes
    fault: str | None = None
    tail: bytes = b""


def read_blocks(path: Path, size: int, quote: str | None, progress: Progress) -> Iterator[Block]:
    """Yield a file in blocks of about ``size`` bytes of text.

    Args:
        path: a text file; ``.gz`` is decompressed as it is read.
        size: bytes a block; a longer record makes its block longer.
        quote: quote character, or None; a line break between two quotes belongs to the record.
        progress: called with the number of bytes read from disk.

    Raises:
        DataError: if the file is missing, unreadable, not gzip in spite of its name, or holds a
            record longer than 64 MiB.
    """
    mark = quote.encode() if quote else None
    carry = bytearray()
    fault = None
    for piece, fault in _read_pieces(path, min(size, _READ), progress):  # noqa: B007
        carry += piece
        if len(carry) < size:
            continue
        cut = _last_record_end(carry, mark)
        # A quote that is never closed must not take in the rest of the file: ignore it and cut at a line break.
        if cut == 0 and len(carry) >= 4 * size:
            cut = carry.rfind(b"\n") + 1
        if cut == 0 and len(carry) > _LONGEST_RECORD:
            raise DataError(f"{path}: a line is longer than {_LONGEST_RECORD:,} bytes; is it a text file?")
        if cut:
            yield Block(bytes(carry[:cut]))
            del carry[:cut]
    if fault is None:
        if carry:
            yield Block(bytes(carry))
        return
    cut = carry.rfind(b"\n") + 1
    yield Block(bytes(carry[:cut]), fault, bytes(carry[cut:]))


def _last_record_end(data: bytearray, mark: bytes | None) -> int:
    end = data.rfind(b"\n") + 1
    if mark is None or data.count(mark, 0, end) % 2 == 0:
        return end
    values = np.frombuffer(bytes(data[:end]), dtype=np.uint8)
    breaks, marks = np.flatnonzero(values == ord("\n")), np.flatnonzero(values == mark[0])
    outside = breaks[np.searchsorted(marks, breaks) % 2 == 0]
    return int(outside[-1]) + 1 if len(outside) else 0


def _read_pieces(path: Path, size: int, progress: Progress) -> Iterator[tuple[bytes, str | None]]:
    try:
        with path.open("rb") as stream:
            if path.suffix.lower() == ".gz":
                yield from _gunzip(path, stream, size, progress)
                return
            while piece := stream.read(size):
                progress(len(piece))
                yield piece, None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _gunzip(path: Path, stream: BinaryIO, size: int, progress: Progress) -> Iterator[tuple[bytes, str | None]]:
    inflate: zlib._Decompress | None = None
    started = False
    while pending := stream.read(size):
        progress(len(pending))
        while pending:
            if inflate is None:
                # A gzip file may hold several members, and zeros between and after them.
                pending = pending.lstrip(b"\0") if started else pending
                inflate = zlib.decompressobj(_GZIP) if pending else None
                continue
            piece, error = _decompress(inflate, pending, size)
            if error is not None and not (piece or started):
                raise DataError(f"{path}: named .gz, but it is not gzip ({error})")
            yield piece, None if error is None else "corrupt_gzip"
            if error is not None:
                return
            started = True
            pending = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            inflate = None if inflate.eof else inflate
    if inflate is not None:
        yield from _rest(inflate, size)


def _rest(inflate: zlib._Decompress, size: int) -> Iterator[tuple[bytes, str | None]]:
    """Yield the remaining data of a gzip member after the whole file was read."""
    while not inflate.eof:
        piece, error = _decompress(inflate, b"", size)
        yield piece, None if error is None else "corrupt_gzip"
        if error is not None:
            return
        if not (piece or inflate.eof):
            yield b"", "truncated_gzip"
            return


def _decompress(inflate: zlib._Decompress, data: bytes, size: int) -> tuple[bytes, zlib.error | None]:
    """Return up to ``size`` bytes, and the error that follows them, or None.

    zlib returns no data from a call that fails, so the data is fed again in smaller and smaller steps.
    """
    before = inflate.copy()
    try:
        return inflate.decompress(data, size), None
    except zlib.error as error:
        broken = error
    found, step = bytearray(), len(data)
    while step and data:
        attempt = before.copy()
        try:
            found += attempt.decompress(data[:step])
        except zlib.error:
            step //= 8
        else:
            before, data = attempt, data[step:]
    return bytes(found), broken
