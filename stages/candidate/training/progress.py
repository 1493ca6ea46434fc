"""Progress of the ranks, seen by the process that launched them."""

from __future__ import annotations

import os
import re
import sys
from collections import deque

PROGRESS = "two-tower"
"""First word of rank 0's progress lines, which share the stream with the launcher's own messages."""

_KEPT = 32


def relay(stream: int) -> list[str]:
    """Pass progress lines on to stderr until the stream ends.

    Args:
        stream: file descriptor that the launcher and its ranks write to.

    Returns:
        The last other lines, to be shown if no rank described its failure.
    """
    others: deque[str] = deque(maxlen=_KEPT)
    pending = ""
    while chunk := os.read(stream, 1 << 12):
        *lines, pending = re.split(r"[\r\n]", pending + chunk.decode(errors="replace"))
        for line in lines:
            if line.startswith(PROGRESS):
                sys.stderr.write(f"\r{line}")
                sys.stderr.flush()
            elif line.strip():
                others.append(line.strip())
    if pending.startswith(PROGRESS):
        sys.stderr.write(f"\r{pending}\n")
    elif pending.strip():
        others.append(pending.strip())
    return list(others)
