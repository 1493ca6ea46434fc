"""Coverage of the days that followed, against its definition in plain Python, on both databases."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from stages.contracts.tables import DAY_MS
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest_tables
from stages.warehouse.profile.coverage import cover_days, coverage_statement, day_starts
from stages.warehouse.selection.policies import ActivityPolicy

Row = tuple[str, str, str, float, int]
AS_OF = 12 * DAY_MS + 7_000
SIGNALS = ("click", "like")
THRESHOLDS = (1, 3, 8)
POLICIES = [
    ActivityPolicy(),
    ActivityPolicy(window_days=2.5),
    ActivityPolicy(window_days=4, max_events=10, signals=("click", "noise"), weights={"noise": 0.25}),
]


def world(seed: int, n: int = 500) -> list[Row]:
    rng = random.Random(seed)
    users = [f"u{number}" for number in range(15)]
    return [
        (
            rng.choice(users[: rng.randint(1, 15)]),
            f"i{rng.randint(0, 9)}",
            rng.choice([*SIGNALS, "noise"]),
            1.0,
            rng.choice([rng.randrange(13 * DAY_MS), AS_OF - 3 * DAY_MS, AS_OF - 3 * DAY_MS - 1]),
        )
        for _ in range(n)
    ]


def load(warehouse: Warehouse, rows: list[Row]) -> None:
    names = ["user_id", "item_id", "signal", "value", "event_time_ms"]
    interactions = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    items = pa.table(
        {
            "item_id": pa.array([], pa.string()),
            "title": pa.array([], pa.string()),
            "categories": pa.array([], pa.string()),
            "created_at_ms": pa.array([], pa.int64()),
            "duration_s": pa.array([], pa.float64()),
        }
    )
    users = pa.table({"user_id": pa.array([], pa.string()), "attributes": pa.array([], pa.string())})
    ingest_tables(warehouse, interactions, items, users, "world")


def wanted(rows: list[Row], place: int, policy: ActivityPolicy, starts: tuple[int, ...]) -> list[tuple[int, ...]]:
    found = []
    for start in starts:
        came = Counter(row[place] for row in rows if row[2] in SIGNALS and start <= row[4] < start + DAY_MS)
        before: Counter[str] = Counter()
        since = 0 if policy.window_days is None else start - round(policy.window_days * DAY_MS)
        for row in rows:
            if row[2] in (policy.signals or SIGNALS) and since <= row[4] < start:
                before[row[place]] += policy.weights.get(row[2], 1)  # type: ignore[assignment]
        for threshold in THRESHOLDS:
            most = policy.max_events or 1 << 60
            passed = [key for key in came if threshold <= before[key] <= most]
            found.append((start, threshold, len(came), len(passed), came.total(), sum(came[key] for key in passed)))
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=["ever", "window", "bounds, kinds and weights"])
@pytest.mark.parametrize(("who", "place"), [("users", 0), ("items", 1)])
def test_every_day_and_threshold(warehouse: Warehouse, who: Any, place: int, policy: ActivityPolicy) -> None:
    rows, starts = world(seed=place), day_starts(AS_OF, 9)
    load(warehouse, rows)
    found = cover_days(warehouse, who, SIGNALS, starts, policy, THRESHOLDS)
    values = [(row.start_ms, row.threshold, row.seen, row.covered, row.events, row.covered_events) for row in found]
    assert values == wanted(rows, place, policy, starts)
    assert 0 < sum(row.covered for row in found) < sum(row.seen for row in found)


@pytest.mark.parametrize("policy", POLICIES, ids=["ever", "window", "bounds, kinds and weights"])
def test_events_are_read_once(policy: ActivityPolicy) -> None:
    text = str(coverage_statement("users", SIGNALS, day_starts(AS_OF, 9), policy, THRESHOLDS))
    assert text.count("FROM interactions") == 1
    assert "GROUP BY interactions.user_id)" in text, "not by day as well: that would be a row an event"


def test_what_happens_later_changes_no_earlier_day(duck: Warehouse) -> None:
    rows, starts = world(seed=3), day_starts(AS_OF, 9)
    load(duck, [row for row in rows if row[4] < starts[5]])
    early = cover_days(duck, "users", SIGNALS, starts, POLICIES[1], THRESHOLDS)
    load(duck, [row for row in rows if row[4] >= starts[5]])
    late = cover_days(duck, "users", SIGNALS, starts, POLICIES[1], THRESHOLDS)
    assert early[: 5 * 3] == late[: 5 * 3]
    assert early[5 * 3 :] != late[5 * 3 :]


def test_days_without_traffic_are_zero_and_none_begin_before_1970(duck: Warehouse) -> None:
    assert day_starts(int(2.5 * DAY_MS), 9) == (DAY_MS // 2, DAY_MS // 2 + DAY_MS)
    load(duck, [("u", "i", "click", 1.0, DAY_MS // 2 + 5)])
    found = cover_days(duck, "users", SIGNALS, day_starts(int(2.5 * DAY_MS), 9), ActivityPolicy(), (1,))
    assert [(row.seen, row.events, row.covered) for row in found] == [(1, 1, 0), (0, 0, 0)]
