"""Turns that alternate between what is compared, and their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes by the clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def medians(works: Mapping[Key, Callable[[], float]], turns: int) -> dict[Key, float]:
    """Measure each of ``works`` once a turn, in turn, since a machine's speed changes within minutes.

    Args:
        works: by key, a function that returns a cost.
        turns: at least 1.
    """
    costs: dict[Key, list[float]] = {key: [] for key in works}
    for _ in range(turns):
        for key, work in works.items():
            costs[key].append(work())
    return {key: statistics.median(each) for key, each in costs.items()}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
