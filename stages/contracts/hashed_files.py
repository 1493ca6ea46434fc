"""Files with their hashes, which are passed on so that no large file is hashed twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stages.contracts.errors import ReleaseError
from stages.contracts.files import sha256_file

Stamp = tuple[int, int, int, int] | None
"""Device, inode, size and time of the last change; None where there is no such file."""


@dataclass(frozen=True)
class HashedFiles:
    """Files by name, with the hashes of their bytes.

    Attributes:
        paths: path of each.
        hashes: hex sha256 of each.
        stamps: ``stamp`` of each, taken before it was hashed.
    """

    paths: Mapping[str, Path]
    hashes: Mapping[str, str]
    stamps: Mapping[str, Stamp]

    @classmethod
    def of(cls, paths: Mapping[str, Path]) -> HashedFiles:
        """Hash files.

        Raises:
            ReleaseError: naming one that cannot be read.
        """
        hashes: dict[str, str] = {}
        stamps: dict[str, Stamp] = {}
        for name, path in paths.items():
            stamps[name] = stamp(path)
            try:
                hashes[name] = sha256_file(path)
            except FileNotFoundError:
                raise ReleaseError(f"{path}: missing") from None
            except OSError as error:
                raise ReleaseError(f"{path}: {error.strerror or error}") from None
        return cls(dict(paths), hashes, stamps)

    @classmethod
    def below(cls, directory: Path) -> HashedFiles:
        """Hash every file below a directory; names are relative posix paths, sorted."""
        found = sorted(path for path in directory.rglob("*") if path.is_file())
        return cls.of({path.relative_to(directory).as_posix(): path for path in found})

    def moved(self, directory: Path) -> HashedFiles:
        """Return the same files after their directory was renamed to ``directory``."""
        return replace(self, paths={name: directory / name for name in self.paths})

    def changed(self) -> list[str]:
        """Return the files that were written to, replaced or removed since they were hashed, sorted."""
        return sorted(name for name, before in self.stamps.items() if stamp(self.paths[name]) != before)


def stamp(path: Path) -> Stamp:
    """Return a file's device, inode, size and time of the last change; its content is not read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
