"""An Airflow of its own for every test: a migrated SQLite database is made once for all processes and copied."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.shared import Shared
from tests.time_limits import finished

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"
WORLD = {"n_users": 30, "n_items": 40, "n_events": 2_000, "days": 20, "n_topics": 4, "n_categories": 2}
BUSY = {"contracts": {"volume": {"warn_above": 0.01, "fail_above": 0.01, "warn_below": None, "fail_below": None}}}


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
        # This checkout's helpers, whichever one the installed plugin came from.
        "PYTHONPATH": os.pathsep.join(map(str, [REPOSITORY / "tests" / "started", REPOSITORY, DAGS])),
        "SLUICE_HOME": str(home / "sluice"),
        "SLUICE_RETRY_DELAY_SECONDS": "0.1",
    }


RUNS: list[tuple[str, dict[str, object]]] = [
    ("train_funnel", {"data": "/nowhere/ml-<none>", "config": "configs/movielens.yaml", "promote": False}),
    ("train_funnel", {"config": "no-such-recipe.yaml"}),
    ("train_funnel", {"data": "synthetic", "overrides": {"candidate": {"model": {"dim": 32}}}}),
    ("train_funnel", {"dimension": 32}),
    ("train_funnel", {"data": "synthetic", "config": "configs/demo.yaml", "overrides": {"world": WORLD, **BUSY}}),
    ("refresh_index", {"n_processes": 2}),
    ("refresh_index", {"config": "configs/demo.yaml"}),
]
"""Runs that fail, of ``train_funnel`` by what it is given and of ``refresh_index`` where there is no champion."""

ENDED = "the run ended with exit code"
SEVERAL = f"""
import json, os, sys
from airflow.__main__ import main
runs, homes = json.loads(sys.argv[1]), sys.argv[2]
for number, (dag_id, conf) in enumerate(runs):
    os.environ["SLUICE_HOME"] = os.path.join(homes, str(number))
    sys.argv[1:], code = ["dags", "test", dag_id, "-c", json.dumps(conf)], 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    sys.stderr.flush()
    print(f"\\n{ENDED} {{code}}", flush=True)
"""
"""Runs DAGs one after another: most of the seconds of ``airflow dags test`` are its start."""


@dataclass
class Run:
    """A finished ``airflow dags test``."""

    code: int
    output: str
    tasks: dict[str, tuple[str | None, int]]
    run_id: str
    sluice_home: str = ""


def _python(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository; its errors are among what it prints."""
    return finished([sys.executable, *arguments], env=environ, cwd=REPOSITORY, stderr=subprocess.STDOUT)


