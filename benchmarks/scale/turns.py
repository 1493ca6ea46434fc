"""Turns that alternate between what is compared, and their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Key = TypeVar("Key")


class Cost(NamedTuple):
    """Seconds of a piece of work, or of a unit of it.

    Attributes:
        clock: by the clock.
        processor: of the processor, over all threads. It says more than the clock where other work runs beside.
    """

    clock: float
    processor: float

    def of_one(self, units: int) -> Cost:
        """Return the cost of one of so many units."""
        return Cost(self.clock / units, self.processor / units)


def cost_of(work: Callable[[], object]) -> Cost:
    """Do ``work`` and return its cost."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - clock, time.process_time() - processor)


def middle(costs: Sequence[Cost]) -> Cost:
    """Return the medians of the seconds of each kind."""
    return Cost(*(statistics.median(each) for each in zip(*costs, strict=True)))


def medians(works: Mapping[Key, Callable[[], Cost]], turns: int) -> dict[Key, Cost]:
    """Measure each of ``works`` once a turn, in turn, since a machine's speed changes within minutes.

    Args:
        works: by key, a function that returns a cost.
        turns: at least 1.
    """
    costs: dict[Key, list[Cost]] = {key: [] for key in works}
    for _ in range(turns):
        for key, work in works.items():
            costs[key].append(work())
    return {key: middle(each) for key, each in costs.items()}


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
