"""A server as users start it, and a second release to promote."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stages import pipeline
from stages.settings import load_settings
from tests.time_limits import wait_for

ROOT = Path(__file__).resolve().parents[2]


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
        wait_for("the server to be ready", lambda: _ready(base, process))
        yield base, process
    finally:
        process.terminate()
        process.communicate(timeout=30)


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
def second_release(job: Any, tiny: dict[str, Any]) -> int:
    """Version of another release of the same funnel, registered but not promoted."""
    overrides = {**tiny, "funnel": {**tiny["funnel"], "light_k": 30}}
    settings = load_settings(job.environ, data="synthetic", overrides=overrides, promote=False)
    return int(pipeline.run_all(settings)["register"].info["version"])
