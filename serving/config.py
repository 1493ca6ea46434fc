"""Configuration of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.contracts.config import Config


class ServeConfig(Config):
    """How the server listens, where it keeps its files and how it tells the time.

    Attributes:
        host, port: address to listen on; port 0 takes a free one.
        alias: registry alias that is served.
        cache_dir: pulled releases are kept here.
        data_dir: the event log is kept here.
        poll_seconds: how often the alias is checked for a new release; 0 never checks.
        max_clock_skew_ms: how far in the future the time of an event may lie; it then counts as now.
        clock: ``wall`` is the machine's clock. ``data`` starts at the release's as-of time (or at
            the newest logged event) and runs on from there: for releases trained on old data,
            whose decayed counters would all be zero by the machine's clock. ``auto`` takes
            ``data`` where the release is more than a year old, else ``wall``; anew for each release.
        ready_users: how many known users a new release has to answer before it is served.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    alias: str = "champion"
    cache_dir: Path = Path("var/serving/releases")
    data_dir: Path = Path("var/serving")
    poll_seconds: float = Field(default=10.0, ge=0)
    max_clock_skew_ms: int = Field(default=60_000, ge=0)
    clock: Literal["auto", "wall", "data"] = "auto"
    ready_users: int = Field(default=8, ge=1)
