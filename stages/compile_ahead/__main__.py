"""``python -m stages.compile_ahead``: fills the cache of compiled code, for all users of the environment."""

from __future__ import annotations

import sys

from stages.compile_ahead.job import compile_all
from stages.contracts.compiled import CACHE
from stages.contracts.compiled_cache import share


def main() -> int:
    """Compile, and let all users of the environment read the result; return the exit code."""
    if CACHE is None:
        sys.stderr.write("nothing can be kept: set NUMBA_CACHE_DIR to a directory that only you can write to\n")
        return 1
    compile_all()
    share(CACHE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
