"""The words of the alert: numbers kept, markup escaped, secrets and users left out."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stages.contracts.errors import ContractError
from stages.dataset.checks.results import ContractReport, ContractResult, failure_text

sys.path.append(str(Path(__file__).resolve().parents[2] / "dags"))

from sluice_airflow.commands import Surroundings
from sluice_airflow.message import FailedRun, FailedStep, error_words, failure_message, short_message

AROUND = Surroundings({}, "/srv", "sluice")


def _message(*errors: BaseException | None, around: Surroundings = AROUND) -> str:
    steps = [
        FailedStep(f"step_{place}", 3, error=None if error is None else error_words(error))
        for place, error in enumerate(errors)
    ]
    return failure_message(FailedRun("train_funnel", "manual__1", steps=steps), around)


def test_a_short_error_is_whole_and_a_long_one_keeps_both_ends() -> None:
    assert "ValueError: 943 of 943 users" in _message(ValueError("943 of 943 users"))
    text = _message(ValueError("first" + "x" * 50_000 + "last"))
    assert len(text) < 3_500
    assert "ValueError: first" in text
    assert "last```" in text
    assert "characters left out" in text


@pytest.mark.parametrize("n_failed", [2, 50])
def test_many_failed_steps_fit_in_one_message(n_failed: int) -> None:
    text = _message(*(ValueError("x" * 50_000) for _ in range(n_failed)))
    assert len(text) < 5_000
    assert "*step_0*: try 3" in text and "*step_1*: try 3" in text
    assert ("and 42 steps more" in text) == (n_failed == 50)


def test_an_error_cannot_leave_its_code_block_or_mention_the_channel() -> None:
    text = _message(ValueError("a ``` b <!channel> & c"))
    assert "a ''' b &lt;!channel&gt; &amp; c" in text
    assert text.count("```") == 6


def test_a_killed_process_is_told_with_what_to_look_at() -> None:
    text = _message(None)
    assert "was killed (SIGKILL)" in text and "out of memory" in text and "OOMKilled" in text
    step = FailedStep("train_candidate", 3, events=["heartbeat timeout: no heartbeat for 300 s"])
    assert "heartbeat timeout: no heartbeat" in failure_message(FailedRun("d", "r", steps=[step]), AROUND)


def test_a_run_without_a_failed_step_is_reported_too() -> None:
    assert "it timed out" in failure_message(FailedRun("train_funnel", "r"), AROUND)
    assert "has been cleared since" in failure_message(FailedRun("train_funnel", "r", cleared=True), AROUND)
    assert "*train_funnel* failed" in short_message("train_funnel", "r")


def test_when_where_and_the_pages_are_named() -> None:
    step = FailedStep("ingest", 2, "worker-1", 4_321.4, "ValueError: x", log_url="http://a/log?try_number=2&b=1")
    run = FailedRun("train_funnel", "r", {}, [step], datetime(2026, 3, 1, 4, 5, 6, tzinfo=UTC), "http://a/run")
    text = failure_message(run, AROUND)
    assert "run: `r`, 2026-03-01 04:05:06 UTC, <http://a/run|open the run>" in text
    assert "*ingest*: try 2, host worker-1, after 4,321 s, <http://a/log?try_number=2&amp;b=1|its log>" in text


def test_no_secret_reaches_the_message() -> None:
    environ = {
        "SLUICE_WAREHOUSE_URL": "postgresql+psycopg2://sluice:hush@db:5432/w",
        "SLUICE_MLFLOW_URI": "http://u:hush@m:5000",
    }
    error = ConnectionError("cannot reach postgresql://sluice:hush@db:5432/w, token=hush")
    run = FailedRun("train_funnel", "r", {"overrides": {"password": "hush"}}, [FailedStep("a", 1, error=str(error))])
    text = failure_message(run, Surroundings(environ, "/srv", "sluice"))
    assert "hush" not in text
    assert "Set it first: SLUICE_WAREHOUSE_URL is postgresql+psycopg2://sluice:***@db:5432/w" in text
    assert "Set it first: SLUICE_MLFLOW_URI is http://u:***@m:5000" in text
    assert "hush" not in error_words(error)


def test_a_broken_contract_is_told_with_its_numbers_and_without_its_rows() -> None:
    found = "3 of 10 events have no item (0.3)"
    rows = ({"user_id": f"u{place}\nuser_id=v{place}", "at_ms": 86_400_000} for place in range(3))
    broken = ContractResult(
        name="nulls.text", level="fail", value=0.3, limits={"fail_above": 0.1}, found=found, rows=tuple(rows)
    )
    report = ContractReport(as_of_ms=0, results=tuple(broken.model_copy(update={"name": f"c{n}"}) for n in range(5)))
    text = _message(ContractError(failure_text(report, "var/reports/contracts-1.json")))
    assert "ContractError: 5 of 5 data contracts failed (c0, c1, c2, c3, c4)" in text
    assert "var/reports/contracts-1.json" in text
    for number in range(5):
        assert f"- c{number} = 0.3 [fail: fail above 0.1] {found}" in text
    assert "user_id" not in text
