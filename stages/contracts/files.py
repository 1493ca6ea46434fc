"""Hashes, arrays on the disk and atomic writes: nothing half-written is ever visible under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.contracts.disk import free_bytes, is_out_of_space
from stages.contracts.errors import OutOfSpaceError

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 20
_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON with sorted keys and no spaces, the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Return the hex sha256 of ``text`` in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Yield a name beside ``final`` to write a file under, and rename it to ``final`` on success.

    If the body raises, what it wrote is removed and ``final`` is untouched. Each call has its own temporary name: of
    several concurrent writers the last to finish wins, and a reader finds the whole file of one writer.
    """
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented, sorted JSON under a temporary name, then rename it into place."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def create_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Make a ``.npy`` file of zeros and map it into memory for writing, with all of its space reserved.

    A mapped file without reserved space kills the process (SIGBUS) where the disk turns out to be too small.

    Args:
        path: of the file, which is overwritten.
        dtype: of the array.
        shape: of the array.

    Returns:
        The mapped array; ``flush`` it when it is filled.

    Raises:
        OutOfSpaceError: if the disk is too small; then there is no file.
    """
    import numpy as np

    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        size = path.stat().st_size
        with path.open("r+b") as stream:
            reserve(stream.fileno(), size)
    except OSError as error:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        path.unlink(missing_ok=True)
        if not is_out_of_space(error):
            raise
        raise OutOfSpaceError(
            f"{path.name} needs {size:,} bytes, {free_bytes(path.parent):,} bytes are free in {path.parent}"
        ) from None
    return array


def reserve(file: int, size: int) -> None:
    """Reserve disk space for the first ``size`` bytes of an open file; its content stays.

    Where the file system cannot reserve space, the free space is checked instead.

    Raises:
        OSError: ENOSPC or EDQUOT if there is not so much space.
    """
    try:
        os.posix_fallocate(file, 0, size)
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NOT_SUPPORTED:
            raise
        found = os.fstatvfs(file)
        if found.f_bavail * found.f_frsize < size - os.fstat(file).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``final`` and rename it to ``final`` on success.

    If the body raises, the temporary directory is removed and ``final`` is untouched. If another
    process finished ``final`` first, its directory is kept and this one is dropped.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
