"""What takes long to make is made once for all test processes, and only read from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Shared:
    """Directories that all test processes of a run read.

    The first process that asks for one makes it; the others wait for its lock. No test may write to it: a test that
    writes makes a copy of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._taken: set[str] = set()

    @classmethod
    def of(cls, factory: pytest.TempPathFactory) -> Shared:
        """Return the directories of this run; several processes have them below the folder of all."""
        own = factory.getbasetemp()
        return cls((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared")

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the directory of this name, filled by ``make`` unless another process has done so."""
        directory, contents = self.root / name, self.root / f"{name}.json"
        self.root.mkdir(exist_ok=True)
        with FileLock(self.root / f"{name}.lock"):
            if not contents.exists():
                shutil.rmtree(directory, ignore_errors=True)  # what a process left that failed or was killed
                directory.mkdir()
                make(directory)
                contents.write_text(json.dumps(_listing(directory)), encoding="utf-8")
        self._taken.add(name)
        return directory

    def check(self) -> None:
        """Fail if a test has written to a directory that this process has taken."""
        for name in sorted(self._taken):
            made, found = json.loads((self.root / f"{name}.json").read_text("utf-8")), _listing(self.root / name)
            changed = sorted(path for path in {*made, *found} if made.get(path) != found.get(path))
            assert not changed, f"a test wrote to what all tests share, {self.root / name}: {', '.join(changed[:5])}"


def _listing(directory: Path) -> dict[str, list[int]]:
    """Return size (bytes) and time of the last change (ns) by file."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
