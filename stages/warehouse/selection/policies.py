"""Policies of a selection: activity of users, eligibility of items, repeated events."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.tables import DAY_MS

RepeatPolicy = Literal["first", "last", "sum", "max"]
"""How a user's repeated events of one kind on one item are reduced, see ``repeats``."""

WEIGHT_UNIT = 1_000
"""Weights are compared as integer thousandths, so that every database agrees."""


class ActivityPolicy(Config):
    """Which users are active at the end of a period.

    Attributes:
        min_events: smallest number of events in the window, before de-duplication.
        window_days: length of the window before the end of the period; None = all earlier events.
        max_events: largest number of events in the window (bots have more), or None.
        signals: kinds that count; None = the kinds that are selected.
        weights: weight of an event by kind, 1 by default, to three decimals.
    """

    min_events: int = Field(default=1, ge=0)
    window_days: float | None = Field(default=None, gt=0)
    max_events: int | None = None
    signals: tuple[str, ...] | None = None
    weights: dict[str, float] = {}

    def start_ms(self, end_ms: int) -> int:
        """Return the start of the window before ``end_ms``, int ms UTC; 0 without ``window_days``."""
        return 0 if self.window_days is None else end_ms - round(self.window_days * DAY_MS)


class ItemPolicy(Config):
    """Which items are eligible at the end of a period: for training and for recommendation.

    Attributes:
        min_support: smallest number of selected interactions since the start of the selection.
        active_within_days: largest age of the newest interaction in days, or None.
        max_age_days: largest number of days since the item was created or first seen, or None.
        states: allowed states of the catalogue; None = any. If states are given, an item without a state
            is not eligible.
    """

    min_support: int = Field(default=0, ge=0)
    active_within_days: float | None = Field(default=None, gt=0)
    max_age_days: float | None = Field(default=None, gt=0)
    states: tuple[str, ...] | None = None

    @property
    def restricts(self) -> bool:
        """Whether the policy can exclude an item."""
        return self != ItemPolicy()
