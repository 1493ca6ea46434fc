"""One small world, run through every step once, for all end-to-end tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stages import pipeline
from stages.contracts.results import StageResult
from stages.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "world": {"n_users": 300, "n_items": 400, "n_events": 40_000, "days": 20, "n_topics": 8, "n_categories": 4},
    "funnel": {"candidate_k": 100, "light_k": 40, "max_k": 20, "objective": {"click": 1.0, "like": 0.1}},
    "candidate": {"dimension": 16, "category_dimension": 8, "hidden": [32], "epochs": 8, "batch_size": 256},
    "light_ranker": {"max_rounds": 60, "threads": 1},
    "heavy_ranker": {"max_epochs": 4, "threads": 1, "ensemble": 1},
    "evaluation": {"bootstrap_samples": 200},
}


@dataclass(frozen=True)
class Job:
    """A finished run: its settings, the environment that leads to them, and every step's result."""

    settings: Settings
    environ: dict[str, str]
    results: dict[str, StageResult]

    @property
    def release(self) -> Path:
        """The assembled release."""
        return self.results["assemble"].directory / "release"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment whose home is ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "AIRFLOW"))}
    return {**kept, "SLUICE_HOME": str(home), "SLUICE_CONFIGS": str(ROOT / "configs"), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small world's run, promoted."""
    environ = environment(tmp_path_factory.mktemp("job") / "home")
    settings = load_settings(environ, overrides=TINY)
    return Job(settings, environ, pipeline.run_all(settings))


@contextmanager
def running_server(environ: dict[str, str], *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start ``sluice serve`` as users do, wait until it is ready, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(
        command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    base = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _ready(base, process))
        yield base, process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until a condition holds; fail if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened within {seconds} s"
        time.sleep(0.1)


def _ready(base: str, process: subprocess.Popen[str]) -> bool:
    if process.poll() is not None:
        raise AssertionError(f"the server stopped: {process.stdout.read() if process.stdout else ''}")
    try:
        return httpx.get(f"{base}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def start_server() -> Callable[..., Any]:
    """Return ``running_server``: ``with start_server(environ, *arguments) as (base, process)``."""
    return running_server


@pytest.fixture(scope="session")
def second_release(job: Job) -> int:
    """Version of another release of the same funnel, registered but not promoted."""
    overrides = {**TINY, "funnel": {**TINY["funnel"], "light_k": 30}}
    settings = load_settings(job.environ, overrides=overrides, promote=False)
    return int(pipeline.run_all(settings)["register"].info["version"])
