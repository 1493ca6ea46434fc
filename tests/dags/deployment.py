"""A real Airflow for tests: API server, scheduler and DAG processor as processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.time_limits import left, wait_for

COMPONENTS = {
    "api-server": ["api-server", "--workers", "1"],
    "scheduler": ["scheduler", "--skip-serve-logs"],
    "dag-processor": ["dag-processor"],
}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


@dataclass
class Deployment:
    """Components by name, each in a process group of its own."""

    home: Path
    environ: dict[str, str]
    port: int
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    started: list[subprocess.Popen] = field(default_factory=list)
    token: str = ""

    @classmethod
    def make(cls, home: Path, migrated: Path, environ: dict[str, str]) -> Deployment:
        """Prepare a home with a migrated SQLite database; nothing is started yet."""
        home.mkdir()
        shutil.copy(migrated / "airflow.db", home / "airflow.db")
        port = free_port()
        settings = {
            "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__SECRET_KEY": "only-for-tests" * 4,
            "AIRFLOW__API_AUTH__JWT_SECRET": "only-for-tests" * 4,
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "3",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        }
        return cls(home, environ | settings, port)

    def start(self, name: str) -> None:
        with (self.home / f"{name}.log").open("a", encoding="utf-8") as log:
            self.processes[name] = process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *COMPONENTS[name]],
                env=self.environ,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)

    def kill(self, name: str) -> None:
        """SIGKILL the component itself, as the kernel would; its children stay."""
        process = self.processes[name]
        process.kill()
        process.wait(30)

    def stop(self) -> None:
        """End everything, with what a component left behind: its group is its own."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.started:
            process.wait(30)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(encoding="utf-8")

    def logs(self) -> str:
        """Return the ends of all logs."""
        return "".join(f"{name}:\n{self.log(name)[-1500:]}\n" for name in self.processes)

    def call(self, path: str, body: object = None) -> Any:
        """Call Airflow's REST API: GET, or POST with a body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=max(30.0, min(left(), 300.0))) as answer:
            return json.load(answer)

    def is_ready(self, *dag_ids: str) -> bool:
        """Whether the API answers and the DAGs are known."""
        try:
            self.token = self.token or self.call("/auth/token")["access_token"]
            known = {dag["dag_id"] for dag in self.call("/api/v2/dags")["dags"]}
        except (OSError, urllib.error.URLError):
            return False
        return known >= set(dag_ids)

    def trigger(self, dag_id: str, run_id: str, **conf: object) -> None:
        self.call(f"/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})

    def clear_failed(self, dag_id: str, run_id: str) -> None:
        body = {"dry_run": False, "dag_run_id": run_id, "only_failed": True}
        self.call(f"/api/v2/dags/{dag_id}/clearTaskInstances", body)

    def state(self, dag_id: str, run_id: str) -> str:
        return str(self.call(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def wait_for_state(self, dag_id: str, run_id: str, *states: str) -> str:
        return str(
            wait_for(
                f"{run_id} to be {states}",
                lambda: next((s for s in states if s == self.state(dag_id, run_id)), ""),
                self.logs,
            )
        )
