"""No password in the environment's addresses reaches the command line's output."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.time_limits import finished

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter22"


def _run(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return finished(
        [sys.executable, "-m", "cli", "--verbose", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "started"), str(ROOT)]),
            "SLUICE_HOME": str(tmp_path / "home"),
            "SLUICE_CONFIGS": str(ROOT / "configs"),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            **environ,
        },
        cwd=tmp_path,
        stderr=subprocess.STDOUT,
    )


@pytest.fixture
def closed() -> int:
    """A port where nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("http://bob:hunter22@127.0.0.1:{port}", 5),
        ("http://bob:p@ss/hunter22@127.0.0.1:{port}", 5),
        ("postgresql+psycopg2://bob:hunter22@127.0.0.1:{port}/mlflow", 5),
        ("weird://bob:hunter22@127.0.0.1:{port}", 2),
    ],
)
def test_mlflows_password(tmp_path: Path, closed: int, address: str, code: int) -> None:
    done = _run(tmp_path, "release", "list", SLUICE_MLFLOW_URI=address.format(port=closed))
    assert done.returncode == code, done.stdout
    assert SECRET not in done.stdout
    assert sum(line.startswith("error: ") for line in done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://bob:hunter22@127.0.0.1:{port}/x",
        "postgresql://bob:p@hunter22@127.0.0.1:{port}/x",
        "postgresql://bob:p/hunter22@127.0.0.1:54x/y",
        "postgresql://127.0.0.1:{port}/x?user=bob&password=hunter22",
        "mysql://bob:hunter22@127.0.0.1/x",
        "bob:hunter22@127.0.0.1/x://",
        "duckdb://bob:hunter22@host",
    ],
)
def test_the_warehouses_password(tmp_path: Path, closed: int, address: str) -> None:
    done = _run(tmp_path, "ingest", "--data", "synthetic", SLUICE_WAREHOUSE_URL=address.format(port=closed))
    assert done.returncode in {2, 5}, done.stdout
    assert SECRET not in done.stdout
    assert "error: warehouse" in done.stdout


BROKEN = """
import click, sys
from cli.main import main, reports_errors

@main.command()
@reports_errors
def broken():
    raise RuntimeError("cannot use http://bob:hunter22@host") from OSError("hunter22 is wrong")

sys.argv = ["sluice", "broken"]
main()
"""


def test_an_unexpected_error_keeps_its_traceback_but_no_secret(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SLUICE_MLFLOW_URI": "http://bob:hunter22@host"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert SECRET not in done.stderr + done.stdout
    assert "RuntimeError: cannot use http://bob:***@host" in done.stderr
    assert "in broken" in done.stderr
