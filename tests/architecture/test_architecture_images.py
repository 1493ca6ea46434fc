"""The images without a container engine: linted, and each start command run with only its own set."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cli.run import parse_overrides
from stages.pipeline import STEPS
from tests.time_limits import finished, wait_for

if TYPE_CHECKING:
    from conftest import ImageMaker, Target

REPOSITORY = Path(__file__).resolve().parents[2]

# Small enough to train in seconds; what it recommends does not matter here.
TINY = (
    "world.n_users=200",
    "world.n_items=200",
    "world.n_events=20000",
    "funnel.candidate_k=50",
    "funnel.light_k=20",
    "funnel.max_k=10",
    "candidate.training.epochs=1",
    "light_ranker.max_rounds=10",
    "heavy_ranker.max_epochs=1",
    "heavy_ranker.ensemble=1",
    "evaluation.bootstrap_samples=100",
    "gate.min_gain=-1",
)


def test_the_dockerfile_is_clean() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


def test_targets_install_the_same_wheel_and_run_unprivileged(targets: dict[str, Target]) -> None:
    assert {"wheel", "train", "serve"} <= set(targets)
    for name in ("train", "serve"):
        words = [f"{word} {rest}" for word, rest in targets[name].instructions]
        assert "COPY --from=wheel /wheels /tmp/wheels" in words
        assert any(line.startswith("HEALTHCHECK") for line in words)
        (installed,) = [line for line in words if "/tmp/wheels/*.whl" in line]
        assert installed.endswith("&& python -m stages.compile_ahead"), "compiled as root, before USER"
        assert targets[name].user == "10001"
    serve = " ".join(rest for _, rest in targets["serve"].instructions)
    assert "requirements/serve.txt" in serve
    assert "dags" not in serve


def test_what_the_dockerfile_copies_is_sent_to_the_build(targets: dict[str, Target]) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    for target in targets.values():
        for word, rest in target.instructions:
            if word == "COPY" and not rest.startswith("--from"):
                for source in rest.split()[:-1]:
                    assert (REPOSITORY / source).exists()
                    assert source.split("/")[0] in sent


def test_compose_builds_targets_that_exist(targets: dict[str, Target]) -> None:
    stack = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
    services = stack["services"]
    images: dict[str, set[str]] = {}
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in targets, name
            images.setdefault(service["image"], set()).add(service["build"]["target"])
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in stack["volumes"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is open to the network"
    assert images == {"sluice-train": {"train"}, "sluice-serve": {"serve"}}


ACCEPTED = """
import http.client, json, os, signal, socket, sys, threading
from serving.server import serve
from serving.service import Service

