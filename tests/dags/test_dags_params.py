"""A run's parameters: the form's example works, and what is wrong is refused by the first task, once."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stages.run_recipe import load_recipe
from stages.settings import load_settings
from tests.time_limits import finished

if TYPE_CHECKING:
    from conftest import Airflow, Run

    Failed = Callable[..., tuple[Airflow, Run]]

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = """
import shlex, sys
from airflow.__main__ import main
for command in list(sys.argv[1:]):
    sys.argv[1:] = shlex.split(command)
    main()
"""
"""Gives commands to ``airflow`` one after another."""

READ_FORM = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("params", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.PARAMS["overrides"].description))
checks = json.loads(sys.argv[2])
for params in checks:
    try:
        print(json.dumps(sorted(module.checked(params, module.REFRESH_PARAMS))))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def _form(airflow: Airflow, *params: dict[str, object]) -> tuple[str, list[object]]:
    """Return the overrides' description, and what the check of the refresh's form says of each set of parameters."""
    done = finished(
        [sys.executable, "-c", READ_FORM, str(ROOT / "dags" / "sluice_airflow" / "params.py"), json.dumps(params)],
        env=airflow.environment() | {"PYTHONPATH": str(ROOT)},
        cwd=airflow.home,
    )
    assert done.returncode == 0, done.stderr
    text, *answers = map(json.loads, done.stdout.splitlines())
    return text, answers


def test_the_forms_example_works_as_it_stands(migrated: Airflow, tmp_path: Path) -> None:
    example = re.search(r"\{.*\}", _form(migrated)[0])
    assert example is not None
    environ = {"SLUICE_HOME": str(tmp_path), "SLUICE_CONFIGS": str(ROOT / "configs")}
    overrides = json.loads(example[0])
    assert overrides == {"candidate": {"model": {"dimension": 32}}}
    assert load_recipe(load_settings(environ, data="synthetic", overrides=overrides)).candidate.model.dimension == 32


def test_names_and_values_are_checked_against_the_form(migrated: Airflow) -> None:
    _, answers = _form(
        migrated,
        {"data": None, "promote": False, "overrides": {"index": {}}},
        {"dat": "x", "n_processes": 2},
        {"promote": "no"},
        {"overrides": [1]},
        {"data": 5},
    )
    known = "as_of, config, data, mapping, overrides, promote"
    assert answers == [
        ["data", "overrides", "promote"],
        f"ConfigError: params (--conf): dat, n_processes: unknown, allowed are {known}",
        "ConfigError: params (--conf): promote = 'no': allowed is boolean",
        "ConfigError: params (--conf): overrides = [1]: allowed is object or null",
        "ConfigError: params (--conf): data = 5: allowed is string or null",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conf", "words"),
    [
        (
            {"data": "synthetic", "overrides": {"candidate": {"model": {"dim": 32}}}},
            "overrides (--set): candidate.model.dim: unknown key, allowed are dimension",
        ),
        ({"dimension": 32}, "params (--conf): dimension: unknown, allowed are as_of, config, data"),
    ],
)
def test_a_wrong_parameter_fails_the_first_task_at_once(failed: Failed, conf: dict[str, object], words: str) -> None:
    _, run = failed("train_funnel", conf)
    assert run.code == 1
    assert run.tasks.pop("ingest") == ("failed", 1), "no retry can mend this"
    assert {state for state, _ in run.tasks.values()} == {"upstream_failed"}
    assert f"ConfigError: {words}" in run.output
    assert "demo.yaml:" not in run.output, "the recipe is not to blame"
    assert not Path(run.sluice_home).exists(), "nothing was done"


@pytest.mark.slow
def test_a_refresh_has_no_parameters_of_training(failed: Failed) -> None:
    _, run = failed("refresh_index", {"n_processes": 2})
    assert (run.tasks["champion"], run.tasks["ingest"]) == (("failed", 1), ("upstream_failed", 0))
    assert "params (--conf): n_processes: unknown, allowed are as_of" in run.output


@pytest.mark.slow
def test_the_printed_trigger_commands_start_runs_of_dags_that_are_not_paused(airflow: Airflow) -> None:
    printed = re.search(r"airflow (dags trigger train_funnel.*)", (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert printed is not None
    commands = ("dags reserialize", printed[1], "dags trigger refresh_index")
    done = finished([sys.executable, "-c", COMMANDS, *commands], env=airflow.environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(airflow.home / "airflow.db") as books:
        paused = dict(books.execute("select dag_id, is_paused from dag"))
        runs = sorted(books.execute("select dag_id, state from dag_run"))
    assert paused == {"refresh_index": 0, "train_funnel": 0}
    assert runs == [("refresh_index", "queued"), ("train_funnel", "queued")]


def test_the_command_that_the_compose_file_prints_names_data_and_a_recipe(tmp_path: Path) -> None:
    printed = re.search(r"airflow dags trigger train_funnel --conf '(.*)'", (ROOT / "compose.yaml").read_text("utf-8"))
    assert printed is not None
    environ = {"SLUICE_HOME": str(tmp_path), "SLUICE_CONFIGS": str(ROOT / "configs")}
    settings = load_settings(environ, **json.loads(printed[1]))
    assert settings.data == "synthetic" and load_recipe(settings).world.n_users > 0
