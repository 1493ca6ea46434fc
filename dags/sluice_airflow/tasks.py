"""How a pipeline step becomes an Airflow task: imported late, retried only where a retry can help."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, task

from sluice_airflow.alerts import alert_on_failure

RETRY_DELAY = timedelta(seconds=float(os.environ.get("SLUICE_RETRY_DELAY_SECONDS") or 30))

DEFAULT_ARGS: dict[str, Any] = {
    "retries": 2,
    "retry_delay": RETRY_DELAY,
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=6),
    # A broken dataset stays broken: of our errors only the transient ones are tried again. Whatever
    # is not ours (a lost connection, a full disk, a time-out) takes Airflow's ordinary retries.
    "retry_policy": ExceptionRetryPolicy(
        [
            RetryRule("stages.contracts.errors.TransientError", RetryAction.DEFAULT),
            RetryRule("stages.contracts.errors.SluiceError", RetryAction.FAIL, reason="no retry can mend this"),
        ]
    ),
    "on_failure_callback": alert_on_failure,
}
"""Arguments of every task."""


@task
def pipeline_step(step: str, upstream: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one step of the funnel with the DAG run's parameters.

    Args:
        step: one of ``stages.pipeline.STEPS``.
        upstream: results of the steps that it takes, by name; Airflow resolves them from XCom.
        params: filled in by Airflow: the keyword arguments of ``load_settings``.

    Returns:
        The step's ``StageResult`` as small JSON, the XCom.
    """
    from stages.pipeline import run_pipeline_step
    from stages.settings import load_settings

    return run_pipeline_step(step, load_settings(os.environ, **(params or {})), upstream)


@task
def refresh_step(step: str, upstream: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one step of the refresh: as ``pipeline_step``, with ``step`` one of ``stages.refresh.STEPS``."""
    from stages.refresh import run_refresh_step
    from stages.settings import load_settings

    return run_refresh_step(step, load_settings(os.environ, needs_recipe=False, **(params or {})), upstream)
