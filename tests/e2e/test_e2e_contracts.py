"""A broken data contract stops the whole job before anything trains, in the pipeline and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from cli.main import main
from stages import pipeline, run_recipe
from stages.contracts.errors import ConfigError, ContractError
from stages.contracts.files import read_json
from stages.release.mlflow_client import open_client
from stages.settings import Settings, load_settings
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INTERACTIONS

BUSY = {"volume": {"warn_above": 0.01, "fail_above": 0.01, "warn_below": None, "fail_below": None}}


def with_contracts(settings: Settings, contracts: dict[str, Any], **recipe: Any) -> Settings:
    return settings.model_copy(update={"recipe": {**settings.recipe, "contracts": contracts, **recipe}})


def test_a_failing_contract_stops_the_run_before_the_dataset(job) -> None:
    runs = Path(job.settings.home) / "runs"
    before = {step: sorted((runs / step).iterdir()) for step in ("check_data", "dataset", "train_candidate")}
    settings = with_contracts(
        job.settings, {**BUSY, "nulls": {"text": {"fail_above": 0.5}}}, seed=job.settings.recipe.get("seed", 0) + 1
    )
    reached: list[str] = []
    with pytest.raises(ContractError, match=r"2 of 28 data contracts failed \(volume, nulls.text\)") as caught:
        pipeline.run_all(settings, progress=reached.append)
    assert reached == ["ingest", "check_data"]
    assert {step: sorted((runs / step).iterdir()) for step in before} == before
    (kept,) = (path for path in (runs.parent / "reports").iterdir() if str(path) in str(caught.value))
    levels = {result["name"]: result["level"] for result in read_json(kept)["results"]}
    assert [name for name, level in levels.items() if level == "fail"] == ["volume", "nulls.text"]


def test_the_numbers_of_the_contracts_reach_mlflow_and_a_rerun_trains_nothing(job) -> None:
    check = job.results["check_data"]
    assert check.metrics["contracts_fail"] == 0
    run = open_client(job.settings.registry.tracking_uri).get_run(job.results["register"].info["run_id"])
    assert run.data.metrics["check_data/volume"] == check.metrics["volume"]
    assert run.data.metrics["check_data/contracts_warn"] == check.metrics["contracts_warn"]
    assert run.data.metrics["check_data/disk_bytes"] == check.disk_bytes > 0
    warned = with_contracts(job.settings, {"nulls": {"text": {"warn_above": 0.5}}})
    results = pipeline.run_all(warned, until="train_light")
    assert results["check_data"].metrics["warned/nulls.text"] == 1.0
    assert [name for name, result in results.items() if not result.reused] == ["check_data"]


def test_the_command_line_shows_every_contract_and_ends_with_the_code_of_bad_data(job) -> None:
    recipe = ["--data", "synthetic"]
    recipe += [word for name, value in job.settings.recipe.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    passed = CliRunner().invoke(main, ["dataset", "check", *recipe], env=job.environ)
    assert passed.exit_code == 0, passed.output
    assert any(line.split()[:2] == ["ok", "freshness"] for line in passed.output.splitlines())
    refused = CliRunner().invoke(
        main, ["dataset", "check", *recipe, "--set", f"contracts={json.dumps(BUSY)}"], env=job.environ
    )
    assert refused.exit_code == 3
    assert "volume: rows to look at\n  day_from_ms=" in refused.output
    assert "more: SELECT recent.day_from_ms" in refused.output
    assert "error: 1 of 28 data contracts failed (volume)" in refused.output
    refused = CliRunner().invoke(main, ["run", *recipe, "--set", f"contracts={json.dumps(BUSY)}"], env=job.environ)
    assert refused.exit_code == 3
    assert "fail above 0.01" in refused.output


def test_an_event_of_the_future_warns_and_does_not_move_the_as_of_time(job, tmp_path: Path) -> None:
    world = {**job.settings.recipe["world"], "n_users": 60, "n_items": 60, "n_events": 6_000}
    environ = {**job.environ, "SLUICE_HOME": str(tmp_path)}
    settings = load_settings(environ, data="synthetic", overrides={**job.settings.recipe, "world": world})
    before = pipeline.run_all(settings, until="ingest")["ingest"].info["as_of_ms"]
    row = {"event_id": 1, "user_id": "u", "item_id": "i", "signal": "click", "value": 1.0, "source": "", "context": ""}
    with Warehouse(settings.warehouse_url) as warehouse, warehouse.begin() as connection:
        connection.execute(sa.insert(INTERACTIONS).values({**row, "event_time_ms": settings.now_ms + 10**12}))
    results = pipeline.run_all(settings.model_copy(update={"data": "warehouse"}), until="check_data")
    assert results["ingest"].info["as_of_ms"] == before
    check = results["check_data"]
    assert check.info["warnings"]["future.now"].startswith("future.now = ")


def test_levels_of_a_task_that_there_is_not_are_refused(job) -> None:
    settings = with_contracts(job.settings, {"label_rates": {"share": {"lik": {"warn_below": 0.1}}}})
    with pytest.raises(ConfigError, match=r"label_rates.share names \['lik'\], the tasks are"):
        run_recipe.load_recipe(settings)
