"""One message a failed run, whatever is killed: a real scheduler, real kills, counted over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dags.deployment import Deployment
from tests.time_limits import wait_for

pytestmark = pytest.mark.slow

TRIALS = '''
"""DAGs whose only step does what its run asks for."""

from airflow.sdk import DAG, task
from sluice_airflow.tasks import DEFAULT_ARGS


@task
def step(params=None):
    import os, signal, time
    from pathlib import Path
    from stages.contracts.errors import ContractError, EmptyDatasetError

    fault, place = params["fault"], Path(params["place"])
    if fault == "killed" or (fault == "killed once" and not place.exists()):
        if fault != "killed":
            place.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "slow":
        place.touch()
        while place.exists():
            time.sleep(0.1)
    if fault == "contract":
        raise ContractError(
            "1 of 28 data contracts failed (volume), 0 warned; nothing trained\\n"
            "- volume = 0.5 [fail: fail above 0.01] 5 of 10 days\\n    user_id=u77 events=9"
        )
    if fault not in ("killed once", "none"):
        raise EmptyDatasetError("dataset.min_events = 5 removed all 943 users")


for dag_id, names, retries in (("single", ["only"], 1), ("double", ["left", "right"], 0)):
    args = DEFAULT_ARGS | {"retries": retries}
    params = {"fault": "none", "place": ""}
    with DAG(dag_id, schedule=None, default_args=args, tags=["sluice"], params=params):
        for name in names:
            step.override(task_id=name)()
'''


@pytest.fixture(scope="module")
def deployment(migrated: Any, slack_of_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All of Airflow with our plugin; the home of the steps cannot be written."""
    folder = tmp_path_factory.mktemp("deployment")
    dags = folder / "dags"
    dags.mkdir()
    (dags / "trials.py").write_text(TRIALS, encoding="utf-8")
    home = folder / "airflow"
    environ = type(migrated)(home).environment(dags) | {
        "AIRFLOW_CONN_SLACK_WEBHOOK_DEFAULT": slack_of_module.connection_with(timeout=2),
        "SLUICE_ALERT_POLL_SECONDS": "2",
        "SLUICE_ALERT_RETRY_SECONDS": "0.5",
        "SLUICE_HOME": "/proc/no-such-home",
    }
    made = Deployment.make(home, migrated.home, environ)
    for name in ("api-server", "scheduler", "dag-processor"):
        made.start(name)
    try:
        wait_for("the DAGs", lambda: made.is_ready("single", "double"), made.logs)
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def told(deployment: Deployment, slack_of_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every run that needs nothing but the scheduler, all at once; the DAG processor is dead meanwhile."""
    place = tmp_path_factory.mktemp("places")
    slack_of_module.plans["away"] = [500, (429, {"Retry-After": "2"}), "hang", 200]
    deployment.kill("dag-processor")
    deployment.trigger("single", "killed", fault="killed", place=str(place / "killed"))
    deployment.trigger("single", "killed-once", fault="killed once", place=str(place / "once"))
    deployment.trigger("double", "two", fault="error", place="")
    deployment.trigger("single", "contract", fault="contract", place="")
    deployment.trigger("single", "away", fault="error", place="")
    for dag_id, run_id in (("single", "killed"), ("double", "two"), ("single", "contract"), ("single", "away")):
        deployment.wait_for_state(dag_id, run_id, "failed")
    deployment.wait_for_state("single", "killed-once", "success")
    for run_id in ("killed", "two", "contract", "away"):
        wait_for(f"the message of {run_id}", lambda run_id=run_id: slack_of_module.of(run_id))
    return slack_of_module


def test_a_step_that_is_killed_on_its_last_try_is_reported_as_killed(told: Any, deployment: Deployment) -> None:
    (text,) = told.of("killed")
    assert "*single* failed in step *only*" in text
    assert "*only*: try 2" in text
    assert "was killed (SIGKILL)" in text and "out of memory" in text
    assert f"<{deployment.environ['AIRFLOW__API__BASE_URL']}/dags/single/runs/killed|open the run>" in text


def test_a_kill_that_a_retry_mended_is_not_reported(told: Any) -> None:
    assert told.of("killed-once") == []


def test_two_steps_that_failed_at_once_share_a_message(told: Any) -> None:
    (text,) = told.of("two")
    assert "*double* failed in steps *" in text
    assert {"*left*: try 1", "*right*: try 1"} <= {line.partition(",")[0] for line in text.splitlines()}
    assert text.count("EmptyDatasetError: dataset.min_events = 5 removed all 943 users") == 2


def test_a_broken_contract_is_told_with_its_numbers_and_no_user(told: Any) -> None:
    (text,) = told.of("contract")
    assert "ContractError: 1 of 28 data contracts failed (volume)" in text
    assert "- volume = 0.5 [fail: fail above 0.01] 5 of 10 days" in text
    assert "u77" not in text


def test_a_message_that_slack_did_not_take_is_sent_later(told: Any) -> None:
    tried = [status for _, body, status in told.received if "`away`" in str(body["text"])]
    assert tried == [500, 429, "hang", 200]
    waited = [at for at, text in told.times if "`away`" in text]
    assert waited[2] - waited[1] >= 2, "Retry-After is kept"


def test_a_run_that_is_cleared_and_fails_again_is_reported_again(told: Any, deployment: Deployment) -> None:
    deployment.clear_failed("single", "contract")
    wait_for("the second message", lambda: len(told.of("contract")) == 2, deployment.logs)
    assert deployment.state("single", "contract") == "failed"


def test_what_happens_while_the_scheduler_is_dead_is_reported_by_the_next_one(
    told: Any, deployment: Deployment, tmp_path: Path
) -> None:
    told.plans["unsent"] = [500] * 1000
    slow = tmp_path / "slow"
    deployment.trigger("single", "unsent", fault="error", place="")
    deployment.trigger("single", "slow", fault="slow", place=str(slow))
    deployment.wait_for_state("single", "unsent", "failed")
    wait_for("the slow step", slow.exists, deployment.logs)
    wait_for("a refused message", lambda: any("`unsent`" in str(body["text"]) for _, body, _ in told.received))
    monitors = _monitors(deployment)
    deployment.kill("scheduler")
    slow.unlink()
    told.plans["unsent"] = []
    wait_for("the monitor to end with its scheduler", lambda: not any(map(psutil.Process.is_running, monitors)))
    deployment.start("scheduler")
    deployment.wait_for_state("single", "slow", "failed")
    for run_id in ("unsent", "slow"):
        wait_for(f"the message of {run_id}", lambda run_id=run_id: told.of(run_id), deployment.logs)
    assert {run_id: len(told.of(run_id)) for run_id in ("killed", "killed-once", "two", "away", "unsent", "slow")} == {
        "killed": 1,
        "killed-once": 0,
        "two": 1,
        "away": 1,
        "unsent": 1,
        "slow": 1,
    }


def test_a_monitor_that_dies_is_started_again(told: Any, deployment: Deployment) -> None:
    (guard, monitor) = _monitors(deployment)
    monitor.kill()
    deployment.trigger("double", "after", fault="error", place="")
    deployment.wait_for_state("double", "after", "failed")
    wait_for("the message", lambda: told.of("after"), deployment.logs)
    assert len(told.of("after")) == 1
    assert guard.is_running() and monitor not in guard.children()


def _monitors(deployment: Deployment) -> list[psutil.Process]:
    """Return the scheduler's guard and its monitor."""
    children = psutil.Process(deployment.processes["scheduler"].pid).children(recursive=True)
    found = {name: child for child in children for name in ("guard", "monitor") if name in str(child.cmdline()[-1:])}
    return [found["guard"], found["monitor"]]
