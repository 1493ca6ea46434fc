"""Each contract is broken by a small literal table, and holds exactly on its limit, on both databases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from stages.contracts.tables import DAY_MS
from stages.dataset.checks.run import CONTRACTS

if TYPE_CHECKING:
    from conftest import World

    from stages.dataset.checks.results import ContractReport, ContractResult
    from stages.warehouse.database.engine import Warehouse

DAY_19 = 19 * DAY_MS


@dataclass(frozen=True)
class Case:
    """How a world is spoilt, and the number that its contract must then measure.

    Attributes:
        spoil: takes the healthy world, returns the spoilt one.
        value: the number by hand.
        path: the limits' place in the section ``contracts``.
        side: whether a number ``above`` or ``below`` the limit breaks it.
        rows: the rows to look at, each with at least these values.
    """

    spoil: Callable[[World], World]
    value: float
    path: tuple[str, ...]
    side: str
    rows: list[dict[str, Any]]


def without_today(world: World, *events: Any) -> Any:
    return world.__class__(events=[*world.events[:114], *events])


def today(number: int, signal: str = "click", value: float = 1.0) -> list[Any]:
    return [(f"u{place % 4}", f"i{place % 10}", signal, value, DAY_19 + place) for place in range(number)]


def items_with(**changes: Any) -> Callable[[World], World]:
    """Return a spoiler that changes one attribute of the first two items."""
    place = ("item_id", "title", "categories", "created_at_ms", "duration_s", "text").index(next(iter(changes)))

    def spoil(world: World) -> World:
        value = next(iter(changes.values()))
        spoilt = [(*row[:place], row[0] if value == "own id" else value, *row[place + 1 :]) for row in world.items[:2]]
        return world.__class__(items=[*spoilt, *world.items[2:]])

    return spoil


BROKEN = {
    "keys": Case(
        lambda world: world.plus(("u0", None, "rate", 5.0, 7)),
        1 / 121,
        ("keys",),
        "above",
        [{"user_id": "u0", "item_id": None, "event_time_ms": 7}],
    ),
    "values.value": Case(
        lambda world: world.plus(
            ("u0", "i0", "rate", math.nan, 7), ("u0", "i1", "rate", -math.inf, 8), ("u1", "i0", "click", 1e300, 9)
        ),
        3 / 123,
        ("values",),
        "above",
        [{"value": "nan"}, {"value": "-inf"}, {"value": 1e300}],
    ),
    "values.time": Case(
        lambda world: world.plus(("u0", "i0", "rate", 5.0, -1)),
        1 / 121,
        ("times",),
        "above",
        [{"event_time_ms": -1}],
    ),
    "signals.absent": Case(
        lambda world: world.__class__(dataset={"signals": ("rate", "click", "clik")}),
        1.0,
        ("signals",),
        "above",
        [{"signal": "rate", "events": 80}, {"signal": "click", "events": 40}],
    ),
    "signals.left_out": Case(
        lambda world: world.plus(("u0", "i0", "impression", 1.0, 7)),
        1 / 121,
        ("other_signals",),
        "above",
        [{"signal": "rate"}, {"signal": "click"}, {"signal": "impression", "events": 1}],
    ),
    "freshness": Case(
        lambda world: world.__class__(run={"as_of_ms": DAY_19 + 5 * 3_600_000 + 15 * DAY_MS}),
        15.0,
        ("freshness",),
        "above",
        [{"event_time_ms": DAY_19 + 5 * 3_600_000, "signal": "click"}],
    ),
    "future.now": Case(
        lambda world: world.__class__(run={"now_ms": DAY_19 + 4 * 3_600_000}),
        1 / 120,
        ("future",),
        "above",
        [{"event_time_ms": DAY_19 + 5 * 3_600_000}],
    ),
    "future.as_of": Case(
        lambda world: world.__class__(run={"as_of_ms": DAY_19 + 5 * 3_600_000}),
        1 / 120,
        ("after_as_of",),
        "above",
        [{"event_time_ms": DAY_19 + 5 * 3_600_000}],
    ),
    "volume": Case(
        lambda world: without_today(world, *today(1)),
        1 / 6,
        ("volume",),
        "below",
        [{"day_from_ms": DAY_19, "events": 1}, {"day_from_ms": DAY_19 - DAY_MS, "events": 6}],
    ),
    "label_rates.like.share": Case(
        lambda world: world.plus(*today(4, "rate", 1.0)),
        14 / 32,
        ("label_rates", "share", "like"),
        "below",
        [{"day_from_ms": DAY_19, "events": 10, "positives_like": 2, "of_like": 8}],
    ),
    "label_rates.click.against_median": Case(
        lambda world: world.plus(*today(10)),
        (24 / 52) / (2 / 6),
        ("label_rates",),
        "above",
        [{"day_from_ms": DAY_19, "events": 16, "positives_click": 12, "of_click": 16}],
    ),
    "duplicates.identical": Case(
        lambda world: world.plus(world.events[100], world.events[100], ("u1", "i1", "rate", 1.0, DAY_19 - 7)),
        2 / 123,
        ("duplicates", "identical"),
        "above",
        [{"user_id": "u0", "item_id": "i0", "event_time_ms": 16 * DAY_MS + 4 * 3_600_000, "rows": 3}],
    ),
    "duplicates.repeats": Case(
        lambda world: world.__class__(
            events=[(f"u{place}", "i0", "rate", 1.0, place) for place in range(8)]
            + [("u3", "i0", "rate", 1.0, 99), ("u3", "i0", "rate", 1.0, 98)],
        ),
        0.2,
        ("duplicates", "repeats"),
        "above",
        [{"user_id": "u3", "item_id": "i0", "rows": 3}],
    ),
    "unknown_items": Case(
        lambda world: world.plus(*(("u0", "ghost", "rate", 1.0, place) for place in range(3))),
        3 / 123,
        ("unknown_items",),
        "above",
        [{"item_id": "ghost", "events": 3, "first_ms": 0}],
    ),
    "nulls.title": Case(items_with(title="own id"), 0.2, ("nulls", "title"), "above", [{"title": "i0"}]),
    "nulls.categories": Case(items_with(categories=" "), 0.2, ("nulls", "categories"), "above", [{"item_id": "i0"}]),
    "nulls.created_at": Case(items_with(created_at_ms=None), 0.2, ("nulls", "created_at"), "above", [{}, {}]),
    "nulls.duration": Case(items_with(duration_s=None), 0.2, ("nulls", "duration"), "above", [{}, {}]),
    "nulls.text": Case(items_with(text=""), 0.2, ("nulls", "text"), "above", [{"item_id": "i0"}, {"item_id": "i1"}]),
    "active_users": Case(
        lambda world: world.plus(("idle", "i0", "rate", 1.0, 7)),
        0.8,
        ("active_users",),
        "below",
        [{"user_id": "idle", "events": 0}],
    ),
    "quarantine": Case(
        lambda world: world.__class__(run={"rows_quarantined": 30}),
        0.3,
        ("quarantine",),
        "above",
        [{"file": "clicks.csv", "row_number": 7, "reason": "missing_user_id", "raw": ",i1,soon"}],
    ),
}


def nested(path: tuple[str, ...], limits: dict[str, float | None]) -> dict[str, Any]:
    section: dict[str, Any] = dict(limits)
    for name in reversed(path[1:]):
        section = {name: section}
    own = {"min_positives": 5} if path[0] == "label_rates" else {}
    return {path[0]: own | section}


def result_of(report: ContractReport, name: str) -> ContractResult:
    (found,) = (result for result in report.results if result.name == name)
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_a_contract_breaks_just_beyond_its_limit(
    name: str, world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    case = BROKEN[name]
    spoilt = loaded(case.spoil(world))
    outward = -math.inf if case.side == "above" else math.inf
    others = tuple({contract.name for contract in CONTRACTS} - {name.partition(".")[0]})

    def measured(limit: float) -> ContractResult:
        limits = {"warn_below": None, "fail_below": None, "warn_above": None, "fail_above": None}
        limits |= {f"{level}_{case.side}": limit for level in ("warn", "fail")}
        return result_of(spoilt.check(warehouse, **nested(case.path, limits), skip=others), name)

    held, broken = measured(case.value), measured(math.nextafter(case.value, outward))
    assert (held.level, held.value, held.rows, held.sql) == ("ok", pytest.approx(case.value, rel=1e-12), (), None)
    assert broken.level == "fail"
    assert broken.limits[f"fail_{case.side}"] == math.nextafter(case.value, outward)
    shown = [{key: row[key] for key in wanted} for row, wanted in zip(broken.rows, case.rows, strict=False)]
    assert shown == case.rows
    assert broken.sql is not None
    assert broken.sql.startswith("SELECT")


def test_a_healthy_warehouse_passes_every_contract(
    world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    report = loaded(world).check(warehouse)
    levels = {result.name: result.level for result in report.results}
    assert {name for name, level in levels.items() if level != "ok"} == {"label_rates.watch"}
    assert set(BROKEN) | {"columns"} <= set(levels), "every contract is broken above or in its own test"
    assert levels["label_rates.watch"] == "skipped", "each event is a positive of this task by definition"
    assert report.metrics["contracts_ok"] == len(levels) - 1
    assert report.metrics["volume"] == 1.0


def test_activity_follows_the_weights_of_the_policy(
    world: World, warehouse: Warehouse, loaded: Callable[[World], World]
) -> None:
    weighted = {"activity": {"min_events": 20, "window_days": 10, "weights": {"click": 0.5}}}
    report = loaded(world.__class__(dataset=weighted)).check(warehouse, active_users={"warn_below": 1})
    found = result_of(report, "active_users")
    # In ten days u0 and u1 have ten ratings and ten clicks each, u2 and u3 ten ratings.
    assert (found.value, found.level) == (0.0, "fail")
    assert [row["events"] for row in found.rows] == [15.0, 15.0, 10.0]
    assert "weights = {'click': 0.5}" in found.found
