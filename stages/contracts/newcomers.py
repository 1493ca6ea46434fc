"""Which list answers requests without history, and the measurement behind it."""

from __future__ import annotations

from typing import Literal

from stages.contracts.config import Config


class NewcomerList(Config):
    """The list for users without history, as ``sources.json`` keeps it.

    Attributes:
        name: ``all_time``, ``half_life_<days>d``, or the generator's.
        half_life_days: of a touch's weight in the popular items; None counts the touches of all time alike.
        generator: whose items come before the popular ones; None without one.
        measured: mean NDCG@10 of every list that was compared, by name.
        requests: how many requests of the ranker period were measured.
        measured_on: which of them: those without history, or those of all users where too few are without.
        reason: the choice in words.
    """

    name: str
    half_life_days: float | None
    generator: str | None = None
    measured: dict[str, float] = {}
    requests: int = 0
    measured_on: Literal["no_history", "all", "none"] = "none"
    reason: str = ""


def half_life_name(days: float | None) -> str:
    """Return the name of the list of popular items at a half-life; None is all time."""
    return "all_time" if days is None else f"half_life_{days:g}d"
