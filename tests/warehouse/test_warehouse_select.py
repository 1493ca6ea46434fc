"""The SELECTs against a plain Python oracle, and DuckDB against PostgreSQL."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from stages.contracts.errors import ConfigError, DataError
from stages.contracts.tables import DAY_MS
from stages.warehouse.database.engine import Warehouse, arrow_batches
from stages.warehouse.ingest.ingest import ingest_tables
from stages.warehouse.selection.conditions import survey_events, window_activity
from stages.warehouse.selection.items import ITEMS_SCHEMA, export_catalogue, matching_items, write_aliases
from stages.warehouse.selection.policies import ActivityPolicy
from stages.warehouse.selection.selection import EVENTS_SCHEMA, CodedSelection, open_selection

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


def stored(warehouse: Warehouse) -> list[dict[str, Any]]:
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM interactions").mappings().all()
    return [{name: value for name, value in row.items() if name not in {"source", "context"}} for row in rows]


@contextmanager
def selected(
    warehouse: Warehouse, batch_rows: int = 37, range_rows: int = 1 << 24, blocked: frozenset[str] = frozenset("a")
) -> Iterator[tuple[CodedSelection, list[str], list[str]]]:
    """A coded selection, with the user and item ids by index."""
    with open_selection(warehouse, SIGNALS, START, BORDERS[-1], batch_rows, range_rows) as selection:
        known = {*export_catalogue(warehouse)["item_id"].to_pylist(), *ALIASES, *ALIASES.values()}
        listed = sorted(known - blocked)
        canonical = [ALIASES.get(name, name) for name in listed]
        contexts = pa.table({"context": pa.array([], pa.string()), "context_index": pa.array([], pa.int32())})
        stands = pa.table({"item_id": pa.array(listed, pa.string()), "canonical_id": pa.array(canonical, pa.string())})
        selection.code(stands, pa.array(sorted(blocked), pa.string()), contexts)
        names, users = (sorted(found["id"].to_pylist()) for found in (selection.items(), selection.users()))
        selection.place(pa.array(names, pa.string()), pa.array(users, pa.string()))
        yield selection, users, names


def coded(
    warehouse: Warehouse, batch_rows: int = 37, range_rows: int = 1 << 24, **repeats: Any
) -> tuple[pa.Table, list[str], list[str]]:
    """Events as integers, with the user and item ids by index."""
    with selected(warehouse, batch_rows, range_rows) as (selection, users, names):
        batches = list(selection.events(BORDERS, repeats))
        assert max(len(batch) for batch in batches) <= batch_rows
        return pa.Table.from_batches(batches), users, names


def test_first_events_match_the_oracle(warehouse: Warehouse) -> None:
    load(warehouse, world(1))
    table, users, names = coded(warehouse)
    found = [
        (users[r["user_index"]], names[r["item_index"]], r["signal"], r["value"], r["event_time_ms"])
        for r in table.to_pylist()
    ]
    seen, expected = set(), []
    for row in sorted(stored(warehouse), key=lambda row: (row["event_time_ms"], row["event_id"])):
        item = ALIASES.get(row["item_id"], row["item_id"])
        key = (row["user_id"], item, row["signal"])
        chosen = row["signal"] in SIGNALS and START <= row["event_time_ms"] < BORDERS[-1] and item != "a"
        if chosen and key not in seen:
            seen.add(key)
            expected.append((*key[:2], SIGNALS.index(row["signal"]), row["value"], row["event_time_ms"]))
    assert found == expected
    assert len(found) > 70
    assert table.schema == EVENTS_SCHEMA


def test_both_databases_give_the_same_rows(duck: Warehouse, postgres: Warehouse) -> None:
    found = []
    for each in (duck, postgres):
        load(each, world(2))
        repeated = [coded(each, **{SIGNALS[0]: policy})[0] for policy in ("last", "sum", "max")]
        found.append((coded(each)[0], *repeated, export_catalogue(each), each.content_fingerprint()))
    assert found[0] == found[1]
    assert len({tuple(table["value"].to_pylist()) for table in found[0][:4]}) == 4


def test_repeats_show_only_what_was_known(warehouse: Warehouse) -> None:
    early, late = BORDERS[0] - 10, BORDERS[0] + 10
    rows = [("u0", "i1", "click", value, early + n) for n, value in enumerate((0.1, 0.3, 0.2))]
    rows += [("u0", "i1", "click", value, late + n) for n, value in enumerate((0.25, 0.5, 0.5, 0.4))]
    load(warehouse, rows)

    def values(policy: str) -> list[tuple[int, float]]:
        table = coded(warehouse, click=policy)[0]
        return list(zip(table["event_time_ms"].to_pylist(), table["value"].to_pylist(), strict=True))

    assert values("first") == [(early, 0.1)]
    assert values("last") == [(early + 2, 0.2), (late, 0.25), (late + 1, 0.5), (late + 2, 0.5), (late + 3, 0.4)]
    assert values("max") == [(early + 1, 0.3), (late + 1, 0.5)]
    assert values("sum") == [(early + 2, 0.6), (late, 0.85), (late + 1, 1.35), (late + 2, 1.85), (late + 3, 2.25)]


@pytest.mark.parametrize("range_rows", [1, 7, 50, 100_000])
def test_stretches_of_time_change_no_row(duck: Warehouse, range_rows: int) -> None:
    load(duck, world(5))
    assert coded(duck, range_rows=range_rows) == coded(duck)


def test_pairs_too_many_for_one_number_change_no_row(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    load(warehouse, world(5))
    packed = coded(warehouse)
    monkeypatch.setattr("stages.warehouse.selection.repeats._PACKED_KEYS", 1)
    assert coded(warehouse) == packed
    assert len(packed[0]) < len(stored(warehouse))


def test_quantiles_are_times_of_the_sorted_first_events(warehouse: Warehouse) -> None:
    load(warehouse, world(6))
    with selected(warehouse) as (selection, _, _):
        shares = [0.0, 0.1, 0.5, 0.77, 0.999, 1.0]
        found = selection.time_quantiles(shares)
        times = pa.Table.from_batches(selection.events(BORDERS, {}))["event_time_ms"].to_pylist()
    assert list(found) == [times[min(int(share * len(times)), len(times) - 1)] for share in shares]


@pytest.mark.parametrize("weights", [{}, {SIGNALS[0]: 0.5, SIGNALS[1]: 3.0}, {SIGNALS[1]: 0.0}])
@pytest.mark.parametrize("signals", [None, SIGNALS[:1], ("noise", SIGNALS[0])])
@pytest.mark.parametrize("blocked", [frozenset(), frozenset("a")])
@pytest.mark.parametrize("window_days", [1, 3, None])
def test_activity_is_that_of_the_events_as_they_are_stored(
    duck: Warehouse,
    weights: dict[str, float],
    signals: tuple[str, ...] | None,
    blocked: frozenset[str],
    window_days: float | None,
) -> None:
    load(duck, world(7))
    policy = ActivityPolicy(min_events=1, max_events=9, window_days=window_days, signals=signals, weights=weights)
    with selected(duck, blocked=blocked) as (selection, users, _):
        bits = selection.user_activity(BORDERS, policy, len(users))
    events = stored(duck)
    for row, user in enumerate(users):
        for part, end in enumerate(BORDERS):
            count = sum(
                weights.get(event["signal"], 1.0)
                for event in events
                if event["user_id"] == user
                and event["signal"] in (signals or SIGNALS)
                and policy.start_ms(end) <= event["event_time_ms"] < end
            )
            assert bool(bits[row] >> part & 1) == (1 <= count <= 9), (user, part, count)
    assert bits.astype(bool).sum() > 0


def test_scratch_of_a_killed_process_goes_and_ours_does_not_stay(duck: Warehouse) -> None:
    load(duck, world(8))
    path = Path(str(duck.url.database))
    left = path.parent / f"{path.name}.selection-1-killed"
    left.mkdir()
    with selected(duck):
        assert not left.exists()
        assert [each.name for each in path.parent.glob(f"{path.name}.selection-*/*")] == ["scratch.duckdb"]
    assert not list(path.parent.glob(f"{path.name}.selection-*"))


def test_survey_and_window(warehouse: Warehouse) -> None:
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

    per_user: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["signal"] in SIGNALS and BORDERS[1] - DAY_MS <= row["event_time_ms"] < BORDERS[1]:
            per_user[row["user_id"]] += 1
    one_day = ActivityPolicy(window_days=1)
    assert window_activity(warehouse, SIGNALS, BORDERS[1], one_day) == (len(per_user), max(per_user.values()))
    heavier = one_day.model_copy(update={"weights": {SIGNALS[0]: 0.5, SIGNALS[1]: 0.0}, "signals": SIGNALS[:1]})
    assert window_activity(warehouse, SIGNALS, BORDERS[1], heavier)[1] < max(per_user.values())
    assert window_activity(warehouse, ("absent",), BORDERS[1], ActivityPolicy()) == (0, 0)


def test_first_times_are_those_of_what_stands_for_an_item(warehouse: Warehouse) -> None:
    rows = [("u0", "i1", "click", 1.0, START + 5), ("u1", "i0", "click", 1.0, START + 7)]
    rows += [("u2", "B", "click", 1.0, START + 9), ("u2", "B", "click", 1.0, START + 8)]
    rows += [("u3", "a", "click", 1.0, START + 1), ("u4", "never", "click", 1.0, START + 2)]
    load(warehouse, rows)
    with selected(warehouse, blocked=frozenset({"a", "never"})) as (selection, users, names):
        found = [dict(zip(*each.to_pydict().values(), strict=True)) for each in (selection.items(), selection.users())]
        assert found == [{"i0": START + 5, "B": START + 8}, {"u0": START + 5, "u1": START + 7, "u2": START + 8}]
        assert (names, users) == (["B", "i0"], ["u0", "u1", "u2"])
        events = pa.Table.from_batches(list(selection.events(BORDERS, {})))
        assert list(zip(*(events[name].to_pylist() for name in EVENTS_SCHEMA.names[:2]), strict=True)) == [
            (0, 1),
            (1, 1),
            (2, 0),
        ]
        selection.place(pa.array(["i0"]), pa.array(users))
        with pytest.raises(ValueError, match="an event's user or item is not among the ids"):
            list(selection.events(BORDERS, {}))


def test_a_selection_leaves_the_databases_settings_as_they_were(duck: Warehouse) -> None:
    load(duck, world(1))
    query = "SELECT current_setting('preserve_insertion_order'), current_setting('perfect_ht_threshold')"

    def settings() -> Any:
        with duck.connect() as connection:
            return connection.exec_driver_sql(query).one()

    before = settings()
    with selected(duck):
        pass
    assert settings() == before


def test_the_catalogue_comes_out_as_it_was_ingested(warehouse: Warehouse) -> None:
    """Ids that only events mention are left to the events."""
    load(warehouse, [("u0", "i1", "click", 1.0, 50), ("Zoë", "Ä", "click", 1.0, 70)])
    found = export_catalogue(warehouse)
    assert found.schema == ITEMS_SCHEMA
    names = ("item_id", "title", "categories", "created_at_ms", "duration_s", "text", "state")
    assert [tuple(row[name] for name in names) for row in found.to_pylist()] == [
        ("i0", "Zero", "A|B", 5, 1.5, None, None),
        ("i1", "i1", "", None, None, None, None),
        ("never", "Never seen", "C", -7, None, None, None),
    ]


def test_aliases_are_replaced_and_chains_refused(warehouse: Warehouse) -> None:
    write_aliases(warehouse, "k", {"a": "b", "c": "d", "e": "e"})
    write_aliases(warehouse, "k", {"a": "x"})
    write_aliases(warehouse, "k", {"a": "x"})
    write_aliases(warehouse, "l", {"a": "y"})
    with warehouse.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM item_aliases ORDER BY snapshot_key").all()
    assert [tuple(row) for row in rows] == [("k", "a", "x"), ("l", "a", "y")]
    with pytest.raises(DataError, match="'a' is a duplicate of 'b', which is a duplicate of 'c'"):
        write_aliases(warehouse, "k", {"a": "b", "b": "c"})


def test_wrong_borders_and_signals_are_refused(duck: Warehouse) -> None:
    with pytest.raises(ConfigError, match="signals: empty"), open_selection(duck, [], 0, 6):
        pass
    with pytest.raises(ConfigError, match="start_ms = 6 must be before end_ms = 6"), open_selection(duck, ["x"], 6, 6):
        pass
    with open_selection(duck, ["x"], 0, 6) as selection, pytest.raises(ConfigError, match=r"borders = \[5, 5\] after"):
        list(selection.events([5, 5], {}))


AWKWARD = ["", None, "a,b", 'say "hi"', "two\nlines", "\\N", "Zoë", " spaced ", "t", "NULL"]


def test_copy_loses_nothing(postgres: Warehouse) -> None:
    numbers = [0.1, 1e-300, 1.7976931348623157e308, -0.0, None, 2.0**53, 1 / 3, 5e-324, 1e22, 123456789.123456789]
    values = sa.values(sa.column("n", sa.Integer), sa.column("t", sa.Text), sa.column("v", sa.Double), name="awkward")
    rows = [(n, text, number) for n, (text, number) in enumerate(zip(AWKWARD, numbers, strict=True))]
    table = values.data(rows)
    statement = sa.select(table.c.n, table.c.t, table.c.v, (table.c.n > 4).label("b")).order_by(table.c.n)
    schema = pa.schema([("n", pa.int64()), ("t", pa.string()), ("v", pa.float64()), ("b", pa.bool_())])
    with postgres.connect() as connection:
        found = pa.Table.from_batches(arrow_batches(connection, statement, schema, 3), schema=schema)
        single = sa.select(table.c.t).order_by(table.c.n)
        only = pa.Table.from_batches(arrow_batches(connection, single, pa.schema([("t", pa.string())]), 100))
    assert found["t"].to_pylist() == AWKWARD == only["t"].to_pylist()
    assert found["v"].to_pylist() == numbers
    assert found["b"].to_pylist() == [n > 4 for n in range(10)]


def test_an_abandoned_or_refused_copy_leaves_no_thread_and_no_lock(postgres: Warehouse) -> None:
    n = sa.func.generate_series(1, 3_000_000).column_valued("n")
    schema = pa.schema([("n", pa.int64())])
    with postgres.connect() as connection:
        batches = arrow_batches(connection, sa.select(n), schema, 1000)
        assert next(batches).column(0)[0].as_py() == 1
        batches.close()
    with (
        postgres.connect() as connection,
        pytest.raises(Exception, match="division by zero"),
    ):
        list(arrow_batches(connection, sa.select(sa.cast(10, sa.Integer) // (n - 2_000_000)), schema, 1000))
    with postgres.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    assert [thread.name for thread in threading.enumerate() if thread.name == "copy"] == []


def test_a_predicate_runs_in_the_warehouse(warehouse: Warehouse) -> None:
    items = pa.table(
        {
            "item_id": ["a", "b", "Z"],
            "title": ["Gun shop", "Garden: 10%", "gunmetal"],
            "categories": ["Arms", "Home", "Home"],
            "created_at_ms": [1, 2, 3],
            "duration_s": [1.0, 2.0, 3.0],
        }
    )
    events = pa.table({"user_id": ["u"], "item_id": ["a"], "signal": ["c"], "value": [1.0], "event_time_ms": [5]})
    users = pa.table({"user_id": ["u"], "attributes": ["{}"]})
    ingest_tables(warehouse, events, items, users, "world")
    assert matching_items(warehouse, "arms", "categories LIKE '%Arms%' OR title LIKE 'gun%'") == ["Z", "a"]
    assert matching_items(warehouse, "odd", "title = 'Garden: 10%'") == ["b"]
    with pytest.raises(ConfigError, match=r"content.predicates.bad = 'nonsense = 1': .*nonsense"):
        matching_items(warehouse, "bad", "nonsense = 1")
