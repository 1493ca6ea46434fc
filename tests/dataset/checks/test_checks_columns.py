"""Tables of somebody else: views, other types, missing columns; what cannot be read is not judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from stages.contracts.errors import ContractError
from stages.dataset.checks.run import require

if TYPE_CHECKING:
    from conftest import World

    from stages.dataset.checks.results import ContractReport
    from stages.warehouse.database.engine import Warehouse


def change(warehouse: Warehouse, *statements: str) -> None:
    with warehouse.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def skipped(report: ContractReport) -> set[str]:
    return {result.name for result in report.of_level("skipped")}


def test_views_and_fitting_types_pass(world: World, warehouse: Warehouse, loaded: Callable[[World], World]) -> None:
    loaded(world)
    change(
        warehouse,
        "ALTER TABLE interactions RENAME TO log",
        """CREATE VIEW interactions AS SELECT CAST(event_id AS INTEGER) AS event_id,
        CAST(user_id AS VARCHAR(40)) AS user_id, item_id, signal, CAST(value AS DECIMAL(8, 2)) AS value,
        event_time_ms, context FROM log""",
    )
    report = world.check(warehouse)
    assert report.of_level("fail") == ()
    assert report.metrics["contracts_skipped"] == 1
    assert report.metrics["label_rates.like.share"] == 0.5


def test_a_materialised_view_passes(world: World, postgres: Warehouse) -> None:
    world.load(postgres)
    change(
        postgres,
        "ALTER TABLE items RENAME TO catalogue",
        "CREATE MATERIALIZED VIEW items AS SELECT * FROM catalogue",
    )
    assert world.check(postgres).of_level("fail") == ()


def test_other_types_and_missing_columns_are_named_and_what_reads_them_is_skipped(
    world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    loaded(world)
    change(
        warehouse,
        "ALTER TABLE interactions DROP COLUMN event_time_ms",
        "ALTER TABLE interactions ADD COLUMN event_time_ms TIMESTAMP",
        "ALTER TABLE interactions DROP COLUMN value",
        "DROP TABLE users",
    )
    report = world.check(warehouse)
    (failed,) = report.of_level("fail")
    assert (failed.name, failed.value) == ("columns", 3.0)
    assert "interactions.value is missing, needed: DOUBLE" in failed.found
    assert "interactions.event_time_ms is TIMESTAMP, needed: BIGINT" in failed.found
    assert "users.* is missing, needed: a table or view" in failed.found
    assert {"volume", "keys", "unknown_items", "active_users"} <= skipped(report)
    assert {result.name for result in report.of_level("ok")} == {
        "nulls.title",
        "nulls.categories",
        "nulls.created_at",
        "nulls.duration",
        "nulls.text",
        "quarantine",
    }
    with pytest.raises(ContractError, match=r"interactions\.value is missing"):
        require(report)


def test_an_empty_warehouse_is_not_fresh_and_names_the_signals_there_are(
    world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    other = world.__class__(events=[("u0", "i0", "view", 1.0, 7)], items=[])
    report = loaded(other).check(warehouse)
    (failed,) = report.of_level("fail")
    assert failed.name == "freshness"
    assert "no event of the signals 'rate', 'click' is before the as-of time" in failed.found
    assert failed.rows == ({"signal": "view", "events": 1},)
    assert {"volume", "unknown_items", "nulls.title", "active_users"} <= skipped(report)


def test_too_little_history_or_too_few_positives_is_said_and_not_judged(
    world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    short = loaded(world.__class__(events=world.events[-36:], contracts={"label_rates": {"min_positives": 50}}))
    found = {result.name: result.found for result in short.check(warehouse).of_level("skipped")}
    assert found["volume"] == "5 days of history before the last day; needed: 7"
    assert found["label_rates.like.against_median"].startswith("0 days with events to compare with")
    long = world.__class__(contracts={"label_rates": {"min_positives": 50, "min_trailing_days": 1, "days": 2}})
    found = {result.name: result.found for result in long.check(warehouse).of_level("skipped")}
    assert found["label_rates.like.against_median"] == "4 positives expected in the last 2 days; needed: 50"
