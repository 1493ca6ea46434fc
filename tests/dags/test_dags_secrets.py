"""A password in the environment's addresses does not reach a task's log or the alert's error."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Airflow, Slack

SECRET = "hunter22"


@pytest.fixture
def closed() -> int:
    """A port where nobody answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_mlflow_that_refuses(airflow: Airflow, slack: Slack, closed: int) -> None:
    run = airflow.test(
        "refresh_index",
        {"config": "configs/demo.yaml"},
        AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT=slack.connection,
        SLUICE_MLFLOW_URI=f"http://bob:p@{SECRET}@127.0.0.1:{closed}",
        SLUICE_WAREHOUSE_URL=f"postgresql://bob:{SECRET}@127.0.0.1:{closed}/x",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert run.code == 1
    assert (run.tasks["champion"], run.tasks["ingest"]) == (("failed", 3), ("failed", 3)), "both may pass"
    assert "TransientError: MLflow could not" in run.output
    assert "TransientError: warehouse postgresql+psycopg2://bob:***@127.0.0.1" in run.output
    assert SECRET not in run.output
    assert slack.accepted and SECRET not in "".join(slack.accepted)
    for path in (path for path in Path(airflow.home).rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
