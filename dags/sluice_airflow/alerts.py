"""What a task does for its run's failure alert; ``sluice_airflow.monitor`` sends the alert itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from sluice_airflow.message import error_words

log = logging.getLogger(__name__)

ERROR_KEY = "sluice_error"
"""XCom of a failed task: the text of its error and the number of the try."""


def record_error(context: Mapping[str, Any]) -> None:
    """Keep the text of a task's final error for the alert: Airflow's ``on_failure_callback`` of every task.

    Airflow 3 keeps no exception in its database, so the text is stored as an XCom, short and without secrets. Nothing
    is sent here: a process that is killed never gets here, and its run is reported all the same.

    Args:
        context: Airflow's task context; ``exception`` is missing where Airflow calls from outside the task.
    """
    error = context.get("exception")
    if not isinstance(error, BaseException):
        return
    instance = context["task_instance"]
    instance.xcom_push(key=ERROR_KEY, value={"try": instance.try_number, "error": error_words(error)})


@cache
def warn_without_plugin() -> None:
    """Warn in the task's log that no alert will be sent, where the plugin is not installed."""
    if not any(entry.name == "sluice" for entry in entry_points(group="airflow.plugins")):
        log.warning(
            "The Airflow plugin 'sluice' is not installed here: if this run fails, no alert is sent. "
            "Install the package sluice (its wheel, or `make install`) wherever Airflow's scheduler runs."
        )
