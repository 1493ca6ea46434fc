"""A real file system of a few megabytes for a program that must run out of space."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.time_limits import finished

ROOT = Path(__file__).resolve().parents[1]
_MOUNTED = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && exec "$@"'


def on_small_disk(
    place: Path, size: str, code: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code as a program with a tmpfs of ``size`` at ``place``, seen by that process only and gone with it.

    Skips where the kernel lets nobody mount in a namespace of their own.
    """
    place.mkdir(parents=True, exist_ok=True)
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNTED, "sh"]
    probe = [*inside, size, str(place), "true"]
    try:
        allowed = subprocess.run(probe, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed: no small file system can be made")
    if allowed.returncode:
        pytest.skip(f"no small file system can be mounted here: {allowed.stderr.strip()}")
    program = place.with_name(f"{place.name}-program.py")
    program.write_text(code, encoding="utf-8")
    return finished(
        [*inside, size, str(place), sys.executable, str(program), str(place), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ},
        cwd=ROOT,
    )
