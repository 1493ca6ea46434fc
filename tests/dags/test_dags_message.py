"""The words of the alert: numbers kept, markup escaped, commands that can be pasted."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from stages.contracts.errors import ContractError
from stages.dataset.checks.results import ContractReport, ContractResult, failure_text

SOURCE = Path(__file__).resolve().parents[2] / "dags" / "sluice_airflow" / "message.py"


@pytest.fixture(scope="module")
def words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sluice_alert_message", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _context(error: object, params: dict[str, object] | None = None, dag_id: str = "train_funnel") -> dict[str, object]:
    instance = SimpleNamespace(dag_id=dag_id, run_id="manual__1", task_id="dataset", try_number=3)
    return {"task_instance": instance, "exception": error, "params": params or {}}


def test_a_short_error_is_whole_and_a_long_one_keeps_both_ends(words: ModuleType) -> None:
    assert "ValueError: 943 of 943 users" in words.failure_message(_context(ValueError("943 of 943 users")))
    text = words.failure_message(_context(ValueError("first" + "x" * 50_000 + "last")))
    assert len(text) < 3_000
    assert "ValueError: first" in text
    assert "last```" in text
    assert "characters left out" in text


def test_an_error_cannot_leave_its_code_block_or_mention_the_channel(words: ModuleType) -> None:
    text = words.failure_message(_context(ValueError("a ``` b <!channel> & c")))
    assert "a ''' b &lt;!channel&gt; &amp; c" in text
    assert text.count("```") == 4


def test_a_killed_process_has_no_exception_and_is_reported_all_the_same(words: ModuleType) -> None:
    assert "may have been killed" in words.failure_message(_context(None))


def test_the_commands_repeat_the_runs_parameters(words: ModuleType) -> None:
    params = {
        "data": "my data/ml-100k",
        "mapping": None,
        "as_of": "2026-01-01T00:00:00Z",
        "n_processes": 2,
        "warm_start": "runs/train_candidate/0123",
        "overrides": {"candidate": {"dim": 32, "name": "it's"}},
        "promote": False,
    }
    block = words.failure_message(_context(ValueError("x"), params)).split("```")[3]
    trigger, run = (shlex.split(line) for line in block.splitlines())
    assert trigger[:4] == ["airflow", "dags", "trigger", "train_funnel"]
    assert json.loads(trigger[5]) == {name: value for name, value in params.items() if value is not None}
    assert run[:8] == ["sluice", "run", "--data", "my data/ml-100k", "--as-of", params["as_of"], "--processes", "2"]
    assert run[8:10] == ["--warm-start", "runs/train_candidate/0123"]
    assert run[10:] == ["--set", "candidate.dim=32", "--set", 'candidate.name="it\'s"', "--no-promote"]


def test_a_failed_refresh_is_repeated_by_a_refresh(words: ModuleType) -> None:
    """The command of the main job would train."""
    text = words.failure_message(_context(ValueError("x"), {"data": "clicks.csv"}, "refresh_index"))
    trigger, refresh = (shlex.split(line) for line in text.split("```")[3].splitlines())
    assert trigger[:4] == ["airflow", "dags", "trigger", "refresh_index"]
    assert refresh == ["sluice", "refresh", "--data", "clicks.csv"]


def test_a_broken_contract_is_told_with_its_numbers_and_its_rows(words: ModuleType) -> None:
    found = "3 of 10 items have no text (0.3)"
    rows = ({"item_id": f"i{place}", "title": "<b>", "created_at_ms": 86_400_000} for place in range(3))
    broken = ContractResult(
        name="nulls.text", level="fail", value=0.3, limits={"fail_above": 0.1}, found=found, rows=tuple(rows)
    )
    report = ContractReport(as_of_ms=0, results=tuple(broken.model_copy(update={"name": f"c{n}"}) for n in range(5)))
    text = words.failure_message(_context(ContractError(failure_text(report, "var/reports/contracts-1.json"))))
    assert "ContractError: 5 of 5 data contracts failed (c0, c1, c2, c3, c4)" in text
    assert "var/reports/contracts-1.json" in text
    for number in range(5):
        assert f"- c{number} = 0.3 [fail: fail above 0.1] {found}" in text
    assert text.count("item_id=i2 title=&lt;b&gt; created_at_ms=86400000 (1970-01-02T00:00:00Z)") == 5
