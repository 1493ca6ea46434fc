"""The commands that a failure alert prints: they work from any folder, and they show no secret."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stages.contracts.redaction import redacted
from stages.settings import SYNTHETIC, WAREHOUSE

TRAINING_OPTIONS = {"n_processes": "--processes", "warm_start": "--warm-start"}
RUN_OPTIONS = {"data": "--data", "mapping": "--mapping", "config": "--config", "as_of": "--as-of"}
PATHS = ("mapping", "config", "warm_start")
"""Parameters that are paths; ``data`` may be a word too."""

PATHS_IN_OVERRIDES = ("dataset.base", "candidate.warm_start.path")
ADDRESSES = ("SLUICE_WAREHOUSE_URL", "SLUICE_MLFLOW_URI")
"""Variables that may hold a password."""

_PLAIN_KEY = re.compile(r"[\w-]+")


def _program() -> str:
    beside = Path(sys.executable).parent / "sluice"
    return str(beside) if beside.is_file() else "sluice"


@dataclass(frozen=True)
class Surroundings:
    """What a command needs besides the run's parameters.

    Attributes:
        environ: of the scheduler; its workers have the same one.
        folder: that relative paths start from.
        program: the command ``sluice``.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: str = field(default_factory=os.getcwd)
    program: str = field(default_factory=_program)

    def absolute(self, path: str) -> str:
        """Return the absolute path, with links left as they are."""
        return os.path.abspath(os.path.join(self.folder, path))  # noqa: PTH100, PTH118

    @property
    def prefix(self) -> str:
        """What stands before each command, such as ``docker compose exec airflow-scheduler``."""
        return self.environ.get("SLUICE_COMMAND_PREFIX", "").strip()


def trigger_command(dag_id: str, params: Mapping[str, Any], around: Surroundings) -> str:
    """Return the command that starts a run with these parameters in this Airflow."""
    words = shlex.join(["airflow", "dags", "trigger", dag_id, "--conf", json.dumps(params, sort_keys=True)])
    return f"{around.prefix} {words}".strip()


def sluice_command(dag_id: str, params: Mapping[str, Any], around: Surroundings) -> str:
    """Return the command that does the same without Airflow.

    Paths are absolute and the variables that lead to the home come first. Where a prefix is set the command runs
    inside the deployment, which has the variables.
    """
    params = _with_defaults(params, around)
    refresh = dag_id == "refresh_index"
    words = [around.program, "refresh" if refresh else "run"]
    for name, option in (RUN_OPTIONS if refresh else RUN_OPTIONS | TRAINING_OPTIONS).items():
        if params.get(name) is not None:
            words += [option, str(params[name])]
    for key, value in sorted(_flatten(params.get("overrides") or {}).items()):
        path = key in PATHS_IN_OVERRIDES and isinstance(value, str)
        words += ["--set", f"{key}={_yaml(around.absolute(value) if path else value)}"]
    if params.get("promote") is False:
        words.append("--no-promote")
    if around.prefix:
        return f"{around.prefix} {shlex.join(words)}"
    return " ".join([*_assignments(params, around), shlex.join(words)])


def hidden_addresses(around: Surroundings) -> list[str]:
    """Return ``NAME is ADDRESS`` of each variable that the reader has to set, with the password masked."""
    if around.prefix:
        return []
    return [
        f"{name} is {redacted(value)}"
        for name in ADDRESSES
        if (value := around.environ.get(name)) and value != redacted(value)
    ]


def _with_defaults(params: Mapping[str, Any], around: Surroundings) -> dict[str, Any]:
    """Return the parameters with what the environment adds, and every path absolute."""
    full = dict(params)
    for name, variable in (("data", "SLUICE_DATA"), ("config", "SLUICE_CONFIG")):
        full[name] = full.get(name) or around.environ.get(variable) or None
    for name in PATHS:
        if full.get(name):
            full[name] = around.absolute(str(full[name]))
    if full["data"] and full["data"] not in (WAREHOUSE, SYNTHETIC):
        full["data"] = around.absolute(str(full["data"]))
    return full


def _assignments(params: Mapping[str, Any], around: Surroundings) -> list[str]:
    environ = around.environ
    values = {"SLUICE_HOME": around.absolute(environ.get("SLUICE_HOME") or "var")}
    if not params.get("config") and environ.get("SLUICE_CONFIGS"):
        values["SLUICE_CONFIGS"] = around.absolute(environ["SLUICE_CONFIGS"])
    if environ.get("SLUICE_MODEL_NAME"):
        values["SLUICE_MODEL_NAME"] = environ["SLUICE_MODEL_NAME"]
    found = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    for name in ADDRESSES:
        if value := environ.get(name):
            secret = value != redacted(value)
            # If it is unset, the shell stops with this message; going on with an empty warehouse would be worse.
            found.append(f'{name}="${{{name}:?set it first}}"' if secret else f"{name}={shlex.quote(value)}")
    return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key; a section with a key that holds a dot or the like stays whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value and all(_PLAIN_KEY.fullmatch(str(key)) for key in value)
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _yaml(value: Any) -> str:
    """Return a value as YAML in one line, since ``--set`` reads YAML: a plain ``1e-05`` would be a string."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return text.strip()[1:-1]
