"""What ``sluice ingest`` prints and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main

RECIPE = """
dataset: {activity: {min_events: 1}, signals: [click], tasks: [{name: click, relevance: 1, signals: [click]}]}
funnel: {candidate_k: 10, light_k: 5, max_k: 5, objective: {click: 1.0}}
"""
EVENTS = "mapping: {table: interactions, user_id: user, item_id: item, event_time: at, signal: click, time_unit: UNIT}"
ITEMS = "mapping: {table: items, item_id: item, title: name, created_at: born, time_unit: ms}"


@pytest.fixture
def sluice(tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs a verb on a file and a mapping."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def run(verb: str, data: str, text: str, mapping: str, *options: str) -> Result:
        (tmp_path / data).write_text(text)
        (tmp_path / "m.yaml").write_text(mapping)
        where = ["--data", str(tmp_path / data), "--mapping", str(tmp_path / "m.yaml")]
        options = (*where, "--config", str(tmp_path / "recipe.yaml"), *options)
        return CliRunner().invoke(main, [*verb.split(), *options], env={"SLUICE_HOME": str(tmp_path / "home")})

    return run


def test_the_span_is_printed_and_judged(sluice: Callable[..., Result]) -> None:
    text = "user,item,at\nu1,i1,1700000000\nu2,i2,1703400000\n"
    refused = sluice("ingest", "e.csv", text, EVENTS.replace("UNIT", "ms"))
    assert refused.exit_code == 3
    assert "1970-01-20T16:13:20Z to 1970-01-20T17:10:00Z, which ends before 1990" in refused.output
    assert "set time_unit: s" in refused.output
    good = sluice("ingest", "e.csv", text, EVENTS.replace("UNIT", "s"))
    assert good.exit_code == 0
    assert "e.csv: 2 events of 2 users, 2023-11-14T22:13:20Z to 2023-12-24T06:40:00Z" in good.output
    assert "replaced" not in good.output
    allowed = sluice("ingest", "e.csv", text, EVENTS.replace("UNIT", "ms"), "--allow-times")
    assert allowed.exit_code == 0
    assert "e.csv: replaced 2 events of the file's earlier load; 2 of them were removed" in allowed.output
    assert "e.csv: 2 events of 2 users, 1970-01-20T16:13:20Z to 1970-01-20T17:10:00Z" in allowed.output
    mapped = sluice("ingest", "e.csv", text, EVENTS.replace("UNIT", "ms, allow_times: true"))
    assert mapped.exit_code == 0
    assert "replaced" not in mapped.output


def test_an_id_that_is_not_exact_is_refused(sluice: Callable[..., Result]) -> None:
    text = '{"user": 7.5, "item": "i", "at": 1700000000}'
    refused = sluice("ingest", "e.jsonl", text, EVENTS.replace("UNIT", "s"))
    assert refused.exit_code == 3
    assert "e.jsonl, line 1: mapping.user_id = 'user': found 7.5" in refused.output


def test_a_catalogue_comes_before_its_events(sluice: Callable[..., Result]) -> None:
    items = "item,name,born\na,Apple,1700000000\nb,Bread,1700000001\n"
    first = sluice("ingest", "items.csv", items, ITEMS)
    assert first.exit_code == 0, first.output
    assert "no events yet; the warehouse holds 2 items" in first.output
    assert "warning: 2 items with created_at, 1970-01-20T16:13:20Z to 1970-01-20T16:13:20Z: all in 1970" in first.output
    for verb in ("run", "dataset report"):
        run = sluice(verb, "items.csv", items, ITEMS)
        assert run.exit_code == 3
        assert "error: items.csv: no event is in the warehouse after ingesting; 2 rows were read" in run.output
    assert "holds no event" in sluice("dataset check", "items.csv", items, ITEMS).output
    users = sluice("ingest", "users.csv", "id\nu1\n", "mapping: {table: users, user_id: id}")
    assert (users.exit_code, "holds 1 users" in users.output) == (0, True)
    none = sluice("ingest", "e.csv", "user,item,at\n,a,1700000000\n", EVENTS.replace("UNIT", "s"))
    assert none.exit_code == 3
    assert "no event is in the warehouse after ingesting; rows were quarantined: 1 missing_user_id" in none.output
    good = sluice("ingest", "e.csv", "user,item,at\nu1,a,1700000000\n", EVENTS.replace("UNIT", "s"))
    assert good.exit_code == 0
    assert "e.csv: 1 events of 1 users" in good.output
