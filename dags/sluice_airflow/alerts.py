"""One Slack message a failed DAG run, sent where an Airflow connection is configured."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from sluice_airflow.message import failure_message

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "slack_webhook_default"
SEND_SECONDS = 10


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


def _is_configured(connection: str) -> bool:
    try:
        BaseHook.get_connection(connection)
    except AirflowNotFoundException:
        return False
    return True


def _marker(context: Mapping[str, Any]) -> Path:
    instance = context["task_instance"]
    # A run that a person has cleared fails anew, and that is worth a new message.
    cleared = getattr(context.get("dag_run"), "clear_number", None) or 0
    name = f"{instance.dag_id}.{instance.run_id}.{cleared}.txt"
    return Path(os.environ.get("SLUICE_HOME") or "var").resolve() / "alerts" / quote(name, safe="")


def _send(connection: str, text: str) -> None:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    hook = SlackWebhookHook(slack_webhook_conn_id=connection, timeout=SEND_SECONDS)
    hook.send(text=text, unfurl_links=False, unfurl_media=False)
