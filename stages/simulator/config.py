"""Configuration of a synthetic world."""

from __future__ import annotations

from pydantic import Field

from stages.contracts.config import Config

SIGNALS = ("impression", "click", "watch", "like", "purchase")
"""Every event kind of the log, in the order in which a user produces them."""


class WorldConfig(Config):
    """One synthetic world; equal configurations give equal worlds.

    The defaults give about 60,000 clicks, the size of the demo.

    Attributes:
        seed: of every random draw.
        n_users: number of users, inactive users included.
        n_items: number of items, planted duplicates included.
        n_categories: number of categories; each topic belongs to one.
        n_topics: number of points in taste space around which items lie.
        days: length of the log.
        n_events: approximate number of impressions; clicks and the events after them are added.
        inactive_share: share of users with at most one session, in the first half of the log.
        duplicate_share: share of items that copy another item under a changed title.
        slate_size: number of items shown in a session.
        start_ms: beginning of the log, int ms UTC.
    """

    seed: int = Field(default=7, ge=0)
    n_users: int = Field(default=1_500, ge=2, le=50_000_000)
    n_items: int = Field(default=2_000, ge=20, le=10_000_000)
    n_categories: int = Field(default=8, ge=1, le=1_000)
    n_topics: int = Field(default=24, ge=2, le=10_000)
    days: int = Field(default=30, ge=1, le=3_650)
    n_events: int = Field(default=370_000, ge=1_000, le=100_000_000)
    inactive_share: float = Field(default=0.1, ge=0.0, le=0.9)
    duplicate_share: float = Field(default=0.03, ge=0.0, le=0.4)
    slate_size: int = Field(default=10, ge=1, le=200)
    start_ms: int = Field(default=1_735_689_600_000, ge=0)
