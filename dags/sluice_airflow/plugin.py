"""The Airflow plugin that keeps the failure monitor running beside the scheduler.

Every process of Airflow loads it (entry point ``airflow.plugins``), so it imports very little. Fits Airflow 3.3: there
``on_starting`` is called before a job knows its type, so the command line is checked as well.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from typing import Any

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)

STOP_SECONDS = 3


class Listener:
    """Starts the monitor and its guard with the scheduler, and wakes it when a run fails.

    The monitor is a process of its own, not a thread: LocalExecutor forks its workers from the scheduler, and a fork
    beside a thread that talks to a database can leave a worker with a lock that nobody frees.
    """

    def __init__(self) -> None:
        self._job: Any = None
        self._pid = 0
        self._monitor: subprocess.Popen | None = None

    @hookimpl
    def on_starting(self, component: Any) -> None:
        """Start the monitor if the component is the scheduler's job."""
        if not hasattr(component, "job_type"):
            return  # a task
        self._job, self._pid = component, os.getpid()
        self._keep_running()

    @hookimpl
    def before_stopping(self, component: Any) -> None:
        """Stop the monitor when its scheduler stops."""
        if component is self._job and self._pid == os.getpid() and self._monitor is not None:
            monitor, self._monitor, self._job = self._monitor, None, None
            with contextlib.suppress(OSError):
                monitor.stdin.close()
            try:
                monitor.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                monitor.terminate()

    @hookimpl
    def on_dag_run_running(self) -> None:
        """See that the monitor is alive."""
        self._keep_running()

    @hookimpl
    def on_dag_run_success(self) -> None:
        """See that the monitor is alive."""
        self._keep_running()

    @hookimpl
    def on_dag_run_failed(self, dag_run: Any) -> None:
        """Wake the monitor; it reads the run from the database once this transaction is over."""
        self._keep_running()
        self._wake({"dag_id": dag_run.dag_id, "run_id": dag_run.run_id, "attempt": dag_run.clear_number})

    def _keep_running(self) -> None:
        if not self._is_scheduler() or (self._monitor is not None and self._monitor.poll() is None):
            return
        if self._monitor is not None:
            log.warning("The guard of the monitor ended with %s; it is started again", self._monitor.returncode)
        command = [sys.executable, "-P", "-m", "sluice_airflow.guard"]
        self._monitor = subprocess.Popen(command, stdin=subprocess.PIPE)
        # A full pipe must never block the scheduler.
        os.set_blocking(self._monitor.stdin.fileno(), False)
        log.info("The monitor of failed runs is below process %d", self._monitor.pid)

    def _is_scheduler(self) -> bool:
        if self._job is None or self._pid != os.getpid():
            return False
        return self._job.job_type == "SchedulerJob" or "scheduler" in sys.argv[1:2]

    def _wake(self, run: dict[str, Any]) -> None:
        if self._is_scheduler() and self._monitor is not None:
            # A lost line only costs a little time: the monitor also looks at intervals.
            with contextlib.suppress(OSError):
                os.write(self._monitor.stdin.fileno(), json.dumps(run).encode() + b"\n")


class SluicePlugin(AirflowPlugin):
    """What Airflow loads."""

    name = "sluice"
    listeners = [Listener()]
