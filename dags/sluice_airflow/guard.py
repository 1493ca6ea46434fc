"""Keeps the monitor alive as long as the scheduler lives: small, so that the kernel looks for memory elsewhere.

    python -m sluice_airflow.guard

Started by the plugin. The monitor reads this process's standard input, and its end is the end of both.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

SHORT_SECONDS = 10.0
"""A monitor that lived shorter is not started again at once."""


def main() -> None:
    """Start the monitor, and again when it has died, until the parent is gone or has closed the pipe."""
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
