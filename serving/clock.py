"""The funnel's clock: the machine's, or one that starts at the time of old data and runs on."""

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


Clock = DataClock | None
"""None stands for the machine's clock."""


def choose_clock(
    kind: Literal["auto", "wall", "data"], as_of_ms: int, newest_event_ms: int | None, before: Clock = None
) -> Clock:
    """Return the clock to serve a release by; each release that is taken into service gets its own.

    Args:
        kind: ``ServeConfig.clock``.
        as_of_ms: as-of time of the release.
        newest_event_ms: time of the newest logged event; the clock does not start before it. One that is later than the
            machine's time counts as the machine's time.
        before: clock of the release before; a data clock does not start before the time of another one.
    """
    now_ms = wall_clock_ms()
    stale = now_ms - as_of_ms > STALE_MS
    if kind == "wall" or (kind == "auto" and not stale):
        return None
    reached = 0 if before is None else before()
    return DataClock(max(as_of_ms, min(newest_event_ms or 0, now_ms), reached))


def _elapsed_ms() -> int:
    return time.monotonic_ns() // 1_000_000
