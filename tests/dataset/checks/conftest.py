"""Literal tables on both databases, made as somebody else would make them: without our constraints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from stages.contracts.tables import DAY_MS
from stages.dataset.checks.config import ContractsConfig
from stages.dataset.checks.results import ContractReport
from stages.dataset.checks.run import check_warehouse, step_config
from stages.dataset.config import DatasetConfig
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import METADATA
from tests.builders.postgres import empty, postgres_database

AS_OF_MS = 20 * DAY_MS

Event = tuple[str | None, str | None, str | None, float | None, int | None]
Item = tuple[str, str | None, str | None, int | None, float | None, str | None]

DDL = """
CREATE TABLE interactions (event_id BIGINT, user_id TEXT, item_id TEXT, signal TEXT, value DOUBLE PRECISION,
                           event_time_ms BIGINT, source TEXT, context TEXT);
CREATE TABLE items (item_id TEXT, title TEXT, categories TEXT, created_at_ms BIGINT, duration_s DOUBLE PRECISION,
                    row_hash BIGINT, text TEXT, state TEXT);
CREATE TABLE users (user_id TEXT, attributes TEXT, row_hash BIGINT);
CREATE TABLE quarantine (quarantine_id BIGINT, file TEXT, row_number BIGINT, reason TEXT, raw TEXT);
INSERT INTO quarantine VALUES (1, 'clicks.csv', 7, 'missing_user_id', ',i1,soon')
"""


def healthy_events(days: int = 20) -> list[Event]:
    """Return for each day two clicks and four ratings of four users; two of the ratings are high."""
    return [
        (f"u{number % 4}", f"i{(day + number) % 10}", kind, value, day * DAY_MS + number * 3_600_000)
        for day in range(days)
        for number, (kind, value) in enumerate(
            [("rate", 5.0), ("rate", 1.0), ("rate", 4.0), ("rate", 2.0), ("click", 1.0), ("click", 1.0)]
        )
    ]


def healthy_items() -> list[Item]:
    return [(f"i{number}", f"Title {number}", "a|b", 5, 60.0, "words") for number in range(10)]


@dataclass(frozen=True)
class World:
    """What the warehouse holds, and what the run asks of it."""

    events: Sequence[Event] = field(default_factory=healthy_events)
    items: Sequence[Item] = field(default_factory=healthy_items)
    dataset: dict[str, Any] = field(default_factory=dict)
    contracts: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def plus(self, *events: Event, **changes: Any) -> World:
        return replace(self, events=[*self.events, *events], **changes)

    def config(self) -> dict[str, Any]:
        dataset = {
            "signals": ("rate", "click"),
            "tasks": (
                {"name": "watch", "signals": ("rate", "click"), "relevance": 1},
                {"name": "like", "signals": ("rate",), "min_value": 4},
                {"name": "click", "signals": ("click",)},
            ),
            "activity": {"min_events": 5, "window_days": 10},
        } | self.dataset
        contracts = {"label_rates": {"min_positives": 5}} | self.contracts
        run = {"as_of_ms": AS_OF_MS, "latest_ms": None, "now_ms": AS_OF_MS, "rows_read": 100} | self.run
        return {
            "contracts": ContractsConfig.model_validate(contracts),
            "dataset": DatasetConfig.model_validate(dataset),
            **run,
        }

    def load(self, warehouse: Warehouse) -> None:
        interactions, items = METADATA.tables["interactions"], METADATA.tables["items"]
        names = ("user_id", "item_id", "signal", "value", "event_time_ms")
        rows = [dict(zip(names, row, strict=True)) for row in self.events]
        columns = ("item_id", "title", "categories", "created_at_ms", "duration_s", "text")
        with warehouse.begin() as connection:
            for statement in DDL.split(";"):
                connection.execute(sa.text(statement))
            if rows:
                values = [{**row, "event_id": number, "context": ""} for number, row in enumerate(rows)]
                connection.execute(sa.insert(interactions).values(values))
            if self.items:
                catalogue = [dict(zip(columns, row, strict=True)) for row in self.items]
                connection.execute(sa.insert(items).values(catalogue))

    def check(self, warehouse: Warehouse, **contracts: Any) -> ContractReport:
        changed = replace(self, contracts={**self.contracts, **contracts})
        return check_warehouse(step_config(**changed.config()), warehouse)


@pytest.fixture
def world() -> World:
    """A warehouse in which every contract holds."""
    return World()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with postgres_database("checks") as url:
        yield url


@pytest.fixture
def duck(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse(f"duckdb:///{tmp_path / 'warehouse.duckdb'}") as warehouse:
        yield warehouse


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Warehouse]:
    with Warehouse(postgres_url) as warehouse:
        yield warehouse
    empty(postgres_url)


@pytest.fixture(params=["duckdb", "postgresql"])
def warehouse(request: pytest.FixtureRequest) -> Warehouse:
    return request.getfixturevalue("duck" if request.param == "duckdb" else "postgres")


@pytest.fixture
def loaded(warehouse: Warehouse) -> Callable[[World], World]:
    """Load a world into the warehouse and return it."""

    def load(world: World) -> World:
        world.load(warehouse)
        return world

    return load
