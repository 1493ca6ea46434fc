"""Compiled functions: numba, with the same options everywhere.

Their machine code is kept on the disk, and made again when a module that has compiled functions changes, or the version
of numba. It is kept below ``NUMBA_CACHE_DIR`` where that is set, else below the user's cache directory; where neither
can be written to, each process compiles for itself. Compiled functions do not check indices: callers check arrays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parents[1]


def _cache_directory() -> str:
    # numba looks at the module of a function only, not at those of the functions that it calls: so a version has its
    # own directory.
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        source = path.read_bytes()
        if b"contracts.compiled import" in source:
            digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + source)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("NUMBA_CACHE_DIR") or home) / "sluice-compiled"
    return str(base / digest.hexdigest()[:16])


def _can_be_written(directory: str) -> bool:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


_CACHE = _cache_directory()
_IS_KEPT = _can_be_written(_CACHE)
if _IS_KEPT:
    numba.config.CACHE_DIR = _CACHE
# ``_nrt`` is no public option: it turns the counting of references off. It fits numba 0.68.
_IN_PLACE: dict[str, Any] = {"cache": _IS_KEPT, "nogil": True, "error_model": "numpy", "_nrt": False}


def compiled(function: F) -> F:
    """Compile a function at its first call; it runs without the interpreter's lock and divides as numpy does."""
    made: F = numba.njit(cache=_IS_KEPT, nogil=True, error_model="numpy")(function)
    return made


def in_place(function: F) -> F:
    """Compile a function that makes no array, into each compiled function that calls it.

    It counts no references to arrays, and its arguments are not copied: with arguments that hold many arrays, both
    would cost more than the function itself.
    """
    made: F = numba.njit(forceinline=True, **_IN_PLACE)(function)
    return made


def in_place_part(function: F) -> F:
    """As ``in_place``, for a part of one function that takes very many arrays: it is not compiled by itself."""
    made: F = numba.njit(inline="always", **_IN_PLACE)(function)
    return made


def in_place_once(function: F) -> F:
    """Compile a function that makes no array, once: for large functions that are called for many rows at a time."""
    made: F = numba.njit(**_IN_PLACE)(function)
    return made


def in_place_sum(function: F) -> F:
    """As ``in_place``; sums may be added up in any order, which lets the processor add several numbers at a time."""
    made: F = numba.njit(forceinline=True, fastmath={"reassoc", "contract", "nsz"}, **_IN_PLACE)(function)
    return made


def frozen(values: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to, contiguous: of an input that a compiled function only reads.

    A function is compiled once for each type of its arguments, and arrays that can be written to are another type.
    """
    view = np.ascontiguousarray(values).view(np.ndarray)
    view.flags.writeable = False
    return view
