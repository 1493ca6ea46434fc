"""A clock that makes every piece of work take long enough to be shown."""

from __future__ import annotations

import pytest

from stages.contracts import progress as module


class LateClock:
    """Stands in for the module ``time``: each look at it is a minute later."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 60.0
        return self._now


def show_everything(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Let progress be logged each time that it moves."""
    monkeypatch.setattr(module, "time", LateClock())
    caplog.set_level("INFO", "sluice")
