"""Where the machine code of compiled functions is kept: in the first place that is safe and can be written to.

The places are ``NUMBA_CACHE_DIR``; the environment (``sys.prefix``), so that it compiles once for all its users; the
user's cache directory; a directory of the user below the temporary one. Code is loaded from there, so a directory that
another user can write to is never used: it must belong to this user, to root or to the environment's owner, and its
group and others must not be able to write to it. Each version of the code has a directory of its own.

Where an earlier place holds this version but cannot be written to, as in an image that another user runs, its files are
copied to the place that is used.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "sluice-compiled"
OLD_DAYS = 7
"""A version that no process has used for so long is removed."""
_VERSION = re.compile(r"[0-9a-f]{16}(\.[0-9]+)?")
"""Name of a version's directory, or of a copy that was never finished."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Place:
    """A directory that may hold versions.

    Attributes:
        directory: of all versions.
        owners: ids of the users who may own what is loaded.
        anchor: directories from here on up are not checked; None checks all of them.
    """

    directory: Path
    owners: frozenset[int]
    anchor: Path | None = None


def places(environ: Mapping[str, str], prefix: Path, temporary: Path | None = None) -> list[Place]:
    """Return where compiled code may be kept, the preferred place first.

    Args:
        environ: the environment's variables.
        prefix: of the Python environment. Who can write to it can change all code anyway.
        temporary: the directory for temporary files; None for the system's.
    """
    user = os.getuid()
    owners = frozenset({user, *_system()})
    found = []
    if environ.get("NUMBA_CACHE_DIR"):
        found.append(Place(Path(environ["NUMBA_CACHE_DIR"]).absolute() / NAME, owners))
    if prefix.is_dir():
        found.append(Place(prefix / "var" / "cache" / NAME, owners | {prefix.stat().st_uid}, prefix))
    home = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "")) / ".cache")
    if home.is_absolute():
        found.append(Place(home / NAME, owners))
    below = (temporary or Path(tempfile.gettempdir())).absolute()
    return [*found, Place(below / f"{NAME}-{user}", frozenset({user}))]


def cache_directory(version: str, choices: list[Place]) -> Path | None:
    """Return the directory of a version, which exists, is safe and can be written to; None if there is no place.

    Other versions beside it that nobody has used for ``OLD_DAYS`` are removed.

    Args:
        version: 16 hexadecimal digits.
        choices: from ``places``.
    """
    stored: Path | None = None
    for place in choices:
        directory = place.directory / version
        if _is_writable(place, directory) or _make(place, directory, stored):
            _remove_old(place, version)
            return directory
        if stored is None and is_safe(place, directory):
            stored = directory
    return None


def share(directory: Path) -> None:
    """Let all users read a version, and nobody but its owner write to it."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def is_safe(place: Place, directory: Path) -> bool:
    """Return whether only trusted users can have written to a version's directory, and this user can read it."""
    try:
        is_ours = all(_is_trusted(path.lstat(), place.owners) for path in (directory, directory.parent))
        if not (is_ours and _is_closed(place) and os.access(directory, os.R_OK | os.X_OK)):
            return False
        if not directory.stat().st_mode & 0o077:  # nobody else can reach what is inside
            return True
        return all(_is_trusted(path.lstat(), place.owners) for path in directory.rglob("*"))
    except OSError:
        return False


def _system() -> frozenset[int]:
    """Return the users to whom the system belongs: root, and its stand-in where this user is root of a container."""
    return frozenset({0, Path("/").stat().st_uid})


def _is_closed(place: Place) -> bool:
    """Return whether nobody else can put another directory where the versions are."""
    for path in place.directory.parents:
        if path == place.anchor:
            break
        found = path.stat()
        is_sticky = bool(found.st_mode & stat.S_ISVTX)
        if found.st_uid not in place.owners | _system() or (found.st_mode & _OTHERS_WRITE and not is_sticky):
            return False
    return True


def _is_trusted(found: os.stat_result, owners: frozenset[int]) -> bool:
    kind = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    return kind and found.st_uid in owners and not found.st_mode & _OTHERS_WRITE


def _is_writable(place: Place, directory: Path) -> bool:
    if not (is_safe(place, directory) and os.access(directory, os.W_OK)):
        return False
    try:
        if _lets_group_write() and directory.stat().st_uid == os.getuid():
            directory.chmod(0o700)  # files that this process adds would be open to its group
        os.utime(directory)
    except OSError:
        return False
    return True


def _lets_group_write() -> bool:
    mask = os.umask(0o077)
    os.umask(mask)
    return bool(~mask & _OTHERS_WRITE)


def _make(place: Place, directory: Path, stored: Path | None) -> bool:
    """Make a version's directory, with the files of a stored one; another process may do so at the same time."""
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}")
    try:
        _make_parents(place)
        if not os.path.lexists(directory) and _is_trusted(directory.parent.lstat(), place.owners):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(0o700)
            if stored is not None:
                shutil.copytree(stored, unfinished, copy_function=_copy, dirs_exist_ok=True)
                unfinished.chmod(0o700)
            unfinished.rename(directory)
    except OSError:  # the place cannot be written to, or another process was first
        shutil.rmtree(unfinished, ignore_errors=True)
    return _is_writable(place, directory)


def _copy(source: str, target: str) -> None:
    """Copy a file's content, not its mode; one that has gone meanwhile is left out."""
    with suppress(FileNotFoundError):
        shutil.copyfile(source, target)


def _make_parents(place: Place) -> None:
    """Make the directory of all versions and those above it; others may read what lies in the environment."""
    missing = [path for path in (place.directory, *place.directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(0o700 if place.anchor is None else 0o755, exist_ok=True)


def _remove_old(place: Place, version: str) -> None:
    """Remove versions beside this one that nobody has used lately; a fault leaves them there."""
    oldest = time.time() - OLD_DAYS * 86_400
    try:
        for entry in list(os.scandir(place.directory)):
            is_ours = entry.is_dir(follow_symlinks=False) and _VERSION.fullmatch(entry.name) and entry.name != version
            if is_ours and entry.stat(follow_symlinks=False).st_mtime < oldest:
                shutil.rmtree(entry.path, ignore_errors=True)
    except OSError:
        return
