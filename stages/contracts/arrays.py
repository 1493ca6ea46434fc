"""Reads arrays from ``.npy`` files: small ones into memory, large ones as a mapping of the file.

A mapped array changes when another process writes to the file. Reading past the end of a file that was cut short kills
the process (SIGBUS). Arrays in memory are safe from both. A large release would not fit into memory twice, so it is
mapped and its files must not change: the cache of releases makes them read-only.
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
        mode: ``r`` for a read-only array; ``c`` for one that can be written to while the file stays as it is.

    Raises:
        OSError: if the file is missing or unreadable.
        ValueError: if it holds no such array, or more than one.
    """
    size = path.stat().st_size
    try:
        loaded, end = _mapped(path, mode) if size > IN_MEMORY_BYTES else _read(path, mode)
    except (MemoryError, OverflowError, SyntaxError, TokenError, TypeError) as error:  # a corrupt header
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