@dataclass
class Airflow:
    home: Path

    def environment(self, dags: Path = DAGS) -> dict[str, str]:
        return airflow_environment(self.home, dags)

    def test(self, dag_id: str, conf: dict[str, object], dags: Path = DAGS, **extra: str) -> Run:
        """Run a DAG once; ``tasks`` maps a task to (state, tries) as Airflow's database has them."""
        done = _python(
            "-m", "airflow", "dags", "test", dag_id, "-c", json.dumps(conf), **self.environment(dags) | extra
        )
        database = sqlite3.connect(self.home / "airflow.db")
        try:
            rows = database.execute("select task_id, state, try_number, run_id from task_instance").fetchall()
        finally:
            database.close()
        assert rows, done.stdout
        return Run(done.returncode, done.stdout, {row[0]: (row[1], row[2]) for row in rows}, rows[0][3])

    def monitor(self, dags: Path = DAGS, **extra: str) -> str:
        """Look for failed runs once, as the process beside the scheduler does all the time; return its log."""
        done = _python("-m", "sluice_airflow.monitor", "--once", **self.environment(dags) | extra)
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="session")
def migrated(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """The Airflow that the others of this process are copied from: its database is read only."""
    made, home = shared("airflow", migrate), tmp_path_factory.mktemp("airflow")
    shutil.copy(made / "airflow.db", home)
    return Airflow(home)


def migrate(home: Path) -> None:
    """Make the metadata database; runs that fail from then on are watched."""
    command = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = finished(command, env=airflow_environment(home, home / "no-dags"))
    assert done.returncode == 0, done.stderr
    Airflow(home).monitor()


@pytest.fixture
def airflow(migrated: Airflow, tmp_path: Path) -> Airflow:
    home = tmp_path / "airflow"
    home.mkdir()
    shutil.copy(migrated.home / "airflow.db", home / "airflow.db")
    return Airflow(home)


@pytest.fixture
def failed(shared: Shared, migrated: Airflow, tmp_path: Path) -> Callable[..., tuple[Airflow, Run]]:
    """Return a function that gives one of ``RUNS`` and an Airflow of the test's own that knows no other run."""

    def run_of(dag_id: str, conf: dict[str, object]) -> tuple[Airflow, Run]:
        made = shared("airflow-runs", lambda home: run_several(home, migrated))
        told = json.loads((made / "runs.json").read_text(encoding="utf-8"))[RUNS.index((dag_id, conf))]
        run = Run(**told | {"tasks": {name: tuple(found) for name, found in told["tasks"].items()}})
        home = tmp_path / "airflow"
        home.mkdir()
        shutil.copy(made / "airflow.db", home)
        with contextlib.closing(sqlite3.connect(home / "airflow.db")) as database, database:
            for table in ("task_instance", "dag_run"):
                database.execute(f"delete from {table} where run_id != ?", [run.run_id])
        return Airflow(home), run

    return run_of


def run_several(home: Path, migrated: Airflow) -> None:
    """Run ``RUNS`` in one process; ``runs.json`` says what became of each."""
    shutil.copy(migrated.home / "airflow.db", home)
    done = _python("-c", SEVERAL, json.dumps(RUNS), str(home / "sluice"), **airflow_environment(home, DAGS))
    with contextlib.closing(sqlite3.connect(home / "airflow.db")) as database:
        ids = [run_id for (run_id,) in database.execute("select run_id from dag_run order by id")]
        rows = database.execute("select run_id, task_id, state, try_number from task_instance").fetchall()
    output, *others = done.stdout.split(f"\n{ENDED} ")
    assert len(ids) == len(others) == len(RUNS), done.stdout
    runs = []
    for number, (run_id, other) in enumerate(zip(ids, others, strict=True)):
        code, _, following = other.partition("\n")
        tasks = {task_id: (state, tries) for owner, task_id, state, tries in rows if owner == run_id}
        runs.append(Run(int(code), output, tasks, run_id, str(home / "sluice" / str(number))))
        output = following
    (home / "runs.json").write_text(json.dumps([vars(run) for run in runs]), encoding="utf-8")


@dataclass
class Slack:
    """A local endpoint that takes what Slack's incoming webhooks take.

    Attributes:
        plans: answers by the name of a run, one a request, then 200: a status, a status with headers, or ``hang``.
        received: (path, body, answer) of each request.
        times: when each came, on the monotonic clock, and its text.
    """

    port: int
    plans: dict[str, list[Any]] = field(default_factory=dict)
    received: list[tuple[str, dict[str, object], object]] = field(default_factory=list)
    times: list[tuple[float, str]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def connection(self) -> str:
        return self.connection_with()

    def connection_with(self, **extra: object) -> str:
        url = f"http://127.0.0.1:{self.port}/services/T0/B0/secret"
        return json.dumps({"conn_type": "slackwebhook", "password": url, "extra": extra})

    @property
    def accepted(self) -> list[str]:
        return [str(body["text"]) for _, body, answer in self.received if answer == 200]

    def of(self, run_id: str) -> list[str]:
        """Return the accepted messages of a run."""
        return [text for text in self.accepted if f"run: `{run_id}`" in text]

    def answer(self, path: str, body: dict[str, object]) -> tuple[Any, dict[str, str]]:
        """Note a request; return the answer and its headers."""
        text = str(body["text"])
        plan = next((plan for run_id, plan in self.plans.items() if f"`{run_id}`" in text), [])
        answer = plan.pop(0) if plan else 200
        answer, headers = answer if isinstance(answer, tuple) else (answer, {})
        self.times.append((time.monotonic(), text))
        self.received.append((path, body, answer))
        return answer, headers


@contextlib.contextmanager
def _listening() -> Iterator[Slack]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(lambda: state))
    state = Slack(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    state.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def slack() -> Iterator[Slack]:
    with _listening() as state:
        yield state


@pytest.fixture(scope="module")
def slack_of_module() -> Iterator[Slack]:
    with _listening() as state:
        yield state


def _handler(state: Callable[[], Slack]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer, headers = state().answer(self.path, body)
            if answer == "hang":
                state().closing.wait(60)
                return
            self.send_response(answer)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"ok" if answer == 200 else b"no_service")

        def log_message(self, *args: object) -> None:
            """Keep the test's output quiet."""

    return Handler
