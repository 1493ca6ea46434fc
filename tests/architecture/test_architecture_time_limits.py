"""A test that waits in vain ends before pytest ends it, and says what was printed until then."""

from __future__ import annotations

import time

import pytest

from tests import time_limits
from tests.time_limits import STARTED_SECONDS, finished, left, wait_for

SLOW = "echo so far; sleep 600 & sleep 600"


def test_what_starts_jobs_has_the_long_limit_and_waits_less(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("timeout")
    assert marker.args == (STARTED_SECONDS,)
    assert STARTED_SECONDS / 2 < left() < STARTED_SECONDS


def test_a_command_that_does_not_end_is_ended_with_its_children_and_its_output_is_told() -> None:
    time_limits.begin(65.0)
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"did not end; it printed: \nso far"):
        finished(["sh", "-c", SLOW])
    assert time.monotonic() - started < 300, "the child that holds the streams was ended too"


def test_what_never_happens_is_told_with_the_log() -> None:
    time_limits.begin(61.0)
    with pytest.raises(AssertionError, match=r"waited in vain for a miracle: \nthe log"):
        wait_for("a miracle", bool, lambda: "the log")
    time_limits.begin(0)
    assert left() > 86_400
    assert wait_for("seven", lambda: 7) == 7
