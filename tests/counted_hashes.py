"""How often each file is hashed: the one function that hashes files, wrapped wherever it is imported."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from stages.contracts import files


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """Return a counter of the files that are hashed from now on, by path."""
    original, counted = files.sha256_file, Counter[Path]()

    def counting(path: Path) -> str:
        counted[path] += 1
        return original(path)

    for module in list(sys.modules.values()):
        if getattr(module, "sha256_file", None) is original:
            monkeypatch.setattr(module, "sha256_file", counting)
    return counted


def times_hashed(counted: Counter[Path], names: Iterable[str]) -> dict[str, int]:
    """Return how often a file of each relative posix path was hashed, wherever it lay."""
    return {
        name: sum(times for path, times in counted.items() if path.as_posix().endswith(f"/{name}")) for name in names
    }
