"""Keeps the monitor alive as long as the scheduler lives: a small process, which the kernel is unlikely to kill.

    python -m sluice_airflow.guard

The plugin starts it. The monitor reads this process's standard input; when that is closed, both end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

SHORT_SECONDS = 10.0
"""A monitor that lived for less is started again only after a pause."""


def main() -> None:
    """Run the monitor, and restart it when it dies, until the parent is gone or has closed the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the scheduler's
    parent = os.getppid()
    while os.getppid() == parent:
        started = time.monotonic()
        monitor = subprocess.Popen([sys.executable, "-P", "-m", "sluice_airflow.monitor"])
        code = _wait(monitor, parent)
        if code == 0:
            return
        print(f"The monitor of failed runs ended with {code}; it is started again", file=sys.stderr)  # noqa: T201
        if time.monotonic() - started < SHORT_SECONDS:
            time.sleep(SHORT_SECONDS / 2)


def _wait(monitor: subprocess.Popen, parent: int) -> int:
    """Return the monitor's exit code; 0 too when it was ended because the parent is gone."""
    while os.getppid() == parent:
        try:
            return monitor.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    monitor.terminate()
    monitor.wait()
    return 0


if __name__ == "__main__":
    main()
