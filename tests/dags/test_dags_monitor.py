"""Which runs of a real metadata database the monitor tells of: each once, with two of them at work."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.time_limits import finished, wait_for

if TYPE_CHECKING:
    from conftest import Airflow, Slack

PLANT = """
from datetime import timedelta
from airflow.models import DagModel, DagRun
from airflow.models.dag import DagTag
from airflow.models.dagbundle import DagBundleModel
from airflow.utils import timezone
from airflow.utils.session import create_session
now = timezone.utcnow()
with create_session() as session:
    session.add(DagBundleModel(name="b"))
    session.flush()
    for dag_id, tag in (("ours", "sluice"), ("other", "another")):
        session.add(DagModel(dag_id=dag_id, bundle_name="b", tags=[DagTag(name=tag, dag_id=dag_id)]))
    session.flush()
    def plant(dag_id, run_id, state="failed", age=timedelta(), clear_number=0, conf=None):
        run = DagRun(dag_id, run_id, run_type="manual", state=state)
        run.end_date, run.clear_number = now - age, clear_number
        run.conf = conf or {}
        session.add(run)
    plant("ours", "failed")
    plant("ours", "before-the-plugin", age=timedelta(hours=1))
    plant("ours", "green", "success")
    plant("ours", "cleared", "queued", clear_number=1)
    plant("ours", "unreadable", conf=[1])
    plant("ours", "refused")
    plant("other", "failed-too")
"""


def test_two_monitors_tell_of_each_failed_run_once(airflow: Airflow, slack: Slack) -> None:
    slack.plans = {"refused": [404, 403]}
    environ = airflow.environment() | {
        "AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT": slack.connection,
        "SLUICE_ALERT_POLL_SECONDS": "1",
        "SLUICE_ALERT_RETRY_SECONDS": "0.2",
    }
    planted = finished([sys.executable, "-c", PLANT], env=environ)
    assert planted.returncode == 0, planted.stderr
    command = [sys.executable, "-m", "sluice_airflow.monitor"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = [subprocess.Popen(command, env=environ, cwd=airflow.home, **pipes) for _ in range(2)]
    # As the scheduler does: of a run that is cleared at once, and of one whose transaction came to nothing.
    told = [{"dag_id": "ours", "run_id": run_id, "attempt": 0} for run_id in ("cleared", "rolled-back")]
    for monitor in both:
        monitor.stdin.write("".join(json.dumps(run) + "\n" for run in told).encode())
        monitor.stdin.flush()
    expected = ["cleared", "failed", "refused", "unreadable"]
    wait_for("the messages", lambda: len(slack.accepted) >= len(expected))
    logs = [monitor.communicate(timeout=60)[0].decode() for monitor in both]
    assert [monitor.returncode for monitor in both] == [0, 0], logs
    assert len(slack.accepted) == len(expected), "one message a run"
    (cleared,), (failed,), _, (unreadable,) = (slack.of(run_id) for run_id in expected)
    assert "has been cleared since" in cleared
    assert "no failed step is known: it timed out" in failed
    assert "could not be read" in unreadable
    assert sum(log.count("not delivered") for log in logs) == 2, logs
