"""Levels, limits, the words of the error, and equal numbers and SQL on both databases."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, ContractError, DataError
from stages.contracts.files import read_json
from stages.contracts.steps import run_step
from stages.contracts.tables import DAY_MS
from stages.dataset.checks.config import ContractsConfig, Limits
from stages.dataset.checks.results import ContractReport, level_of, table_text
from stages.dataset.checks.run import CONTRACTS, check_body, check_standing, step_config
from tests.late_clock import show_everything

if TYPE_CHECKING:
    from conftest import World

    from stages.warehouse.database.engine import Warehouse

SPOILT: dict[str, Any] = {
    "contracts": {
        "nulls": {"text": {"fail_above": 0.05}},
        "duplicates": {"identical": {"fail_above": 0.01}},
        "other_signals": {"warn_above": 0},
        "volume": {"fail_above": 5},
    },
}


def spoilt(world: World) -> World:
    """Two identical rows, a foreign signal, a busy last day, and items without a text."""
    late = [(f"u{place % 4}", "i0", "click", 1.0, 19 * DAY_MS + place) for place in range(40)]
    items = [(*row[:5], None) for row in world.items]
    events = [*world.events, *late, late[0], late[0], ("u0", "i0", "view", 1.0, 5)]
    return replace(world, events=events, items=items, **SPOILT)


def run(world: World, warehouse: Warehouse, home: Path) -> Any:
    config, kept = step_config(**world.config()), home / "reports" / "contracts-1.json"
    return run_step("check_data", "1", check_body(warehouse, kept), config, {}, home / "runs")


def test_every_failure_is_named_with_numbers_limits_rows_and_the_report(
    world: World, duck: Warehouse, tmp_path: Path
) -> None:
    spoilt(world).load(duck)
    with pytest.raises(ContractError) as caught:
        run(spoilt(world), duck, tmp_path)
    text = str(caught.value)
    assert isinstance(caught.value, DataError), "permanent, exit code 3"
    assert text.startswith("3 of 25 data contracts failed (volume, duplicates.identical, nulls.text), 1 warned")
    assert "volume = 8 [fail: warn below 0.3, fail below 0.02, warn above 5, fail above 5] 48 events a day" in text
    assert "- nulls.text = 1 [fail: fail above 0.05] 10 of 10 items have no text (1)\n    item_id=i0 title=" in text
    assert "    item_id=i0 signal=click event_time_ms=1641600000 (1970-01-20T00:00:00Z) rows=3" in text
    assert "user_id" not in text, "errors end in logs and chat rooms"
    kept = tmp_path / "reports" / "contracts-1.json"
    assert str(kept) in text
    report = ContractReport.model_validate(read_json(kept))
    assert report.of_level("fail")[1].rows[0]["user_id"] == "u0", "the report in the home says who it was"
    assert [result.name for result in report.of_level("fail")] == ["volume", "duplicates.identical", "nulls.text"]
    assert not (tmp_path / "runs" / "check_data").exists() or list((tmp_path / "runs" / "check_data").iterdir()) == []
    table = table_text(report).splitlines()
    assert sum(line.startswith("fail ") for line in table) == 3
    assert any(line.startswith("  more: SELECT") for line in table)


def test_warnings_are_logged_and_are_in_the_steps_result(
    world: World, duck: Warehouse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warned = replace(spoilt(world), contracts={"nulls": {"text": {"warn_above": 0.05}}})
    warned.load(duck)
    with caplog.at_level(logging.WARNING, logger="sluice"):
        result = run(warned, duck, tmp_path)
    assert {"duplicates.identical", "nulls.text", "volume"} <= set(result.info["warnings"])
    assert result.info["warnings"]["nulls.text"].startswith("nulls.text = 1 [warn: warn above 0.05] 10 of 10")
    assert result.metrics["contracts_warn"] == len(result.info["warnings"])
    assert result.metrics["warned/nulls.text"] == 1.0
    assert "data contract nulls.text = 1 [warn" in caplog.text
    assert read_json(result.directory / "contracts.json") == read_json(Path(result.info["report"]))
    assert run(warned, duck, tmp_path).reused


def test_both_databases_measure_the_same_and_their_sql_runs(world: World, duck: Warehouse, postgres: Warehouse) -> None:
    reports = []
    for warehouse in (duck, postgres):
        spoilt(world).load(warehouse)
        strict = {"quarantine": {"warn_above": 0, "fail_above": 0}, "active_users": {"fail_below": 1, "warn_below": 1}}
        ranges = {"values": {"ranges": {"rate": [0, 4], "click": [1, 1]}}, "nulls": {"text": {"fail_above": 0.05}}}
        judged = replace(spoilt(world), run={"rows_quarantined": 1, "now_ms": 18 * DAY_MS}, contracts={})
        report = judged.check(warehouse, **strict, **ranges)
        with warehouse.connect() as connection:
            for result in report.results:
                if result.sql:
                    rows = connection.execute(sa.text(result.sql)).all()
                    assert len(rows) >= len(result.rows) > 0, result.name
        reports.append(report.model_dump(mode="json", exclude={"results": {"__all__": {"sql"}}}))
    assert reports[0] == reports[1]
    levels = {result["name"]: result["level"] for result in reports[0]["results"]}
    assert [name for name, level in levels.items() if level == "fail"] == [
        "values.value",
        "future.now",
        "nulls.text",
        "quarantine",
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"volume": {"warn_below": 0.01}}, "contract.*warn_below = 0.01 must be at least fail_below = 0.02"),
        ({"freshness": {"warn_above": 30}}, "warn_above = 30 must be at most fail_above = 14"),
        ({"quarantine": {"warn_below": 0.5}}, "below 0.5 and above 0.01 leave no number"),
        ({"volum": {"warn_below": 0.01}}, "volum: unknown key"),
        ({"skip": ["volum"]}, "skip.0 = 'volum': Input should be 'columns', 'keys'"),
        ({"nulls": {"author": {"warn_above": 0.1}}}, "nulls.author: unknown key"),
        ({"values": {"ranges": {"rate": [5, 1]}}}, r"ranges.rate = \[5, 1\]"),
        ({"volume": {"min_trailing_days": 60}}, "min_trailing_days = 60 must not exceed trailing_days = 28"),
    ],
)
def test_wrong_levels_and_unknown_contracts_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(ContractsConfig, values, "contracts")


def test_a_number_on_a_limit_is_within_it() -> None:
    limits = Limits(fail_below=1, warn_below=2, warn_above=3, fail_above=4)
    levels = [level_of(value, limits) for value in (0.9, 1, 1.9, 2, 3, 3.1, 4, 4.1)]
    assert levels == ["fail", "warn", "warn", "ok", "ok", "warn", "warn", "fail"]


def test_every_contract_is_documented_with_what_to_do() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    listed, advice = ((docs / name).read_text(encoding="utf-8") for name in ("data-contracts.md", "runbook.md"))
    for contract in CONTRACTS:
        assert f"| `{contract.name}" in listed, contract.name
        assert f"| `{contract.name}` |" in advice, contract.name
    for section in ContractsConfig.model_fields:
        assert section in listed or section == "sample_rows", section


def test_the_clock_is_part_of_the_step_only_where_it_matters(world: World) -> None:
    values = world.config() | {"latest_ms": 100, "now_ms": 101}
    assert step_config(**values).now_ms is None
    assert step_config(**values | {"latest_ms": 102}).now_ms == 101
    contracts = ContractsConfig.model_validate({"freshness": {"against": "now"}})
    assert step_config(**values | {"contracts": contracts}).now_ms == 101


def test_freshness_can_be_measured_against_the_clock(world: World, duck: Warehouse) -> None:
    world.load(duck)
    late = replace(world, run={"now_ms": 40 * DAY_MS}, contracts={"freshness": {"against": "now"}})
    (failed,) = late.check(duck).of_level("fail")
    assert failed.name == "freshness"
    assert failed.found == "the newest event is 20.8 days older than the clock"


def test_a_standing_warehouse_is_shown_and_then_refused(world: World, duck: Warehouse) -> None:
    spoilt(world).load(duck)
    config, shown = spoilt(world).config(), []
    arguments = (config["contracts"], config["dataset"], duck)
    with pytest.raises(ContractError, match=r"nulls\.text = 1"):
        check_standing(*arguments, None, 100 * DAY_MS, shown.append)
    lines = shown[0].splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("skipped", "fail"))] == [
        ["fail", "volume"],
        ["skipped", "label_rates.watch"],
        ["fail", "duplicates.identical"],
        ["fail", "nulls.text"],
        ["skipped", "quarantine"],
    ]
    with duck.begin() as connection:
        connection.execute(sa.text("DELETE FROM interactions"))
    with pytest.raises(DataError, match="holds no event"):
        check_standing(*arguments, None, 100 * DAY_MS, shown.append)


def test_each_contract_moves_the_progress(
    world: World, duck: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.load(duck)
    show_everything(monkeypatch, caplog)
    run(world, duck, tmp_path)
    lines = [line for line in caplog.messages if line.startswith("[sluice] check_data: ")]
    moved = [line for line in lines if " of 13 contracts, 0.017 a second, done in " in line]
    assert [int(line.split()[2]) for line in moved] == list(range(1, len(CONTRACTS) + 1))
    assert lines[-1].startswith("[sluice] check_data: 13 contracts, ")
