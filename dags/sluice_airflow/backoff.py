"""Pauses between tries; nothing here needs Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_SECONDS = 3600.0
LONGEST_WAIT_SECONDS = 86_400.0
"""The longest pause that Slack may ask for; a longer one is taken as an error of Slack or of a proxy."""


def retry_seconds(tries: int, first_seconds: float, wait_seconds: float | None = None) -> float:
    """Return the pause after that many tries: doubled each time, and never less than ``wait_seconds``."""
    doubled = min(first_seconds * 2.0 ** min(tries - 1, 30), LONGEST_SECONDS)
    return max(doubled, wait_seconds or 0.0)


def wait_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, given as a number or a date; None if missing or unreadable."""
    found = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if found is None:
        return None
    try:
        wait = float(found)
    except ValueError:
        try:
            moment = parsedate_to_datetime(found)
        except (ValueError, TypeError):
            return None
        wait = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(wait, 0.0), LONGEST_WAIT_SECONDS)
