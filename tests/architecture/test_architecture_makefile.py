"""What the Makefile's recipes run, as make itself expands them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_PYTHON = '#!/bin/sh\nprintf "%s\\n" "$*" "$AIRFLOW__CORE__PARALLELISM" "$AIRFLOW__API__WORKERS"\n'
FAKE_SLUICE = '#!/bin/sh\nprintf "%s\\n" "sluice $*" "$SLUICE_MLFLOW_URI"\n'


def _make(target: str, tmp_path: Path, **environ: str) -> list[str]:
    """Return what a target prints where its programs only say how they were called."""
    bin_dir = tmp_path / "venv" / "bin"
    bin_dir.mkdir(parents=True, exist_ok=True)
    scripts = {"python": FAKE_PYTHON, "sluice": FAKE_SLUICE, "mlflow": '#!/bin/sh\necho "mlflow $*"\n'}
    for name, text in scripts.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    stamp = tmp_path / "venv" / ".installed-cpu"
    stamp.touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "SLUICE", "MAKE"))}
    command = ["make", "--silent", "-o", str(stamp), target, f"VENV={stamp.parent}", f"LATEST={tmp_path}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**kept, **environ}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_airflow_says_where_to_click_and_starts_no_more_workers_than_cores(tmp_path: Path) -> None:
    cores = subprocess.run(["getconf", "_NPROCESSORS_ONLN"], capture_output=True, text=True, check=True).stdout.strip()
    where, called, workers, api_workers = _make("airflow", tmp_path)
    assert "http://127.0.0.1:8081/dags/train_funnel" in where
    assert called == "-P -m sluice_airflow.standalone"
    assert (workers, api_workers) == (cores, "1")
    assert _make("airflow", tmp_path, AIRFLOW__CORE__PARALLELISM="7")[2] == "7", "whoever sets it means it"


def test_mlflow_prints_the_page_of_runs_before_its_server_starts(tmp_path: Path) -> None:
    _, page, uri, server = _make("mlflow", tmp_path)
    assert page == "sluice release page --server http://127.0.0.1:5000"
    assert uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert server.startswith("mlflow server")
    assert f"--backend-store-uri {uri}" in server


@pytest.mark.parametrize("target", ["install", "install-cuda"])
def test_an_installation_ends_with_compiling(tmp_path: Path, target: str) -> None:
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", target, f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    said, compiled, stamp = done.stdout.splitlines()[-3:]
    assert said == 'echo "compiling (once, about a minute)"'
    assert compiled == f"{tmp_path}/venv/bin/python -m stages.compile_ahead"
    assert stamp.startswith("touch "), "an installation that could not compile is not finished"