def probe(url):
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=60)
    connection.request("GET", "/healthz")
    alive = connection.getresponse().read().decode()
    ends = [socket.socket(fileno=os.dup(int(number))) for number in os.listdir("/proc/self/fd") if is_socket(number)]
    accepted = [end for end in ends if peer(end) == connection.sock.getsockname()]
    told = {"alive": alive, "nodelay": [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for end in accepted]}
    told["loops"] = [name for name in ("uvloop", "httptools") if name in sys.modules]
    print(json.dumps(told), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

def is_socket(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    except OSError:
        return False

def peer(end):
    try:
        return end.getpeername()
    except OSError:
        return None

serve(Service(None, None), "127.0.0.1", 0, lambda url: threading.Thread(target=probe, args=(url,)).start())
"""


def test_the_serving_set_answers_at_once(image: ImageMaker) -> None:
    """A real server in the image's own set: uvloop, httptools, and TCP_NODELAY on what it accepts."""
    python = image("serve.txt") / "bin" / "python"
    done = finished([python, "-I", "-c", ACCEPTED])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {"alive": '{"alive":true}', "nodelay": [1], "loops": ["uvloop", "httptools"]}


def test_the_serving_set_cannot_import_torch_or_airflow(image: ImageMaker) -> None:
    python = image("serve.txt") / "bin" / "python"
    code = "from importlib.util import find_spec as f; print([n for n in ('torch', 'torchrec', 'airflow') if f(n)])"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("requirements", ["serve.txt", "train.txt"])
def test_each_set_holds_what_compiling_ahead_needs(image: ImageMaker, tmp_path: Path, requirements: str) -> None:
    python = image(requirements) / "bin" / "python"
    code = "import sys, stages.compile_ahead.__main__ as ahead; print('torch' in sys.modules, ahead.CACHE)"
    done = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=_clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    torch, kept = done.stdout.split()
    assert torch == "False"
    if "NUMBA_CACHE_DIR" not in os.environ:
        assert Path(kept).is_relative_to(image(requirements)), "the environment compiles for all its users"


@pytest.mark.slow
def test_an_environment_compiles_once_for_all_its_users(image: ImageMaker, tmp_path: Path) -> None:
    """The Dockerfile's last command as root; other users may then read all of it, change none, and compile nothing."""
    venv = image.compiles("serve.txt")
    environment = {name: value for name, value in _clean_environment().items() if name != "NUMBA_CACHE_DIR"}
    command = [venv / "bin" / "python", "-m", "stages.compile_ahead"]
    done = finished(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    kept = compiled_files(venv)
    assert {path.suffix for path in kept} == {".nbc", ".nbi"}
    for path in (venv / "var", *(venv / "var").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    again = finished(command, cwd=tmp_path, env=environment)
    assert again.returncode == 0, again.stderr
    assert compiled_files(venv) == kept


@pytest.mark.slow
def test_the_training_command_starts_airflow_and_runs_the_job(
    targets: dict[str, Target], image: ImageMaker, tmp_path: Path
) -> None:
    """The whole job under Airflow's own scheduler, executor and task processes."""
    port = _free_port()
    changes = {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(_free_port()),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
        "SLUICE_CONFIGS": str(REPOSITORY / "configs"),
        "SLUICE_HOME": str(tmp_path / "home"),
    }
    venv = image("train.txt")
    with _started(targets["train"], venv, tmp_path, changes) as log:
        _wait(f"http://127.0.0.1:{port}/api/v2/monitor/health", log, _airflow_is_healthy)
        _trigger(
            venv,
            targets["train"].environment | changes,
            {"data": "synthetic", "overrides": parse_overrides(tuple(TINY))},
            log,
        )
        states = _finished_run(tmp_path / "airflow" / "airflow.db", log)
    assert states == dict.fromkeys(STEPS, "success")
    said = log.read_text(encoding="utf-8", errors="replace")
    assert "The monitor of failed runs is below process" in said, "the wheel brings the plugin"
    assert "sluice_airflow.monitor" not in said, "the monitor found nothing to complain about"


@pytest.mark.slow
def test_the_serving_command_answers(targets: dict[str, Target], image: ImageMaker, tmp_path: Path, job: Any) -> None:
    port = _free_port()
    changes = {"SLUICE_HOME": job.settings.home, "SLUICE_HOST": "127.0.0.1", "SLUICE_PORT": str(port)}
    with _started(targets["serve"], image("serve.txt"), tmp_path, changes) as log:
        _wait(f"http://127.0.0.1:{port}/readyz", log, bool)
        answer = _get(f"http://127.0.0.1:{port}/v1/recommendations?user_id=nobody&k=3")
    assert len(answer["items"]) == 3


def compiled_files(venv: Path) -> dict[Path, int]:
    """Return every file of compiled code of an environment, with the time of its last change in ns."""
    files = (path for path in (venv / "var" / "cache").rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def _trigger(venv: Path, changes: dict[str, str], params: dict[str, Any], log: Path) -> None:
    """Trigger the DAG from the command line, once the DAG processor has parsed it."""
    database = Path(changes["AIRFLOW_HOME"]) / "airflow.db"
    environment = _clean_environment() | changes
    environment["PATH"] = os.pathsep.join([str(venv / "bin"), os.defpath])
    command = [str(venv / "bin" / "airflow"), "dags", "trigger", "train_funnel", "-c", json.dumps(params)]
    wait_for("the DAG processor to write the DAG", lambda: _knows(database, "train_funnel"), log.read_text)
    done = finished(command, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def _knows(database: Path, dag_id: str) -> bool:
    """Whether a DAG is in the metadata database, ready to be run."""
    with closing(sqlite3.connect(database)) as connection:
        return bool(connection.execute("SELECT 1 FROM serialized_dag WHERE dag_id = ?", [dag_id]).fetchall())


def _finished_run(database: Path, log: Path) -> dict[str, str]:
    """Wait for the only DAG run to end and return its tasks' states."""

    def states() -> dict[str, str]:
        with closing(sqlite3.connect(database)) as connection:
            ((state,),) = connection.execute("SELECT state FROM dag_run").fetchall()
            tasks = dict(connection.execute("SELECT task_id, state FROM task_instance").fetchall())
        return tasks if state in ("success", "failed") else {}

    return dict(wait_for("the run to end", states, log.read_text, every=1.0))


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "SLUICE"))}


@contextmanager
def _started(target: Target, venv: Path, folder: Path, changes: dict[str, str]) -> Iterator[Path]:
    """Run a target's exact command in its environment, with what cannot be the same outside changed."""
    environment = _clean_environment() | target.environment | changes
    environment["PATH"] = os.pathsep.join([str(venv / "bin"), os.defpath])
    command = [str(venv / "bin" / target.command[0]), *target.command[1:]]
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            yield log
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started: they are a session of their own."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)


def _wait(url: str, log: Path, accept: Any) -> None:
    def accepted() -> bool:
        try:
            return bool(accept(_get(url)))
        except OSError:
            return False

    wait_for(f"{url} to answer", accepted, log.read_text, every=0.5)


def _airflow_is_healthy(answer: Any) -> bool:
    parts = ("metadatabase", "scheduler", "dag_processor")
    return bool(answer) and all(answer[part]["status"] == "healthy" for part in parts)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
