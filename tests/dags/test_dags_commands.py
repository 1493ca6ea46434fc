"""The commands that an alert prints do what the failed run did, from any folder."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.run import parse_overrides
from tests.homes import copy_of
from tests.time_limits import finished

sys.path.append(str(Path(__file__).resolve().parents[2] / "dags"))

from sluice_airflow.commands import Surroundings, sluice_command, trigger_command

AROUND = Surroundings({"SLUICE_HOME": "var/home", "SLUICE_CONFIGS": "configs"}, "/srv/sluice", "/opt/bin/sluice")


def test_the_commands_repeat_the_runs_parameters() -> None:
    params = {
        "data": "my data/ml-100k",
        "as_of": "2026-01-01T00:00:00Z",
        "n_processes": 2,
        "warm_start": "runs/train_candidate/0123",
        "overrides": {
            "candidate": {"name": "it's", "warm_start": {"path": "runs/train_candidate/9"}},
            "dataset": {"base": "runs/dataset/1"},
        },
        "promote": False,
    }
    trigger = shlex.split(trigger_command("train_funnel", params, AROUND))
    assert trigger[:4] == ["airflow", "dags", "trigger", "train_funnel"]
    assert json.loads(trigger[5]) == params
    home, configs, program, *run = shlex.split(sluice_command("train_funnel", params, AROUND))
    assert home == "SLUICE_HOME=/srv/sluice/var/home" and configs == "SLUICE_CONFIGS=/srv/sluice/configs"
    assert program == "/opt/bin/sluice"
    assert run[:3] == ["run", "--data", "/srv/sluice/my data/ml-100k"]
    assert run[3:7] == ["--as-of", params["as_of"], "--processes", "2"]
    assert run[7:9] == ["--warm-start", "/srv/sluice/runs/train_candidate/0123"]
    assert run[9:13:2] == ["--set", "--set"]
    assert parse_overrides((run[10], run[12], run[14])) == {
        "candidate": {"name": "it's", "warm_start": {"path": "/srv/sluice/runs/train_candidate/9"}},
        "dataset": {"base": "/srv/sluice/runs/dataset/1"},
    }
    assert run[15:] == ["--no-promote"]


def test_a_failed_refresh_is_repeated_by_a_refresh_with_options_that_it_has() -> None:
    """The command of the main job would train."""
    params = {"data": "clicks.csv", "n_processes": 2, "warm_start": "x"}
    assert "airflow dags trigger refresh_index" in trigger_command("refresh_index", params, AROUND)
    words = shlex.split(sluice_command("refresh_index", params, AROUND))
    assert words[2:] == ["/opt/bin/sluice", "refresh", "--data", "/srv/sluice/clicks.csv"]


def test_what_the_environment_says_is_part_of_the_command() -> None:
    environ = {"SLUICE_CONFIG": "recipes/a.yaml", "SLUICE_DATA": "warehouse", "SLUICE_MODEL_NAME": "news"}
    words = shlex.split(sluice_command("train_funnel", {}, Surroundings(environ, "/srv", "sluice")))
    assert words == [
        "SLUICE_HOME=/srv/var",
        "SLUICE_MODEL_NAME=news",
        *("sluice", "run", "--data", "warehouse", "--config", "/srv/recipes/a.yaml"),
    ]
    prefixed = Surroundings({**environ, "SLUICE_COMMAND_PREFIX": "docker compose exec w"}, "/srv", "sluice")
    assert sluice_command("train_funnel", {}, prefixed).startswith("docker compose exec w sluice run --data warehouse")
    assert trigger_command("train_funnel", {}, prefixed).startswith("docker compose exec w airflow dags trigger")


def test_without_a_folder_of_recipes_the_program_takes_its_own() -> None:
    around = Surroundings({"SLUICE_HOME": "var/home"}, "/srv/sluice", "sluice")
    command = sluice_command("train_funnel", {"data": "synthetic"}, around)
    assert command == "SLUICE_HOME=/srv/sluice/var/home sluice run --data synthetic"


def test_an_address_with_a_password_is_left_to_the_reader_and_its_want_stops_the_command(tmp_path: Path) -> None:
    program = tmp_path / "sluice"
    program.write_text('#!/bin/sh\necho "$SLUICE_WAREHOUSE_URL $SLUICE_MLFLOW_URI"\n', encoding="utf-8")
    program.chmod(0o755)
    environ = {"SLUICE_WAREHOUSE_URL": "postgresql://u:hush@h/d", "SLUICE_MLFLOW_URI": "http://mlflow:5000"}
    command = sluice_command("train_funnel", {}, Surroundings(environ, "/srv", str(program)))
    assert "hush" not in command
    unset = _in_shell(command, tmp_path)
    assert unset.returncode != 0 and "SLUICE_WAREHOUSE_URL: set it first" in unset.stderr
    assert _in_shell(command, tmp_path, SLUICE_WAREHOUSE_URL="x").stdout.split() == ["x", "http://mlflow:5000"]


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_VALUES = st.recursive(_SCALARS, lambda of: st.lists(of) | st.dictionaries(st.text(min_size=1), of), max_leaves=8)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), _VALUES))
def test_any_overrides_come_back_as_they_were(overrides: dict[str, Any]) -> None:
    words = shlex.split(sluice_command("train_funnel", {"overrides": overrides}, AROUND))
    pairs = tuple(words[place + 1] for place, word in enumerate(words) if word == "--set")
    assert parse_overrides(pairs) == overrides


@pytest.mark.slow
def test_the_printed_command_resumes_from_another_folder(job: Any, tmp_path: Path) -> None:
    """In a bare environment it finds the recipe, the home and every finished step."""
    home = tmp_path / "home"
    copy_of(Path(job.settings.home), home)
    before = _steps(home)
    around = Surroundings({"SLUICE_HOME": "home", "SLUICE_CONFIGS": job.environ["SLUICE_CONFIGS"]}, str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = _in_shell(
        sluice_command("train_funnel", {"data": "synthetic", "overrides": job.settings.recipe}, around), elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert "release " in done.stdout
    assert list(elsewhere.iterdir()) == [], "nothing new was opened here"
    assert _steps(home) == before, "nothing was done again"


def _steps(home: Path) -> set[Path]:
    return {path.relative_to(home) for path in (home / "runs").glob("*/*") if path.is_dir()}


def _in_shell(command: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", **environ}
    return finished(command, shell=True, cwd=folder, env=environ)
