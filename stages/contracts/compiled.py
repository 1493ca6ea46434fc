"""Compiles numeric kernels; every kernel of the project is made here, so that all follow the same rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Return the function as machine code, compiled on its first call and kept in a cache beside its module.

    The kernel runs without the interpreter's lock, on one thread. Arithmetic keeps the order in which it is written,
    and a division by zero gives inf or NaN, as in numpy. Indices are not checked: callers check their arrays.

    Args:
        function: of numbers and numpy arrays only.
    """
    kernel: FunctionT = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return kernel
