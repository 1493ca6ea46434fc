"""A failed run sends one message over real HTTP; transient faults are retried, permanent ones are not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Airflow, Slack

TRIAL = '''
"""A DAG with a fault that passes and three that do not, built from the shared helpers."""

from pathlib import Path

from airflow.sdk import DAG, task
from sluice_airflow.tasks import DEFAULT_ARGS

with DAG("trial", schedule=None, default_args=DEFAULT_ARGS):

    @task
    def flaky():
        from stages.contracts.errors import TransientError

        marker = Path(__file__).with_suffix(".tried")
        if not marker.exists():
            marker.touch()
            raise TransientError("the warehouse refused the connection, 1 of 3 tries")

    @task
    def broken(rows):
        from stages.contracts.errors import EmptyDatasetError

        raise EmptyDatasetError(f"dataset.min_events = 5 removed all {rows} users")

    first = flaky()
    for number in (1, 2, 3):
        first >> broken.override(task_id=f"broken_{number}")(number)
'''


def test_a_failed_run_sends_one_message_that_says_how_to_go_on(airflow: Airflow, slack: Slack, tmp_path: Path) -> None:
    missing = str(tmp_path / "ml-<none>")
    run = airflow.test(
        "train_funnel",
        {"data": missing, "config": "configs/movielens.yaml", "promote": False},
        AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT=slack.connection,
    )
    assert run.code == 1
    assert run.tasks["ingest"] == ("failed", 1), "a broken dataset is not retried"
    assert {state for name, (state, _) in run.tasks.items() if name != "ingest"} == {"upstream_failed"}
    assert [path for path, _, _ in slack.received] == ["/services/T0/B0/secret"]
    (text,) = slack.accepted
    escaped = missing.replace("<", "&lt;").replace(">", "&gt;")
    assert "*train_funnel* failed in step *ingest*" in text
    assert f"run: `{run.run_id}`, try 1" in text
    assert "DataError: " in text
    assert escaped in text.splitlines()[2]
    conf = json.dumps({"config": "configs/movielens.yaml", "data": escaped, "promote": False})
    assert f"airflow dags trigger train_funnel --conf '{conf}'" in text
    assert f"sluice run --data '{escaped}' --config configs/movielens.yaml --no-promote" in text


def test_retries_and_one_message_although_slack_fails_first(airflow: Airflow, slack: Slack, tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "trial.py").write_text(TRIAL, encoding="utf-8")
    slack.answers = [500]
    run = airflow.test(
        "trial",
        {},
        dags,
        AIRFLOW_CONN_PAGER=slack.connection,
        SLUICE_SLACK_CONN_ID="pager",
        PYTHONPATH=str(Path(__file__).resolve().parents[2] / "dags"),
    )
    assert run.code == 1
    assert run.tasks.pop("flaky") == ("success", 2), "a transient fault is tried again"
    assert run.tasks == {f"broken_{number}": ("failed", 1) for number in (1, 2, 3)}
    assert [status for _, _, status in slack.received] == [500, 200]
    assert "no_service" in run.output, "the alert that was not delivered is in the log"
    (text,) = slack.accepted
    # Which of the three that failed at once is told of is Airflow's choice.
    assert re.search(r"EmptyDatasetError: dataset\.min_events = 5 removed all [123] users", text)
    (marker,) = (airflow.home / "sluice" / "alerts").iterdir()
    assert marker.read_text(encoding="utf-8") == text


def test_without_a_connection_nothing_is_sent_and_nothing_breaks(airflow: Airflow, slack: Slack) -> None:
    run = airflow.test("train_funnel", {"config": "no-such-recipe.yaml"})
    assert run.code == 1
    assert run.tasks["ingest"] == ("failed", 1)
    assert "no-such-recipe.yaml" in run.output
    assert "No Airflow connection slack_webhook_default" in run.output
    assert slack.received == []
    assert not (airflow.home / "sluice" / "alerts").exists()
