"""Progress of the ranks, seen by the process that launched them."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable

from stages.contracts.progress import EVERY_SECONDS

log = logging.getLogger("sluice")

PROGRESS = "two-tower"
"""First word of rank 0's progress lines, which share the stream with the launcher's own messages."""

EPOCH = f"{PROGRESS} epoch"
"""First words of a line that says how an epoch was; always passed on."""

_KEPT = 32


def relay(stream: int) -> list[str]:
    """Pass progress lines on to stderr until the stream ends: all of them on a terminal, elsewhere one now and then.

    Args:
        stream: file descriptor that the launcher and its ranks write to.

    Returns:
        The last other lines, to be shown if no rank described its failure.
    """
    others: deque[str] = deque(maxlen=_KEPT)
    pending, show = "", _shown()

    def sort(line: str) -> None:
        if line.startswith(EPOCH):
            log.info("[sluice] %s", line)
        elif line.startswith(PROGRESS):
            show(line)
        elif line.strip():
            others.append(line.strip())

    while chunk := os.read(stream, 1 << 12):
        *lines, pending = re.split(r"[\r\n]", pending + chunk.decode(errors="replace"))
        for line in lines:
            sort(line)
    sort(pending)
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return list(others)


def _shown() -> Callable[[str], None]:
    """Return a function that shows a progress line."""
    next_line = time.monotonic() + EVERY_SECONDS

    def overwrite(line: str) -> None:
        sys.stderr.write(f"\r{line}")
        sys.stderr.flush()

    def log_some(line: str) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + EVERY_SECONDS
            log.info("[sluice] %s", line)

    return overwrite if sys.stderr.isatty() else log_some
