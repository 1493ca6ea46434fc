"""Every statement of a selection compiles for the warehouses that have a SQLAlchemy dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateTableAs

from stages.warehouse.profile import coverage
from stages.warehouse.selection import conditions as select
from stages.warehouse.selection import pair_splits, repeats
from stages.warehouse.selection import statements as coding
from stages.warehouse.selection.policies import ActivityPolicy, ItemPolicy

pytestmark = pytest.mark.filterwarnings("ignore")

SIGNALS, BORDERS = ("click", "it's"), (10, 20, 30)
ACTIVITY = ActivityPolicy(min_events=3, max_events=90, window_days=7, signals=("click",), weights={"click": 0.5})
ITEMS = ItemPolicy(min_support=50, active_within_days=3, max_age_days=30, states=("published",))


def bigquery() -> Any:
    from sqlalchemy_bigquery import BigQueryDialect

    return BigQueryDialect()


def snowflake() -> Any:
    from snowflake.sqlalchemy.snowdialect import SnowflakeDialect

    return SnowflakeDialect()


def trino() -> Any:
    from trino.sqlalchemy.dialect import TrinoDialect

    return TrinoDialect()


def databricks() -> Any:
    from databricks.sqlalchemy import DatabricksDialect

    return DatabricksDialect()


def _statements() -> Iterator[tuple[str, sa.Select[Any]]]:
    yield "survey", select.survey_statement(SIGNALS, 30, 1)
    yield "context times", coding.context_times(SIGNALS, 1, 30)
    yield "users", coding.user_counts(SIGNALS, 1, 30)
    yield "coded", coding.coded_statement(SIGNALS, 1, 30, with_context=True)
    yield "coded from an item on", coding.coded_statement(SIGNALS, 1, 30, with_context=False, first_item=7)
    yield "unlisted items", coding.unlisted_items(SIGNALS, 1, 30)
    yield "first times", coding.first_times(repeats.CODED.c.item_index)
    yield "activity", coding.activity_statement(SIGNALS, BORDERS, ACTIVITY)
    yield "eligibility", coding.eligibility_statement(BORDERS, ITEMS)
    yield "activity of coded", coding.activity_statement(SIGNALS, BORDERS, ACTIVITY, {"click": 0, "it's": 1})
    yield "keys with repeats", repeats.repeated_keys(1, 2, 3)
    yield "first", repeats.repeated_rows(1, 2, 3)
    yield "first of very many", repeats.repeated_rows(1 << 31, 1 << 31, 3)
    yield "first of a stretch", repeats.first_rows(10, 20)
    yield "repeats", repeats.kept_rows({0: "first", 1: "sum", 2: "max", 3: "last"}, BORDERS)
    kept = repeats.kept_rows({0: "first"}, ()).subquery("kept_events")
    for method in ("leave_last_out", "user_ratio", "users", "given"):
        yield method, pair_splits.split_rows(kept, pair_splits.PairSplit(method=method, held_out=(0,)))
    yield "marked twice", pair_splits.pairs_marked_twice(repeats.CODED, pair_splits.PairSplit(method="given"))
    for who in ("users", "items"):
        yield f"coverage of {who}", coverage.coverage_statement(who, SIGNALS, (1, 2), ACTIVITY, (1, 5))
    yield "histogram", repeats.time_histogram(repeats.CODED, 1, 10)
    yield "time at", repeats.time_at(repeats.CODED, 5)


STATEMENTS = list(_statements())


@pytest.mark.parametrize("dialect", [bigquery, snowflake, trino, databricks])
@pytest.mark.parametrize(("name", "statement"), STATEMENTS, ids=[name for name, _ in STATEMENTS])
def test_a_statement_compiles(dialect: Callable[[], Any], name: str, statement: sa.Select[Any]) -> None:
    text = str(statement.compile(dialect=dialect(), compile_kwargs={"literal_binds": True}))
    assert (text.startswith("SELECT") and "interactions" in text) or "coded_events" in text or "selected" in text
    assert ":" not in text.replace("it''s", "").replace("it\\'s", ""), "no parameter is left open"
    if name in {"first", "repeats"}:
        assert text.count("row_number() OVER (PARTITION BY") >= 1
    made = str(CreateTableAs(statement, "made").compile(dialect=dialect()))
    assert "CREATE TABLE" in made
