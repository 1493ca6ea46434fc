"""How a pipeline step becomes an Airflow task: imported late, retried only where a retry can help, without secrets."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, task
from airflow.sdk.log import mask_secret

from sluice_airflow.alerts import record_error, warn_without_plugin
from sluice_airflow.params import PARAMS, REFRESH_PARAMS, checked

if TYPE_CHECKING:
    from stages.settings import Settings

RETRY_DELAY = timedelta(seconds=float(os.environ.get("SLUICE_RETRY_DELAY_SECONDS") or 30))

DEFAULT_ARGS: dict[str, Any] = {
    "retries": 2,
    "retry_delay": RETRY_DELAY,
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=6),
    # A broken dataset stays broken: of our errors only the transient ones (a lost connection, a full disk)
    # are tried again. Whatever is not ours (a time-out) takes Airflow's ordinary retries.
    "retry_policy": ExceptionRetryPolicy(
        [
            RetryRule("stages.contracts.errors.TransientError", RetryAction.DEFAULT),
            RetryRule(
                ["stages.contracts.errors.SluiceError", "airflow.sdk.exceptions.ParamValidationError"],
                RetryAction.FAIL,
                reason="no retry can mend this",
            ),
        ]
    ),
    "on_failure_callback": record_error,
}
"""Arguments of every task."""


@task
def pipeline_step(step: str, upstream: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one step of the funnel with the DAG run's parameters.

    Args:
        step: one of ``stages.pipeline.STEPS``.
        upstream: results of the step's inputs, by name; Airflow resolves them from XCom.
        params: filled in by Airflow: the keyword arguments of ``load_settings``.

    Returns:
        The step's ``StageResult`` as small JSON, the XCom.

    Raises:
        ConfigError: if a parameter or an override is not allowed, before anything is done.
    """
    from stages.pipeline import run_pipeline_step

    warn_without_plugin()
    with _no_secrets():
        return run_pipeline_step(step, _settings(params, PARAMS), upstream)


@task
def refresh_step(step: str, upstream: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one step of the refresh: as ``pipeline_step``, with ``step`` one of ``stages.refresh.STEPS``."""
    from stages.refresh import run_refresh_step

    warn_without_plugin()
    with _no_secrets():
        return run_refresh_step(step, _settings(params, REFRESH_PARAMS, needs_recipe=False), upstream)


def _settings(params: dict[str, Any] | None, known: Collection[str], needs_recipe: bool = True) -> Settings:
    from stages.settings import load_settings

    return load_settings(os.environ, needs_recipe=needs_recipe, **checked(params or {}, known))


@contextmanager
def _no_secrets() -> Iterator[None]:
    """Keep passwords out of the task's log, and out of the error that Airflow logs and its callbacks get.

    Airflow masks the secrets of its connections; ours are in addresses in the environment.
    """
    from stages.contracts.redacted_errors import raise_redacted, redact_logs
    from stages.contracts.redaction import environment_secrets

    redact_logs()
    for secret in environment_secrets():
        mask_secret(secret)
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised again
        raise_redacted(error)
