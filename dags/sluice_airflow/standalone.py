"""``airflow standalone`` that one Ctrl-C stops, whatever is running.

    python -m sluice_airflow.standalone

Plain ``airflow standalone`` may need two. The terminal interrupts every process of Airflow, then Airflow ends each of
them a second time, which breaks off the scheduler's own shutdown. The scheduler waits for the running task, the API
server for open pages. So the processes run in a session that the terminal does not reach, only Airflow's main process
is interrupted, and processes that are left after ``GRACE_SECONDS`` are ended. A task that was cut off is tried again by
the next scheduler.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

import psutil

GRACE_SECONDS = 6.0
"""How long Airflow's processes may take to end by themselves."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

END_SECONDS = 3.0
"""How long a process may take to end when it is told to; then it is killed."""


def main(grace_seconds: float = GRACE_SECONDS) -> int:
    """Run Airflow until it ends, or until Ctrl-C, SIGTERM or the end of the terminal.

    Returns:
        Its exit code, 0 where it was stopped.
    """
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, signal.default_int_handler)
    process = subprocess.Popen(["airflow", "standalone"], start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        _stop(process, grace_seconds)
    return 0


def _stop(process: subprocess.Popen, grace_seconds: float) -> None:
    """Let Airflow stop its processes, then end those that are left; a second Ctrl-C skips the wait for Airflow."""
    airflow = psutil.Process(process.pid)
    family = [airflow, *airflow.children(recursive=True)]  # before it ends: orphans are no one's children
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(KeyboardInterrupt):
        _, family = psutil.wait_procs(family, timeout=grace_seconds)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    _end(family)


def _end(family: list[psutil.Process]) -> None:
    for how in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                how(process)
        _, family = psutil.wait_procs(family, timeout=END_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
