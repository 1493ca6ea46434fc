"""Reads arrays from ``.npy`` files: small ones into memory, large ones as a mapping of the file.

A mapping follows what others write into the file, and reading behind the end of one that was cut short kills the
process (SIGBUS). What is in memory is safe from both; a large release would not fit twice, so it is mapped, and
relies on its files being left alone: the cache of releases makes them read-only.
"""

from __future__ import annotations

from pathlib import Path
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
        ValueError: if it holds no such array.
    """
    if path.stat().st_size > IN_MEMORY_BYTES:
        # A plain view of the mapping: indexing np.memmap itself is several times slower.
        return np.asarray(np.load(path, mmap_mode=mode, allow_pickle=False))
    loaded: np.ndarray = np.load(path, allow_pickle=False)
    loaded.flags.writeable = mode == "c"
    return loaded
