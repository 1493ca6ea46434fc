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
@pytest.mark.parametrize(
    ("dag", "step", "params", "words"),
    [
        ("refresh_index", "champion", {"config": "configs/demo.yaml"}, "MLflow could not"),
        ("train_funnel", "ingest", {"data": "synthetic"}, "warehouse postgresql+psycopg2://bob:***@127.0.0.1"),
    ],
)
def test_a_server_that_refuses_shows_no_password(
    airflow: Airflow, slack: Slack, closed: int, dag: str, step: str, params: dict[str, str], words: str
) -> None:
    run = airflow.test(
        dag,
        params,
        SLUICE_MLFLOW_URI=f"http://bob:p@{SECRET}@127.0.0.1:{closed}",
        SLUICE_WAREHOUSE_URL=f"postgresql://bob:{SECRET}@127.0.0.1:{closed}/x",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert run.code == 1
    assert run.tasks[step] == ("failed", 3), "it may pass"
    assert f"TransientError: {words}" in run.output
    assert SECRET not in run.output
    airflow.monitor(AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT=slack.connection)
    assert slack.accepted and SECRET not in "".join(slack.accepted)
    for path in (path for path in Path(airflow.home).rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
