"""One Slack message a failed DAG run, sent where an Airflow connection is configured."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "slack_webhook_default"
SEND_SECONDS = 10
ERROR_LENGTH = 1500
"""Characters of an error that a message carries; Slack cuts a text off at a few thousand."""

_RUN_OPTIONS = {"data": "--data", "mapping": "--mapping", "config": "--config", "as_of": "--as-of"}


def alert_on_failure(context: Mapping[str, Any]) -> None:
    """Tell Slack that a task has failed for good: Airflow's ``on_failure_callback`` of every task.

    The first failed task of a run claims ``<home>/alerts/<run>.txt`` and sends; the others find it
    claimed. Without a connection one line is logged. What goes wrong while sending is raised, for
    Airflow logs a callback's error beside the task's own, and the claim is given back, so that the
    next failure of the run tries again.

    Args:
        context: Airflow's task context; ``exception`` is missing if the task's process died.

    Raises:
        AirflowException: if Slack does not accept the message.
        OSError: if Slack or the home cannot be reached.
    """
    connection = os.environ.get("SLUICE_SLACK_CONN_ID") or DEFAULT_CONNECTION
    if not _is_configured(connection):
        log.info("No Airflow connection %s: no failure alert is sent", connection)
        return
    marker = _marker(context)
    marker.parent.mkdir(parents=True, exist_ok=True)
    text = failure_message(context)
    try:
        with marker.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        log.info("The failure of this run has been reported: %s", marker)
        return
    try:
        _send(connection, text)
    except BaseException:
        marker.unlink(missing_ok=True)
        raise


def failure_message(context: Mapping[str, Any]) -> str:
    """Return the message: run, failed step, error with its numbers, and how to run it again."""
    run, instance = context["dag_run"], context["task_instance"]
    error = context.get("exception")
    reason = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error or "no exception")
    params = {name: value for name, value in (context.get("params") or {}).items() if value is not None}
    return "\n".join(
        [
            f":rotating_light: *{_escape(run.dag_id)}* failed in step *{_escape(instance.task_id)}*",
            f"run: `{_escape(run.run_id)}`, try {instance.try_number}",
            f"```{_escape(_shorten(reason))}```",
            "run it again; steps that had finished are re-used:",
            f"```{_escape(_trigger_command(run.dag_id, params))}\n{_escape(_sluice_command(params))}```",
        ]
    )


def _is_configured(connection: str) -> bool:
    try:
        BaseHook.get_connection(connection)
    except AirflowNotFoundException:
        return False
    return True


def _marker(context: Mapping[str, Any]) -> Path:
    run = context["dag_run"]
    # A run that a person has cleared fails anew, and that is worth a new message.
    name = f"{run.dag_id}.{run.run_id}.{getattr(run, 'clear_number', None) or 0}.txt"
    return Path(os.environ.get("SLUICE_HOME") or "var").resolve() / "alerts" / quote(name, safe="")


def _send(connection: str, text: str) -> None:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    hook = SlackWebhookHook(slack_webhook_conn_id=connection, timeout=SEND_SECONDS)
    hook.send(text=text, unfurl_links=False, unfurl_media=False)


def _trigger_command(dag_id: str, params: Mapping[str, Any]) -> str:
    return shlex.join(["airflow", "dags", "trigger", dag_id, "--conf", json.dumps(params, sort_keys=True)])


def _sluice_command(params: Mapping[str, Any]) -> str:
    words = ["sluice", "run"]
    for name, option in _RUN_OPTIONS.items():
        if name in params:
            words += [option, str(params[name])]
    if "n_processes" in params:
        words += ["--processes", str(params["n_processes"])]
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
