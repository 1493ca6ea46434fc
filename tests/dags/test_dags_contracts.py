"""A broken data contract under Airflow: the run stops before the dataset, and the alert shows why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stages.pipeline import STEPS

if TYPE_CHECKING:
    from conftest import Airflow, Run, Slack

    Failed = Callable[..., tuple[Airflow, Run]]

OVERRIDES = {
    "world": {"n_users": 30, "n_items": 40, "n_events": 2_000, "days": 20, "n_topics": 4, "n_categories": 2},
    "contracts": {"volume": {"warn_above": 0.01, "fail_above": 0.01, "warn_below": None, "fail_below": None}},
}


@pytest.mark.slow
def test_the_alert_shows_the_contract_and_its_numbers_but_no_row(failed: Failed, slack: Slack) -> None:
    conf = {"data": "synthetic", "config": "configs/demo.yaml", "overrides": OVERRIDES}
    airflow, run = failed("train_funnel", conf)
    airflow.monitor(AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT=slack.connection)
    assert run.code == 1
    assert run.tasks["ingest"] == ("success", 1)
    assert run.tasks["check_data"] == ("failed", 1), "broken data are not tried again"
    assert {run.tasks[step][0] for step in STEPS[2:]} == {"upstream_failed"}
    assert not Path(run.sluice_home, "runs", "dataset").exists()
    (text,) = slack.accepted
    assert "failed in step *check_data*" in text
    assert "ContractError: 1 of 28 data contracts failed (volume)" in text
    assert "[fail: warn above 0.01, fail above 0.01]" in text
    assert "day_from_ms=" not in text
    assert "user_id" not in text
    (kept,) = Path(run.sluice_home, "reports").iterdir()
    assert str(kept) in text
