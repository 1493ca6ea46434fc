"""Memory of a tree of processes and size of a folder, as Linux sees them."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_KIB = 1024


def tree(root: int) -> list[int]:
    """Return a process and all its descendants that are alive."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children[parent].append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting.extend(children[found[-1]])
    return found


def proportional_bytes(processes: list[int]) -> int:
    """Return the sum of the processes' proportional set sizes: a page that k processes share counts 1 / k in each."""
    return sum(_kibibytes(process, "smaps_rollup", "Pss:") for process in processes) * _KIB


def largest_process_bytes(processes: list[int]) -> int:
    """Return the greatest resident size that any of the processes has had so far."""
    return max((_kibibytes(process, "status", "VmHWM:") for process in processes), default=0) * _KIB


def folder_bytes(directory: Path) -> int:
    """Return the space on disk that the files below a folder take; files that vanish meanwhile count nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _parent(process: int) -> int | None:
    try:
        # The name before the last parenthesis may hold spaces.
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[1])


def _kibibytes(process: int, name: str, field: str) -> int:
    """Return a field of a file below ``/proc``; 0 if the process is gone or is not ours to look into."""
    try:
        lines = Path(f"/proc/{process}/{name}").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)
