"""The demo as people run it: a real Airflow DAG run, interrupted, run again, and run once more."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.time_limits import finished, left

ROOT = Path(__file__).resolve().parents[2]
AUDIT = """
import gc, os, sys

gc.set_threshold(100_000, 50, 50)  # as tests/started/sitecustomize.py, in whose place this is

def _audit(event, args):
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
    elif event == "socket.getaddrinfo":
        address = args[:1]
    else:
        return
    if isinstance(address, tuple):
        with open(os.environ["AUDIT_LOG"], "a") as stream:
            print(repr(address[0]), " ".join(sys.argv[:3]), file=stream)

sys.addaudithook(_audit)
"""
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The demo's command on a small recipe."""
    tiny = {
        **yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text()),
        "world": {"n_users": 200, "n_items": 200, "n_events": 20_000, "days": 20, "n_topics": 8, "n_categories": 4},
        "funnel": {"candidate_k": 60, "light_k": 20, "max_k": 10, "objective": {"click": 1.0}},
        "candidate": {"model": {"dimension": 16, "hidden": [16]}, "training": {"epochs": 6, "batch_size": 256}},
        "light_ranker": {"max_rounds": 40},
        "heavy_ranker": {"max_epochs": 3, "ensemble": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    return [sys.executable, "-m", "cli", "demo", "--config", str(tmp_path / "tiny.yaml")]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home of its own, and an audit of every address that any of the processes asks for."""
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "sitecustomize.py").write_text(AUDIT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "AIRFLOW"))}
    return {
        **kept,
        "SLUICE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path / "audit"),
        "AUDIT_LOG": str(tmp_path / "audit.log"),
        "OMP_NUM_THREADS": "1",
    }


def _interrupt_at(marker: str, command: list[str], environ: dict[str, str]) -> None:
    with subprocess.Popen(
        command,
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        late = threading.Timer(left(), os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if marker in line:
                break
        late.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert lines and marker in lines[-1], "".join(lines[-50:])


def _finish(command: list[str], environ: dict[str, str]) -> str:
    done = finished(command, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_an_interrupted_demo_finishes_when_run_again_and_calls_nobody(
    command: list[str], environ: dict[str, str], tmp_path: Path
) -> None:
    _interrupt_at("train_candidate: started", command, environ)
    home = tmp_path / "home" / "demo-world"
    assert not list((home / "runs").glob("train_candidate/[0-9a-f]*"))

    shown = _finish(command, environ)
    for words in (
        "popularity",
        "candidates",
        "heavy",
        "A heavy user",
        "A light user",
        "An unknown user",
        "path popular",
        "The very next answer for",
        "items are new",
        "curl 'http://",
        "make mlflow",
        "make airflow",
        "?workflowType=machine_learning",
    ):
        assert words in shown
    assert "dataset: re-used" in shown
    assert "train_candidate: done" in shown

    again = _finish(command, environ)
    for step in (
        "dataset",
        "train_candidate",
        "build_index",
        "retrieve",
        "build_examples",
        "train_light",
        "train_heavy",
        "rank_held_out",
        "rank_baselines",
    ):
        assert f"{step}: re-used" in again

    with sqlite3.connect(home / "airflow" / "airflow.db") as database:
        states = [state for (state,) in database.execute("SELECT state FROM dag_run ORDER BY id")]
        tasks = database.execute("SELECT count(*) FROM task_instance WHERE state = 'success'").fetchone()[0]
    database.close()
    assert states[-2:] == ["success", "success"]
    assert tasks >= 24

    asked = (tmp_path / "audit.log").read_text().splitlines()
    assert asked, "the audit hook saw no call at all, not even the demo's own to its server"
    own = {repr(name) for name in (*LOCAL, os.uname().nodename)}
    assert [line for line in asked if line.split(" ", 1)[0] not in own] == []
