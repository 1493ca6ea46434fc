"""Compiled functions: numba, with the same options everywhere.

Their machine code is kept on the disk, see ``compiled_cache`` for where, and made again when a module that has compiled
functions changes, or the version of numba, or the processor. Where nothing can be written to, each process compiles for
itself. Compiled functions do not check indices: callers check arrays.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

from stages.contracts.compiled_cache import cache_directory, places

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parents[1]


def code_version(package: Path = _PACKAGE) -> str:
    """Return 16 hexadecimal digits that change with numba and with each module that has compiled functions.

    numba looks at the module of a function only, not at those of the functions that it calls: so a version has its own
    directory.

    Args:
        package: the directory of ``stages``.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        if b"contracts.compiled import" in source:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + source)
    return digest.hexdigest()[:16]


CACHE = cache_directory(code_version(), places(os.environ, Path(sys.prefix)))
"""Where this process keeps compiled code; None if nowhere."""
_IS_KEPT = CACHE is not None
if _IS_KEPT:
    numba.config.CACHE_DIR = str(CACHE)
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
