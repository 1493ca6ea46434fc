"""A warehouse holds the synthetic world or real data, never both, and the world only where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from cli.main import main

ROOT = Path(__file__).resolve().parents[2]
WORLD = {"n_users": 30, "n_items": 40, "n_events": 2_000, "days": 20, "n_topics": 4, "n_categories": 2}
WORLD_OPTIONS = [word for name, value in WORLD.items() for word in ("--set", f"world.{name}={value}")]
SYNTHETIC = ["--data", "synthetic", *WORLD_OPTIONS]


@pytest.fixture
def sluice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run ``sluice ingest`` in a home of its own."""
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLUICE_DATA", raising=False)
    monkeypatch.delenv("SLUICE_WAREHOUSE_URL", raising=False)
    config = ["--config", str(ROOT / "configs" / "demo.yaml")]
    return lambda *arguments: CliRunner().invoke(main, ["ingest", *config, *arguments])


@pytest.fixture
def real(tmp_path: Path) -> list[str]:
    """Options that load three clicks."""
    (tmp_path / "clicks.csv").write_text("user,item,at\na,x,1735689600\nb,x,1735689700\na,y,1735689800\n")
    columns = {"user_id": "user", "item_id": "item", "event_time": "at", "time_unit": "s", "signal": "click"}
    mapping = {"name": "shop", "mapping": {"table": "interactions", **columns}}
    (tmp_path / "mapping.yaml").write_text(json.dumps(mapping))
    return ["--data", str(tmp_path / "clicks.csv"), "--mapping", str(tmp_path / "mapping.yaml")]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[str], list[tuple[Any, ...]]]:
    def query(statement: str) -> list[tuple[Any, ...]]:
        with duckdb.connect(str(tmp_path / "home" / "warehouse.duckdb")) as connection:
            return connection.execute(statement).fetchall()

    return query


EVENTS = "SELECT source, count(*) FROM interactions GROUP BY source ORDER BY source"
ITEMS = "SELECT count(*) FROM items"


def test_the_world_is_not_poured_over_real_data(sluice, real, ask, tmp_path: Path) -> None:
    assert sluice(*real).exit_code == 0
    refused = sluice(*SYNTHETIC)
    assert refused.exit_code == 2
    assert "holds shop, with which the synthetic world (synthetic-" in refused.output
    assert "allowed is a fresh SLUICE_HOME or SLUICE_WAREHOUSE_URL, or data = warehouse" in refused.output
    assert refused.output.count("\n") == 1
    assert (ask(EVENTS), ask(ITEMS)) == ([("shop", 3)], [(0,)])
    assert not (tmp_path / "home" / "world").exists()
    assert sluice(*real).exit_code == 0, "its own source is loaded as before"


def test_real_data_are_not_poured_over_the_world(sluice, real, ask) -> None:
    assert sluice(*SYNTHETIC).exit_code == 0
    before = ask(EVENTS), ask(ITEMS)
    refused = sluice(*real)
    assert refused.exit_code == 2
    assert f"holds {before[0][0][0]}, with which real data would be mixed" in refused.output
    assert (ask(EVENTS), ask(ITEMS)) == before


def test_the_same_world_is_loaded_again_or_grown_and_no_other_beside_it(sluice, ask) -> None:
    assert sluice(*SYNTHETIC).exit_code == 0
    ((name, events),) = ask(EVENTS)
    again = sluice(*SYNTHETIC)
    assert again.exit_code == 0
    assert ask(EVENTS) == [(name, events)]
    grown = sluice(*SYNTHETIC, "--set", "world.n_events=3000")
    assert grown.exit_code == 0, grown.output
    ((same, more),) = ask(EVENTS)
    assert same == name and more > events
    assert ask(ITEMS) == [(WORLD["n_items"],)]
    other = sluice(*SYNTHETIC, "--set", "world.seed=8")
    assert other.exit_code == 2
    assert f"holds {name}, with which the synthetic world" in other.output
    assert ask(EVENTS) == [(name, more)]


def test_a_world_whose_load_was_killed_is_finished(sluice, ask) -> None:
    assert sluice(*SYNTHETIC).exit_code == 0
    whole = ask(EVENTS)
    ask("DELETE FROM ingest_log WHERE table_name = 'interactions'")
    ask("DELETE FROM interactions")
    done = sluice(*SYNTHETIC)
    assert done.exit_code == 0, done.output
    assert ask(EVENTS) == whole


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO interactions (event_id, user_id, item_id, signal, value, event_time_ms, source) "
        "VALUES (1, 'u', 'i', 'click', 1, 1735689600000, '')",
        "INSERT INTO items (item_id, title, categories, row_hash) VALUES ('i', 'An item', '', 1)",
        "INSERT INTO users (user_id, attributes, row_hash) VALUES ('u', '{}', 1)",
    ],
)
def test_rows_that_others_wrote_count_as_real(sluice, real, ask, statement: str) -> None:
    assert sluice(*real).exit_code == 0
    for table in ("interactions", "items", "users", "ingest_log"):
        ask(f"DELETE FROM {table}")
    ask(statement)
    refused = sluice(*SYNTHETIC)
    assert refused.exit_code == 2
    assert "holds rows that others wrote, with which" in refused.output
    assert sluice(*real).exit_code == 0


def test_views_are_left_alone(sluice, real, ask) -> None:
    assert sluice(*real).exit_code == 0
    ask("ALTER TABLE interactions RENAME TO theirs")
    ask("CREATE VIEW interactions AS SELECT * EXCLUDE (source) FROM theirs")
    refused = sluice(*SYNTHETIC)
    assert refused.exit_code == 2
    assert "interactions of warehouse" in refused.output and "is a view" in refused.output


def test_without_data_nothing_is_loaded_and_what_is_there_is_read(sluice, real, ask, tmp_path: Path) -> None:
    assert sluice(*real).exit_code == 0
    assert sluice().exit_code == 2
    config = ["--config", str(ROOT / "configs" / "demo.yaml")]
    assert CliRunner().invoke(main, ["run", *config, "--until", "ingest"]).exit_code == 0
    assert ask(EVENTS) == [("shop", 3)]
    assert not (tmp_path / "home" / "world").exists()
