"""Failed runs of a real Airflow and what is said of them; a run under a scheduler is in test_dags_scheduler.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Airflow, Run, Slack

    Failed = Callable[..., tuple[Airflow, Run]]

TRIAL = '''
"""A DAG with a fault that passes and three that do not, built from the shared helpers."""

from pathlib import Path

from airflow.sdk import DAG, task
from sluice_airflow.tasks import DEFAULT_ARGS

with DAG("trial", schedule=None, default_args=DEFAULT_ARGS, tags=["sluice"]):

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

        raise EmptyDatasetError(f"dataset.min_events = 5 removed all {rows} users of mysql://app:hush@db/x")

    first = flaky()
    for number in (1, 2, 3):
        first >> broken.override(task_id=f"broken_{number}")(number)
'''


def test_a_failed_run_is_told_once_with_the_commands_that_go_on(failed: Failed, slack: Slack) -> None:
    missing = "/nowhere/ml-<none>"
    airflow, run = failed("train_funnel", {"data": missing, "config": "configs/movielens.yaml", "promote": False})
    assert run.code == 1
    assert run.tasks["ingest"] == ("failed", 1), "a broken dataset is not retried"
    assert {state for name, (state, _) in run.tasks.items() if name != "ingest"} == {"upstream_failed"}
    assert not slack.received, "who runs `airflow dags test` sits in front of it"
    for _ in range(2):
        airflow.monitor(AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT=slack.connection)
    assert [path for path, _, _ in slack.received] == ["/services/T0/B0/secret"]
    (text,) = slack.of(run.run_id)
    escaped = missing.replace("<", "&lt;").replace(">", "&gt;")
    assert "*train_funnel* failed in step *ingest*" in text
    assert "*ingest*: try 1, host " in text
    assert "```DataError: " in text
    conf = json.dumps({"config": "configs/movielens.yaml", "data": escaped, "promote": False})
    assert f"airflow dags trigger train_funnel --conf '{conf}'" in text
    recipe = Path("configs/movielens.yaml").resolve()
    assert f"SLUICE_HOME={airflow.home / 'sluice'} " in text
    assert f"sluice run --data '{escaped}' --config {recipe} --no-promote" in text


def test_transient_faults_are_retried_and_steps_that_failed_together_share_a_message(
    airflow: Airflow, slack: Slack, tmp_path: Path
) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "trial.py").write_text(TRIAL, encoding="utf-8")
    run = airflow.test("trial", {}, dags)
    assert run.code == 1
    assert run.tasks.pop("flaky") == ("success", 2), "a transient fault is tried again"
    assert run.tasks == {f"broken_{number}": ("failed", 1) for number in (1, 2, 3)}
    airflow.monitor(dags, AIRFLOW_CONN_PAGER=slack.connection, SLUICE_SLACK_CONN_ID="pager")
    (text,) = slack.of(run.run_id)
    assert "*trial* failed in steps *broken_" in text
    for number in (1, 2, 3):
        assert f"*broken_{number}*: try 1" in text
        assert f"EmptyDatasetError: dataset.min_events = 5 removed all {number} users" in text
    assert "hush" not in text and "mysql://app:***@db/x" in text


def test_without_a_connection_one_line_is_logged_and_nothing_breaks(failed: Failed, slack: Slack) -> None:
    airflow, run = failed("train_funnel", {"config": "no-such-recipe.yaml"})
    assert run.code == 1
    assert run.tasks["ingest"] == ("failed", 1)
    assert "no-such-recipe.yaml" in run.output
    logs = [airflow.monitor(AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT="") for _ in range(2)]
    assert "".join(logs).count("No Airflow connection slack_webhook_default") == 1
    assert "Traceback" not in "".join(logs)
    assert slack.received == []
    assert not (airflow.home / "sluice" / "alerts").exists()


def test_the_installed_package_brings_the_plugin() -> None:
    """Without it no scheduler starts the monitor; `make install` after a change of pyproject.toml."""
    (found,) = {entry.value for entry in entry_points(group="airflow.plugins") if entry.name == "sluice"}
    assert found == "sluice_airflow.plugin:SluicePlugin"
