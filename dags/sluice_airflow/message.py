"""The words of a failure alert: plain text in, Slack's markup out; nothing here needs Airflow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

ERROR_LENGTH = 2400
"""Characters of an error that a message carries; Slack cuts a text off at a few thousand."""

_RUN_OPTIONS = {"data": "--data", "mapping": "--mapping", "config": "--config", "as_of": "--as-of"}
_VERBS = {"refresh_index": "refresh"}
"""Of the command that does the same without Airflow, by DAG; ``run`` for every other."""


def failure_message(context: Mapping[str, Any]) -> str:
    """Return the message: run, failed step, error with its numbers, and how to run it again."""
    instance = context["task_instance"]
    error = context.get("exception") or "no exception is known: the task's process may have been killed"
    reason = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    params = {name: value for name, value in (context.get("params") or {}).items() if value is not None}
    commands = _trigger_command(instance.dag_id, params), _sluice_command(instance.dag_id, params)
    return "\n".join(
        [
            f":rotating_light: *{_escape(instance.dag_id)}* failed in step *{_escape(instance.task_id)}*",
            f"run: `{_escape(instance.run_id)}`, try {instance.try_number}",
            f"```{_escape(_shorten(reason))}```",
            "run it again; steps that had finished are re-used:",
            "```" + "\n".join(map(_escape, commands)) + "```",
        ]
    )


def _trigger_command(dag_id: str, params: Mapping[str, Any]) -> str:
    return shlex.join(["airflow", "dags", "trigger", dag_id, "--conf", json.dumps(params, sort_keys=True)])


def _sluice_command(dag_id: str, params: Mapping[str, Any]) -> str:
    words = ["sluice", _VERBS.get(dag_id, "run")]
    for name, option in _RUN_OPTIONS.items():
        if name in params:
            words += [option, str(params[name])]
    if "n_processes" in params:
        words += ["--processes", str(params["n_processes"])]
    if "warm_start" in params:
        words += ["--warm-start", str(params["warm_start"])]
    for key, value in sorted(_flatten(params.get("overrides") or {}).items()):
        words += ["--set", f"{key}={json.dumps(value)}"]
    if params.get("promote") is False:
        words.append("--no-promote")
    return shlex.join(words)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shorten(text: str) -> str:
    """Cut the middle out: the numbers stand at the start, the cause of a long one at its end."""
    if len(text) <= ERROR_LENGTH:
        return text
    half = ERROR_LENGTH // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _escape(text: str) -> str:
    """Escape the three characters that Slack reads as markup, and what would close a code block."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")
