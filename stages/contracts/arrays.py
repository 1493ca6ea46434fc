"""Reads arrays from ``.npy`` files: small ones into memory, large ones as a mapping of the file.

A mapping follows what others write into the file, and reading behind the end of one that was cut short kills the
process (SIGBUS). What is in memory is safe from both; a large release would not fit twice, so it is mapped, and
relies on its files being left alone: the cache of releases makes them read-only.
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np

IN_MEMORY_BYTES = 64 << 20
"""Files up to this size are read into memory."""


def load_npy(path: Path, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """Return the array in a file.

    Args:
        path: of an ``.npy`` file without Python objects.
        mode: ``r``: it cannot be written to; ``c``: it can, and the file does not change.

    Raises:
        OSError: if the file is missing or unreadable.
        ValueError: if it holds no such array, or more than one.
    """
    size = path.stat().st_size
    try:
        loaded, end = _mapped(path, mode) if size > IN_MEMORY_BYTES else _read(path, mode)
    except (MemoryError, OverflowError, SyntaxError, TokenError, TypeError) as error:  # a header that is noise
        raise ValueError(f"not the header of an array: {error}") from None
    if end != size:
        raise ValueError(f"{size - end:,} bytes follow the array, which ends at byte {end:,}")
    return loaded


def _mapped(path: Path, mode: Literal["r", "c"]) -> tuple[np.ndarray, int]:
    mapped = np.lib.format.open_memmap(path, mode=mode)
    # A plain view of the mapping: indexing np.memmap itself is several times slower.
    return np.asarray(mapped), mapped.offset + mapped.nbytes


def _read(path: Path, mode: Literal["r", "c"]) -> tuple[np.ndarray, int]:
    with path.open("rb") as stream:
        loaded: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
        loaded.flags.writeable = mode == "c"
        return loaded, stream.tell()
