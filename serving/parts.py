"""Notices that somebody changed the files of a release that is being served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Stamps = dict[str, tuple[int, int, int, int] | None]
"""Device, inode, size and time of the last change by part; None where there is no such file."""


def stamp(directory: Path, parts: Iterable[str]) -> Stamps:
    """Return what the file system says of each part now; reads no content."""
    return {part: _stamp(directory / part) for part in parts}


def changed_parts(directory: Path, stamps: Stamps) -> list[str]:
    """Return the parts that were written to, replaced or removed since ``stamp``, sorted."""
    return sorted(part for part, before in stamps.items() if _stamp(directory / part) != before)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
