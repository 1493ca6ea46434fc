"""How far a long piece of work is: a bar on a terminal, and elsewhere, as in Airflow's logs, a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tqdm import tqdm

log = logging.getLogger("sluice")

EVERY_SECONDS = 30.0
"""Where there is no terminal, a line is logged at most this often."""

Item = TypeVar("Item")
Advance = Callable[[int], object]
"""Called with how many units were done since the last call."""


def progress(iterable: Iterable[Item], what: str, total: int | None = None, unit: str = "item") -> Iterator[Item]:
    """Yield the items and show how many are done, how many a second, and when the last one will be.

    Args:
        iterable: the items, one unit each.
        what: is being done, such as the name of the step.
        total: number of items; None takes the iterable's length where it has one.
        unit: name of one item.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress_of(what, total, unit) as advance:
        for item in iterable:
            yield item
            advance(1)


@contextmanager
def progress_of(what: str, total: int | None, unit: str, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Yield a function that is called with the number of units that were done since the last call.

    Args:
        what: see ``progress``.
        total: number of units, None where it is not known.
        unit: name of one unit; ``B`` for bytes.
        done: units that an earlier run has done.
        shown: False shows nothing.
    """
    if not shown:
        yield lambda units: None
    elif sys.stderr.isatty():
        with tqdm(
            total=total, initial=done, desc=what, unit=unit, unit_scale=unit == "B", leave=False, file=sys.stderr
        ) as bar:
            yield bar.update
    else:
        lines = _Lines(what, total, unit, done)
        yield lines.advance
        lines.close()


class _Lines:
    """Progress as log lines."""

    def __init__(self, what: str, total: int | None, unit: str, done: int) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = self._first = done
        self._started = time.monotonic()
        self._next = self._started + EVERY_SECONDS

    def advance(self, units: int) -> None:
        """Count units; log a line if the last one is old enough."""
        self._done += units
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        rate = (self._done - self._first) / (now - self._started)
        of_total = "" if self._total is None else f" of {self._total:,}"
        log.info("[sluice] %s: %s%s %s, %s a second%s", *self._words(of_total, rate), self._end(rate))

    def close(self) -> None:
        """Log the whole, if it took long enough for a line."""
        seconds = time.monotonic() - self._started
        if seconds >= EVERY_SECONDS:
            rate = (self._done - self._first) / seconds
            log.info("[sluice] %s: %s%s %s, %s a second, took %s", *self._words("", rate), _duration(seconds))

    def _words(self, of_total: str, rate: float) -> tuple[str, str, str, str, str]:
        return (
            self._what,
            f"{self._done:,}",
            of_total,
            _plural(self._unit),
            f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}",
        )

    def _end(self, rate: float) -> str:
        if self._total is None or rate <= 0:
            return ""
        seconds = max(0.0, (self._total - self._done) / rate)
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        return f", done in {_duration(seconds)} at {at:%H:%M:%S} UTC"


def _plural(unit: str) -> str:
    if unit == "B":
        return "bytes"
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


def _duration(seconds: float) -> str:
    """Return such as ``45 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
