"""How long tests may take that start jobs, servers or environments: long enough for a loaded machine.

A limit says when a test hangs, never how quick the code is. pytest ends a test at its limit without a word of what
was running; so what a test waits for ends before, with what was printed until then.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

STARTED_SECONDS = 1200
"""pytest's limit of a test that starts a job, Airflow, a training, an image's environment or the demo."""
_SPARE_SECONDS = 60
_ends = float("inf")


def begin(seconds: float) -> None:
    """Begin a test whose limit is ``seconds``, fixtures included; 0 is no limit."""
    global _ends  # noqa: PLW0603  # pytest runs one test at a time in a process
    _ends = time.monotonic() + seconds - _SPARE_SECONDS if seconds else float("inf")


def left() -> float:
    """Return the seconds that are left to wait in this test, at least one; a year where it has no limit."""
    return min(max(1.0, _ends - time.monotonic()), 366 * 86_400.0)


def finished(command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; when the test's time is over, end all that it started and fail with what it printed.

    Args:
        command: the program and its arguments.
        options: of ``subprocess.Popen``; by default both streams are kept, as text.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            printed = process.communicate(timeout=left())
        except subprocess.TimeoutExpired:
            _kill(process)
            raise AssertionError(f"{command} did not end; it printed: {_tails(*_printed(process))}") from None
        except BaseException:
            _kill(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, *printed)


def wait_for(what: str, ready: Callable[[], Any], log: Callable[[], str] = str, every: float = 0.2) -> Any:
    """Return the first value that is true; when the test's time is over, fail with what was waited for and the log.

    Args:
        what: is waited for.
        ready: is asked again and again.
        log: what the processes have printed.
        every: seconds between two questions.
    """
    until = time.monotonic() + left()
    while not (found := ready()):
        assert time.monotonic() < until, f"waited in vain for {what}: {_tails(log())}"
        time.sleep(every)
    return found


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _printed(process: subprocess.Popen[str]) -> tuple[str | None, ...]:
    """Return what a killed process had printed, unless others that are no longer in its group hold its streams."""
    with suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=10)
    return ("its streams are still open",)


def _tails(*texts: str | None) -> str:
    return "".join(f"\n{text[-4000:]}" for text in texts if text)
