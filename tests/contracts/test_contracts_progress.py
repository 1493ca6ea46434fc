"""A bar on a terminal; elsewhere lines that are seldom, and say how many, how fast and until when."""

from __future__ import annotations

import io
import re
import sys

import pytest

from stages.contracts import progress as module
from stages.contracts.progress import progress, progress_of


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    caplog.set_level("INFO", "sluice")
    return clock


def test_a_line_comes_at_most_every_half_minute(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    items = []
    for item in progress(range(1000), "retrieve", unit="request"):
        items.append(item)
        clock.now += 0.1
    assert items == list(range(1000))
    assert len(caplog.messages) == 4, caplog.messages
    first, *_, last = caplog.messages
    pattern = r"\[sluice\] retrieve: 300 of 1,000 requests, 10 a second, done in 70 s at \d\d:\d\d:\d\d UTC"
    assert re.fullmatch(pattern, first), first
    assert last == "[sluice] retrieve: 1,000 requests, 10 a second, took 100 s"


def test_what_is_quick_says_nothing(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress_of("events.csv", 1 << 30, "B") as advance:
        clock.now += 29
        advance(1 << 30)
    assert list(progress([], "nothing")) == []
    assert caplog.messages == []


def test_bytes_and_work_of_unknown_length_have_lines_too(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress_of("events.csv", 4_000_000, "B") as advance:
        clock.now += 7200
        advance(1_000_000)
    for _ in progress(iter(range(3)), "rows", unit="row"):
        clock.now += 31
    for _ in progress(range(1), "search", unit="query"):
        clock.now += 31
    assert caplog.messages[0].startswith("[sluice] events.csv: 1,000,000 of 4,000,000 bytes, 139 a second, done in 6 h")
    assert caplog.messages[2] == "[sluice] rows: 1 rows, 0.032 a second"
    assert caplog.messages[-1] == "[sluice] search: 1 queries, 0.032 a second, took 31 s"


def test_what_an_earlier_run_did_is_no_part_of_the_rate(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress_of("two-tower", 100, "step", done=90) as advance:
        clock.now += 100
        advance(5)
    assert caplog.messages[0].startswith("[sluice] two-tower: 95 of 100 steps, 0.05 a second, done in 100 s at ")


def test_a_terminal_has_a_bar_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sluice")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress("abc", "letters", unit="letter")) == ["a", "b", "c"]
    shown = terminal.getvalue()
    assert "letters:   0%" in shown
    assert "0/3 [" in shown
    assert shown.endswith("\r")
    assert caplog.messages == []


def test_an_error_is_passed_on(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        for _ in progress(range(3), "rows", unit="row"):
            clock.now += 40
            raise ValueError("a row")

    with pytest.raises(ValueError, match="a row"):
        failing()
    assert caplog.messages == []


def test_hidden_progress_shows_nothing(clock: _Clock, caplog: pytest.LogCaptureFixture) -> None:
    with progress_of("two-tower", 2, "step", shown=False) as advance:
        clock.now += 60
        advance(2)
    assert caplog.messages == []
