"""What time it is for the funnel: the machine's time, or the time of old data running on."""

from __future__ import annotations

import time
from typing import Literal

STALE_MS = 365 * 86_400_000
"""With ``clock: auto``, an older release is served by the clock of its own data."""


def wall_clock_ms() -> int:
    """Return the machine's time in milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000


class DataClock:
    """Starts at a given time and advances with real time; never runs backwards."""

    def __init__(self, start_ms: int) -> None:
        self._offset_ms = start_ms - _elapsed_ms()

    def __call__(self) -> int:
        """Return the time in ms since 1970-01-01 UTC."""
        return self._offset_ms + _elapsed_ms()

    def advance_to(self, time_ms: int) -> None:
        """Jump to ``time_ms`` if that is ahead."""
        self._offset_ms = max(self._offset_ms, time_ms - _elapsed_ms())


Clock = DataClock | None
"""None stands for the machine's clock."""


def choose_clock(kind: Literal["auto", "wall", "data"], as_of_ms: int, newest_event_ms: int | None) -> Clock:
    """Return the clock to serve a release by.

    Args:
        kind: ``ServeConfig.clock``.
        as_of_ms: as-of time of the first release.
        newest_event_ms: time of the newest logged event; time does not go back behind it.
    """
    stale = wall_clock_ms() - as_of_ms > STALE_MS
    if kind == "wall" or (kind == "auto" and not stale):
        return None
    return DataClock(max(as_of_ms, newest_event_ms or 0))


def _elapsed_ms() -> int:
    return time.monotonic_ns() // 1_000_000
