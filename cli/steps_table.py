"""The table that ends a run: what each step took, and what it keeps on disk."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from stages.contracts.results import StepEnd

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def steps_table(ends: Sequence[StepEnd]) -> str:
    """Return the table as text: a row a step, and their sum; seconds of re-used steps are not in the sum."""
    rows = [[end.step, f"{end.seconds:,.1f}", size(end.disk_bytes), "re-used" if end.reused else ""] for end in ends]
    took = sum(end.seconds for end in ends if not end.reused)
    total = ["all", f"{took:,.1f}", size(sum(end.disk_bytes for end in ends)), ""]
    header = ["step", "seconds", "on disk", ""]
    alignment = ("left", "right", "right", "left")
    text: str = tabulate([*rows, total], headers=header, tablefmt="simple", colalign=alignment, disable_numparse=True)
    return text


def size(n_bytes: int) -> str:
    """Return such as ``3.4 MB``; ``-`` for nothing."""
    if not n_bytes:
        return "-"
    value, place = float(n_bytes), 0
    while value >= 999.5 and place < len(_UNITS) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.0f} bytes" if not place else f"{value:.3g} {_UNITS[place]}"
