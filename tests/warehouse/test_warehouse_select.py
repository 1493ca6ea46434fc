"""The SELECTs against a plain Python oracle, and DuckDB against PostgreSQL."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.tables import DAY_MS
from stages.warehouse.catalogue import export_items, export_users, write_aliases
from stages.warehouse.engine import Warehouse
from stages.warehouse.ingest import ingest_tables
from stages.warehouse.select import (
    ActivityPolicy,
    _labelled,
    activity_counts,
    export_events,
    survey_events,
    time_quantiles,
    window_activity,
)

Row = tuple[str, str, str, float, int]
SIGNALS = ("click", "50%'s :x $1 ?")
BORDERS = (6 * DAY_MS, 8 * DAY_MS, 10 * DAY_MS)
START = 2 * DAY_MS
ALIASES = {"i1": "i0", "Ä": "i2"}


def world(seed: int, n: int = 400) -> list[Row]:
    rng = random.Random(seed)
    users, items = [f"u{i}" for i in range(12)] + ["Zoë", "a b"], [f"i{i}" for i in range(6)] + ["Ä", "a", "B"]
    rows = []
    for _ in range(n):
        signal = rng.choice([*SIGNALS, "noise"])
        time_ms = rng.randrange(24 * 12) * DAY_MS // 24
        rows.append((rng.choice(users[: rng.randint(1, 14)]), rng.choice(items), signal, rng.random() / 3, time_ms))
    return rows + rows[:20]


def load(warehouse: Warehouse, rows: list[Row]) -> None:
    names = ["user_id", "item_id", "signal", "value", "event_time_ms"]
    interactions = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    items = pa.table(
        {
            "item_id": ["i0", "i1", "never"],
            "title": ["Zero", "", "Never seen"],
            "categories": ["A|B", "", "C"],
            "created_at_ms": pa.array([5, None, -7], pa.int64()),
            "duration_s": pa.array([1.5, None, None], pa.float64()),
        }
    )
    users = pa.table({"user_id": ["u0"], "attributes": ['{"b": 1, "a": "x"}']})
    report = ingest_tables(warehouse, interactions, items, users, "world")
    assert report.rows_loaded == len(rows) + 4


def oracle(events: list[dict[str, Any]], policy: ActivityPolicy) -> list[dict[str, Any]]:
    """First of each key in a scan by (time, id); activity counted for every row on its own."""
    kinds = policy.signals or SIGNALS
    seen, kept = set(), []
    for event in sorted(events, key=lambda row: (row["event_time_ms"], row["event_id"])):
        if event["signal"] not in SIGNALS or not START <= event["event_time_ms"] < BORDERS[-1]:
            continue
        item = ALIASES.get(event["item_id"], event["item_id"])
        key = (event["user_id"], item, event["signal"])
        if key in seen:
            continue
        seen.add(key)
        part = next(p for p, end in enumerate(BORDERS) if event["event_time_ms"] < end)
        end = BORDERS[part]
        since = 0 if policy.window_days is None else end - policy.window_days * DAY_MS
        n = sum(
            row["user_id"] == event["user_id"] and row["signal"] in kinds and since <= row["event_time_ms"] < end
            for row in events
        )
        active = n >= policy.min_events and (policy.max_events is None or n <= policy.max_events)
        kept.append({**event, "item_id": item, "part": part, "active": active})
    return kept


def stored(warehouse: Warehouse) -> list[dict[str, Any]]:
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM interactions").mappings().all()
    return [{name: value for name, value in row.items() if name not in {"source", "context"}} for row in rows]


POLICIES = [
    ActivityPolicy(min_events=12, window_days=2),
    ActivityPolicy(min_events=3, max_events=15, window_days=5, signals=("noise",)),
    ActivityPolicy(min_events=20),
    ActivityPolicy(min_events=0),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_events_match_the_oracle(warehouse: Warehouse, policy: ActivityPolicy) -> None:
    load(warehouse, world(1))
    write_aliases(warehouse, "key", ALIASES)
    write_aliases(warehouse, "other", {"i3": "i4"})
    batches = list(export_events(warehouse, "key", SIGNALS, START, BORDERS, policy, batch_rows=37))
    found = [row for batch in batches for row in batch.to_pylist()]
    expected = oracle(stored(warehouse), policy)
    assert found == expected
    assert max(len(batch) for batch in batches) <= 37
    if policy.min_events:
        assert {row["active"] for row in found} == {True, False}

    counts = activity_counts(warehouse, "key", SIGNALS, START, BORDERS, policy)
    selected = [r for r in stored(warehouse) if r["signal"] in SIGNALS and START <= r["event_time_ms"] < BORDERS[-1]]
    assert counts.events == len(selected)
    assert counts.users == len({row["user_id"] for row in selected})
    assert counts.duplicates == len(selected) - len(expected) > 20
    for part in range(3):
        rows = [row for row in expected if row["part"] == part]
        idle = [row for row in rows if not row["active"]]
        assert counts.part_users[part] == len({row["user_id"] for row in rows})
        assert counts.removed_users[part] == len({row["user_id"] for row in idle})
        assert counts.removed_events[part] == len(idle)


def test_both_databases_give_the_same_rows(duck: Warehouse, postgres: Warehouse) -> None:
    for each in (duck, postgres):
        load(each, world(2))
        write_aliases(each, "key", ALIASES)
    tables = []
    for each in (duck, postgres):
        events = pa.Table.from_batches(export_events(each, "key", SIGNALS, START, BORDERS, POLICIES[0]))
        assert [*events.schema.types][-2:] == [pa.int8(), pa.bool_()]
        tables.append((events, export_items(each), export_users(each), each.content_fingerprint()))
    assert tables[0] == tables[1]
    assert len(tables[0][0]) > 80


def test_later_events_change_no_earlier_row(duck: Warehouse) -> None:
    rows = world(3)
    early = [row for row in rows if row[4] < BORDERS[1]]
    load(duck, early)
    policy = ActivityPolicy(min_events=8, window_days=3)
    before = [r for b in export_events(duck, "k", SIGNALS, START, BORDERS, policy) for r in b.to_pylist()]
    load_more = [row for row in rows if row[4] >= BORDERS[1]]
    names = ["user_id", "item_id", "signal", "value", "event_time_ms"]
    table = pa.table(dict(zip(names, map(list, zip(*load_more, strict=True)), strict=True)))
    empty = pa.table({name: pa.array([], pa.string()) for name in ("item_id", "title", "categories")}).append_column(
        "created_at_ms", pa.array([], pa.int64())
    )
    items = empty.append_column("duration_s", pa.array([], pa.float64()))
    users = pa.table({"user_id": pa.array([], pa.string()), "attributes": pa.array([], pa.string())})
    ingest_tables(duck, table, items, users, "world")
    after = [r for b in export_events(duck, "k", SIGNALS, START, BORDERS, policy) for r in b.to_pylist()]
    assert len(after) > len(before) > 50
    assert [row for row in after if row["part"] < 2] == [row for row in before if row["part"] < 2]


def test_survey_quantiles_and_window(warehouse: Warehouse) -> None:
    load(warehouse, world(4))
    rows = stored(warehouse)
    survey = survey_events(warehouse, SIGNALS, BORDERS[-1], START)
    chosen = [row["event_time_ms"] for row in rows if row["signal"] in SIGNALS]
    kept = [time for time in chosen if START <= time < BORDERS[-1]]
    assert survey.n_events == len(rows)
    assert survey.n_other_signals == len(rows) - len(chosen)
    assert survey.n_after_as_of == sum(time >= BORDERS[-1] for time in chosen) > 0
    assert survey.n_before_start == sum(time < START for time in chosen) > 0
    assert survey.first_ms == min(kept)
    assert survey_events(warehouse, SIGNALS, BORDERS[-1], None).n_before_start == 0
    assert survey_events(warehouse, ("absent",), BORDERS[-1], None).first_ms is None

    first = list(export_events(warehouse, "none", SIGNALS, START, BORDERS, ActivityPolicy()))
    times = [row["event_time_ms"] for batch in first for row in batch.to_pylist()]
    shares = (0.0, 0.6, 0.8, 1.0)
    expected = tuple(times[min(int(share * len(times)), len(times) - 1)] for share in shares)
    assert time_quantiles(warehouse, "none", SIGNALS, START, BORDERS[-1], shares) == expected
    assert time_quantiles(warehouse, "none", ("absent",), START, BORDERS[-1], shares) == ()

    per_user: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["signal"] in SIGNALS and BORDERS[1] - DAY_MS <= row["event_time_ms"] < BORDERS[1]:
            per_user[row["user_id"]] += 1
    assert window_activity(warehouse, SIGNALS, BORDERS[1], 1) == (len(per_user), max(per_user.values()))
    assert window_activity(warehouse, ("absent",), BORDERS[1], None) == (0, 0)


def test_items_and_users_without_a_row_come_out(warehouse: Warehouse) -> None:
    rows = [("u0", "i1", "click", 1.0, 50), ("Zoë", "Ä", "click", 1.0, 70), ("a", "b", "view", 1.0, 90)]
    load(warehouse, [*rows, ("Zoë", "B", "click", 1.0, 60), ("Zoë", "Ä", "click", 1.0, 65)])
    items = export_items(warehouse).to_pylist()
    assert [row["item_id"] for row in items] == sorted(["B", "b", "i0", "i1", "never", "Ä"], key=str.encode)
    names = ("title", "categories", "created_at_ms", "duration_s", "first_event_ms")
    by_id = {row["item_id"]: tuple(row[name] for name in names) for row in items}
    assert by_id["i0"] == ("Zero", "A|B", 5, 1.5, None)
    assert by_id["i1"] == ("i1", "", None, None, 50)
    assert by_id["never"] == ("Never seen", "C", -7, None, None)
    assert by_id["Ä"] == ("Ä", "", None, None, 65)
    assert [r["item_id"] for r in export_items(warehouse, 65, ["click"]).to_pylist()] == ["B", "i0", "i1", "never"]
    users = export_users(warehouse, as_of_ms=90).to_pylist()
    assert [tuple(row.values()) for row in users] == [("Zoë", "{}", 60), ("u0", '{"a":"x","b":1}', 50)]


def test_aliases_are_replaced_and_chains_refused(warehouse: Warehouse) -> None:
    write_aliases(warehouse, "k", {"a": "b", "c": "d", "e": "e"})
    write_aliases(warehouse, "k", {"a": "x"})
    write_aliases(warehouse, "k", {"a": "x"})
    write_aliases(warehouse, "l", {"a": "y"})
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM item_aliases ORDER BY snapshot_key").all()
    assert [tuple(row) for row in rows] == [("k", "a", "x"), ("l", "a", "y")]
    with pytest.raises(DataError, match="'a' stands for 'b', which stands for 'c'"):
        write_aliases(warehouse, "k", {"a": "b", "b": "c"})


def test_wrong_borders_and_signals_are_refused(duck: Warehouse) -> None:
    with pytest.raises(ConfigError, match=r"borders = \[5, 5\] after start_ms = 0"):
        list(export_events(duck, "k", ["click"], 0, [5, 5], ActivityPolicy()))
    with pytest.raises(ConfigError, match="signals: empty"):
        list(export_events(duck, "k", [], 0, [5, 6], ActivityPolicy()))
    assert list(export_events(duck, "k", ["click"], 0, [5, 6], ActivityPolicy())) == []


def test_postgresql_joins_no_table_row_by_row(postgres: Warehouse) -> None:
    """Without statistics its planner took ten minutes for the join of 100,000 rows that takes a second."""
    load(postgres, world(3))
    with postgres.connect() as connection:
        events = _labelled("none", SIGNALS, START, BORDERS, ActivityPolicy(min_events=2, window_days=3))
        statement = sa.select(events.c.event_id).order_by(events.c.event_time_ms)
        sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True})).replace("%%", "%")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {sql.replace('%', '%%')}").scalars())
        counted = connection.execute(sa.text("SELECT reltuples FROM pg_class WHERE relname = 'interactions'")).scalar()
    assert "Join" in plan
    assert "Nested Loop" not in plan
    assert counted >= 400, "the load left no statistics behind"
