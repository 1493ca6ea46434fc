"""A generic file with a declared mapping runs through the same job; bad input stops it with one line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli.main import main
from stages.warehouse.database.engine import Warehouse

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
dataset:
  signals: [click]
  tasks: [{name: click, signals: [click], relevance: 1}]
  activity: {min_events: MIN, window_days: 30}
funnel: {candidate_k: 60, light_k: 20, max_k: MAX, objective: {click: 1.0}}
"""


@pytest.fixture
def clicks(job, tmp_path: Path) -> Path:
    """The small world's clicks as a CSV file with foreign column names, and some bad rows."""
    world = next((Path(job.settings.home) / "world").iterdir())
    events = pq.read_table(world / "events.parquet", filters=[("signal", "=", "click")])
    path = tmp_path / "clicks.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["visitor", "article", "at"])
        for user, item, at in zip(
            *(events[name].to_pylist() for name in ("user_id", "item_id", "event_time_ms")), strict=True
        ):
            writer.writerow([user, item, at])
        writer.writerow(["someone", "", events["event_time_ms"][0].as_py()])
        writer.writerow(["someone", "an item", "yesterday"])
        writer.writerow(["someone", "an item", 99_999_999_999_999])
    mapping = {
        "table": "interactions",
        "user_id": "visitor",
        "item_id": "article",
        "event_time": "at",
        "time_unit": "ms",
        "signal": "click",
    }
    (tmp_path / "mapping.yaml").write_text(json.dumps({"mapping": mapping}))
    return path


@pytest.fixture
def sluice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``sluice`` in a home of its own, with a recipe for clicks."""
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLUICE_WAREHOUSE_URL", raising=False)

    def run(*arguments: str, minimum: int = 5, maximum: int = 10) -> Any:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.replace("MIN", str(minimum)).replace("MAX", str(maximum)))
        return CliRunner().invoke(main, [*arguments, "--config", str(recipe)])

    return run


def _source(clicks: Path) -> list[str]:
    return ["--data", str(clicks), "--mapping", str(clicks.with_name("mapping.yaml"))]


def test_a_mapped_csv_gives_a_snapshot_and_counts_its_bad_rows(sluice: Callable[..., Any], clicks: Path) -> None:
    loaded = sluice("ingest", *_source(clicks))
    assert loaded.exit_code == 0, loaded.output
    assert "3 rows_quarantined" in loaded.output
    assert loaded.output.count("quarantined: 1 rows:") == 3
    again = sluice("ingest", *_source(clicks))
    assert "0 rows_loaded" in again.output
    assert "3 rows_quarantined" in again.output
    assert sluice("run", *_source(clicks), "--until", "dataset").exit_code == 0


def test_unknown_column_is_named_with_the_columns_there_are(sluice: Callable[..., Any], clicks: Path) -> None:
    clicks.write_text(clicks.read_text().replace("visitor", "visiteur", 1))
    refused = sluice("ingest", *_source(clicks))
    assert refused.exit_code == 3
    assert "visitor" in refused.output
    assert "visiteur" in refused.output
    assert "Traceback" not in refused.output


def test_a_threshold_that_removes_everybody_is_named(sluice: Callable[..., Any], clicks: Path) -> None:
    refused = sluice("run", *_source(clicks), "--until", "dataset", minimum=100_000)
    assert refused.exit_code == 3
    assert "100000" in refused.output.replace(",", "")
    assert "min_events" in refused.output


def test_fewer_items_than_k_are_refused(sluice: Callable[..., Any], clicks: Path) -> None:
    refused = sluice("run", *_source(clicks), "--until", "dataset", maximum=5_000)
    assert refused.exit_code == 3
    assert "5000" in refused.output.replace(",", "")


def test_a_run_reads_what_the_warehouse_holds_already(sluice: Callable[..., Any], clicks: Path, tmp_path: Path) -> None:
    """Views over somebody else's tables give the snapshot that the loaded file gave."""
    assert sluice("run", *_source(clicks), "--until", "dataset").exit_code == 0
    with Warehouse(f"duckdb:///{tmp_path / 'home' / 'warehouse.duckdb'}") as warehouse, warehouse.begin() as connection:
        for name in ("interactions", "items", "users"):
            connection.exec_driver_sql(f"ALTER TABLE {name} RENAME TO their_{name}")
            connection.exec_driver_sql(f"CREATE VIEW {name} AS SELECT * FROM their_{name}")
    ours, runs = list((tmp_path / "home" / "runs" / "dataset").iterdir()), tmp_path / "home" / "runs"
    assert len(ours) == 1
    refused = sluice("run", *_source(clicks), "--until", "dataset")
    assert refused.exit_code == 2
    assert "is a view" in refused.output
    found = sluice("run", "--data", "warehouse", "--until", "dataset")
    assert found.exit_code == 0, found.output
    assert list((runs / "dataset").iterdir()) == ours  # the same content: the step is reused
    shutil.rmtree(runs)
    assert sluice("run", "--data", "warehouse", "--until", "dataset").exit_code == 0
    assert [path.name for path in (runs / "dataset").iterdir()] == [path.name for path in ours]


def test_a_warehouse_without_what_a_run_reads_is_named(sluice: Callable[..., Any], tmp_path: Path) -> None:
    empty = sluice("run", "--data", "warehouse", "--until", "dataset")
    assert empty.exit_code == 3
    assert "no event is in the warehouse" in empty.output
    with Warehouse(f"duckdb:///{tmp_path / 'home' / 'warehouse.duckdb'}") as warehouse, warehouse.begin() as connection:
        connection.exec_driver_sql("DROP TABLE items")
        connection.exec_driver_sql("CREATE VIEW items AS SELECT 'i0' AS item_id, 'Zero' AS title, '' AS categories")
    lacking = sluice("run", "--data", "warehouse", "--until", "dataset")
    assert lacking.exit_code == 3
    assert "items.row_hash is missing, needed: BIGINT" in lacking.output
