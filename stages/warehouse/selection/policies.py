"""Who and what is selected: activity of users, eligibility of items, repeated events."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.tables import DAY_MS

RepeatPolicy = Literal["first", "last", "sum", "max"]
"""What becomes of a user's repeated events of one kind on one item, see ``selection``."""

WEIGHT_UNIT = 1_000
"""Weights are compared as integers of a thousandth, so that every database agrees."""


class ActivityPolicy(Config):
    """Who is active at the end of a part.

    Attributes:
        min_events: at least so many events, before de-duplication ...
        window_days: ... in so many days before the end of the part; None = since ever.
        max_events: at most so many in the same window (bots have more), or None.
        signals: kinds that count; None = the kinds that are selected.
        weights: what an event of a kind counts for, 1 where it is not given, to three decimals.
    """

    min_events: int = Field(default=1, ge=0)
    window_days: float | None = Field(default=None, gt=0)
    max_events: int | None = None
    signals: tuple[str, ...] | None = None
    weights: dict[str, float] = {}

    def start_ms(self, end_ms: int) -> int:
        """Return the start of the window before ``end_ms``; no event is older than 0."""
        return 0 if self.window_days is None else end_ms - round(self.window_days * DAY_MS)


class ItemPolicy(Config):
    """Which items are eligible at the end of a part: to be trained on and to be recommended.

    Attributes:
        min_support: at least so many selected interactions since the start of the selection.
        active_within_days: the newest of them not older than so many days, or None.
        max_age_days: created, or first seen, not longer ago than so many days, or None.
        states: states of the catalogue that are allowed; None = any. An item without a state is
            refused where states are given.
    """

    min_support: int = Field(default=0, ge=0)
    active_within_days: float | None = Field(default=None, gt=0)
    max_age_days: float | None = Field(default=None, gt=0)
    states: tuple[str, ...] | None = None

    @property
    def restricts(self) -> bool:
        """Whether any item can fail it."""
        return self != ItemPolicy()
