"""An Airflow of its own for every test: a migrated SQLite database is made once and copied."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"


def airflow_environment(home: Path, dags: Path) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SLUICE", "PYTHONPATH"))
    }
    return environment | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "OMP_NUM_THREADS": "1",
        "SLUICE_HOME": str(home / "sluice"),
        "SLUICE_RETRY_DELAY_SECONDS": "0.1",
    }


@dataclass
class Run:
    """A finished ``airflow dags test``."""

    code: int
    output: str
    tasks: dict[str, tuple[str | None, int]]
    run_id: str


@dataclass
class Airflow:
    home: Path

    def environment(self, dags: Path = DAGS) -> dict[str, str]:
        return airflow_environment(self.home, dags)

    def test(self, dag_id: str, conf: dict[str, object], dags: Path = DAGS, **extra: str) -> Run:
        """Run a DAG once; ``tasks`` maps a task to (state, tries) as Airflow's database has them."""
        command = [sys.executable, "-m", "airflow", "dags", "test", dag_id, "-c", json.dumps(conf)]
        done = subprocess.run(
            command,
            env=self.environment(dags) | extra,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        database = sqlite3.connect(self.home / "airflow.db")
        try:
            rows = database.execute("select task_id, state, try_number, run_id from task_instance").fetchall()
        finally:
            database.close()
        assert rows, done.stdout
        return Run(done.returncode, done.stdout, {row[0]: (row[1], row[2]) for row in rows}, rows[0][3])


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """The Airflow that the others are copied from: read only."""
    home = tmp_path_factory.mktemp("airflow")
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=airflow_environment(home, home / "no-dags"),
        check=True,
        capture_output=True,
        timeout=240,
    )
    return Airflow(home)


@pytest.fixture
def airflow(migrated: Airflow, tmp_path: Path) -> Airflow:
    home = tmp_path / "airflow"
    home.mkdir()
    shutil.copy(migrated.home / "airflow.db", home / "airflow.db")
    return Airflow(home)


@dataclass
class Slack:
    """A local endpoint that takes what Slack's incoming webhooks take."""

    port: int
    answers: list[int] = field(default_factory=list)
    received: list[tuple[str, dict[str, object], int]] = field(default_factory=list)

    @property
    def connection(self) -> str:
        url = f"http://127.0.0.1:{self.port}/services/T0/B0/secret"
        return json.dumps({"conn_type": "slackwebhook", "password": url})

    @property
    def accepted(self) -> list[str]:
        return [str(body["text"]) for _, body, status in self.received if status == 200]


@pytest.fixture
def slack() -> Iterator[Slack]:
    """Answers with the statuses in ``answers``, one a request, then with 200."""
    handler = _handler(lambda: state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state = Slack(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def _handler(state: Callable[[], Slack]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            slack = state()
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status = slack.answers.pop(0) if slack.answers else 200
            slack.received.append((self.path, body, status))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"ok" if status == 200 else b"no_service")

        def log_message(self, *args: object) -> None:
            """Keep the test's output quiet."""

    return Handler
