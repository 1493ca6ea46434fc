"""The memory that is available, and a refusal before a step starts that needs more than that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.contracts.errors import ConfigError

_NO_LIMIT = 1 << 60
"""Version 1 of cgroups writes a number above this where there is no limit."""


def require_memory(step: str, needed_bytes: int, settings: str, root: Path = Path("/")) -> None:
    """Refuse to start a step that needs more memory than is available; nothing happens where that is not known.

    Args:
        step: what needs the memory.
        needed_bytes: at its peak.
        settings: that make it need less.
        root: of the file system whose ``proc`` and ``sys`` are read.

    Raises:
        ConfigError: with the bytes that are needed and available, and the settings.
    """
    available = available_bytes(root)
    if available is not None and needed_bytes > available:
        raise ConfigError(
            f"{step} needs about {needed_bytes:,} bytes of memory, {available:,} are available; lower {settings}, or "
            "give it more memory"
        )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may still take, None where that is not known.

    That is the smallest of what the system has available and of what each control group of the process has left.
    Pages of files that the kernel can drop at once do not count as used.

    Args:
        root: of the file system whose ``proc`` and ``sys`` are read.
    """
    found = [_field(root / "proc/meminfo", "MemAvailable:"), *_group_bytes(root)]
    known = [value for value in found if value is not None]
    return max(0, min(known)) if known else None


def _group_bytes(root: Path) -> Iterator[int | None]:
    """Yield what the limit of each control group, from the process's own one up to the root, leaves."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers == "":
            names, top = ("memory.max", "memory.current", "inactive_file"), root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "sys/fs/cgroup/memory"
        else:
            continue
        inside = Path(own.lstrip("/"))
        for group in (inside, *inside.parents):
            if ".." not in group.parts:
                yield _left(top / group, *names)


def _left(group: Path, limit_file: str, usage_file: str, droppable: str) -> int | None:
    limit, usage = _number(_text(group / limit_file)), _number(_text(group / usage_file))
    if limit is None or usage is None or limit >= _NO_LIMIT:
        return None
    return limit - usage + (_field(group / "memory.stat", droppable) or 0)


def _field(path: Path, name: str) -> int | None:
    """Return the number after ``name`` at the beginning of a line, in bytes."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            number = _number(words[1])
            return number * 1024 if number is not None and words[-1] == "kB" else number
    return None


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
