"""Find the files of a data source, and whether a file changed since its last load."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stages.contracts.errors import DataError
from stages.warehouse.mapping import FileSource, IngestSource

_PATTERN = re.compile(r"[*?\[]")
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Stamp:
    """A file's size and times in the file system; any change of the file's bytes changes them.

    Attributes:
        size_bytes: length.
        modified_ns, changed_ns: times of the last change of the content and of the inode, ns since
            1970-01-01 UTC. ``changed_ns`` cannot be set back, so it reveals a new file with an old
            ``modified_ns``.
    """

    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return a file's stamp.

        Raises:
            DataError: if the file system does not return the file's status.
        """
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def settled(self, now_ms: int | None) -> bool:
        """Return whether every later change gives another stamp.

        A file may be written twice within one tick of the file system's clock, so it must be more than
        two seconds old.

        Args:
            now_ms: int ms UTC, not later than the time at which the stamp was taken; None if not known.
        """
        return now_ms is not None and max(self.modified_ns, self.changed_ns) < now_ms * 1_000_000 - _SETTLED_NS


def absolute(path: Path) -> str:
    """Return a file's absolute path, as the warehouse stores it; links are not followed."""
    return os.path.normpath(path.absolute())


def expand(source: IngestSource) -> tuple[FileSource, ...]:
    """Return the files of a data source, each pattern replaced by its matches.

    Raises:
        DataError: if a file is missing or is a directory, or a pattern matches nothing.
    """
    found: list[FileSource] = []
    for file in source.files:
        if file.path.is_file():
            found.append(file)
            continue
        if file.path.is_dir() or not _PATTERN.search(file.path.name):
            there = "a directory" if file.path.is_dir() else "nothing"
            raise DataError(f"{file.path}: found {there}, a file is needed for table {file.mapping.table}")
        matches = sorted((path for path in file.path.parent.glob(file.path.name) if path.is_file()), key=_natural)
        if not matches:
            raise DataError(f"{file.path}: no file matches, one is needed for table {file.mapping.table}")
        found += [file.model_copy(update={"path": path}) for path in matches]
    return tuple(found)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort ``2015-01-01-9`` before ``2015-01-01-10``."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", path.name)]
