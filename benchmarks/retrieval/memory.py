"""How much memory is free, and why a model does not fit into it. A gigabyte is 10^9 bytes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

_VERSIONS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Control groups, version 2 and 1: controller, mount point, files of limit and usage, and the ``memory.stat`` field of
the usage that the system can reclaim."""


def free_gigabytes(root: Path = Path("/")) -> float | None:
    """Return how much this process may still take, by the machine, its control groups and ``ulimit -v``.

    None where the system reports nothing.

    Args:
        root: below which ``proc`` and ``sys`` lie.
    """
    found = [*_machine(root), *_groups(root), *_own_limit(root)]
    return max(0, min(found)) / 1e9 if found else None


def too_large(needed_gb: float, allowed_gb: float | None, answering_gb: float, free_gb: float | None) -> str | None:
    """Return why a model is left out, or None.

    Args:
        needed_gb: what fitting takes.
        allowed_gb: the model's own ``memory_gb``; None = no limit.
        answering_gb: what judging takes beside the model.
        free_gb: see ``free_gigabytes``; None = not known.
    """
    free = "" if free_gb is None else f", {free_gb:.3g} GB are free"
    if allowed_gb is not None and needed_gb > allowed_gb:
        return f"needs {needed_gb:.3g} GB, memory_gb = {allowed_gb:g}{free}: allow more with --memory-gb"
    if free_gb is not None and needed_gb + answering_gb > free_gb:
        return f"needs {needed_gb + answering_gb:.3g} GB{free}"
    return None


def _machine(root: Path) -> Iterator[int]:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(root: Path) -> Iterator[int]:
    """Yield the bytes left in each control group of this process, and in the groups that contain it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, mount, limit, usage, cached in _VERSIONS:
            if controller not in controllers.split(","):
                continue
            group = root / mount / path.strip("/")
            for place in (group, *group.parents):
                if place.is_relative_to(root / mount):
                    yield from _left(place, limit, usage, cached)


def _left(place: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    allowed, used = _text(place / limit).strip(), _text(place / usage).strip()
    if allowed.isdigit() and used.isdigit():
        given_back = [
            int(line.split()[1]) for line in _text(place / "memory.stat").splitlines() if line.startswith(f"{cached} ")
        ]
        yield int(allowed) - int(used) + sum(given_back)


def _own_limit(root: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        pages = _text(root / "proc/self/statm").split()
        yield limit - (int(pages[0]) * resource.getpagesize() if pages else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
