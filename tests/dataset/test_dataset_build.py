from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import DAY_MS
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetConfig, DatasetStepConfig

CLICK = Task(name="click", signals=("click",), relevance=1.0)
LIKE = Task(name="like", signals=("like",), relevance=0.5)
DAYS = {"split": {"ranker_days": 10, "evaluation_days": 10}, "history_days": 30}
Row = tuple[str, str, str, float, int]


def config_of(**changes: Any) -> DatasetStepConfig:
    values: dict[str, Any] = {
        "signals": ("click", "like"),
        "tasks": (CLICK, LIKE),
        "activity": {"min_events": 2},
        "as_of_ms": 30 * DAY_MS,
        "warehouse_fingerprint": "w",
        "requests": {"targets_per_request": 2},
    }
    return DatasetStepConfig.model_validate(values | changes)


def rows_of(n: int, seed: int = 0, n_users: int = 8, n_items: int = 20) -> list[Row]:
    rng = random.Random(seed)
    return [
        (
            f"u{rng.randrange(n_users)}",
            f"i{rng.randrange(n_items):02d}",
            rng.choice(["click", "click", "like"]),
            1.0,
            rng.randrange(30 * DAY_MS),
        )
        for _ in range(n)
    ]


@pytest.fixture
def build(tmp_path: Path, list_source: Callable[..., Any]) -> Callable[..., Snapshot]:
    numbers = iter(range(1_000_000))

    def run(rows: list[Row], items: list[Any] | None = None, **changes: Any) -> Snapshot:
        directory = tmp_path / f"{next(numbers)}"
        directory.mkdir()
        build_snapshot(config_of(**changes), list_source(rows, items or []), directory)
        return Snapshot(directory)

    return run


def test_snapshot_is_what_the_contract_says(build: Callable[..., Snapshot]) -> None:
    items = [
        ("i00", "Toy", "Fun|Kids", 5, 60.0),
        ("i99", "New", "Kids", None, None),
        ("i98", "Later", "", 99 * DAY_MS, 1.0),
    ]
    snapshot = build(rows_of(300), items)
    events, requests, targets, table = snapshot.events(), snapshot.requests(), snapshot.targets(), snapshot.items()
    assert np.all(np.diff(events.event_time_ms) >= 0)
    assert requests.request_id.tolist() == list(range(len(requests)))
    assert np.all(np.diff(requests.request_time_ms) >= 0)
    assert set(targets.request_id.tolist()) == set(range(len(requests)))
    assert np.all(targets.relevance == targets.labels @ np.array([1.0, 0.5], dtype=np.float32))
    assert np.all(targets.relevance > 0)
    order = np.lexsort((targets.item_index, targets.request_id))
    assert order.tolist() == list(range(len(order)))
    assert table.item_id[-1] == "i99" and table.created_at_ms[-1] == 30 * DAY_MS  # unknown birth, no event
    assert "i98" not in table.item_id.tolist()
    toy = table.item_id.tolist().index("i00")
    assert toy == 0 and table.title[0] == "Toy" and table.duration_s[0] == 60.0
    codes = table.category_codes[table.category_offsets[0] : table.category_offsets[1]]
    assert [snapshot.meta.categories[code] for code in codes] == ["Fun", "Kids"]
    assert np.isnan(table.duration_s[1:]).all() and table.n_categories == 2
    assert snapshot.meta.counts["items_created_after_as_of"] == 1
    assert snapshot.meta.counts["items_missing_from_catalogue"] == 19
    assert np.all(np.diff(table.created_at_ms) >= 0)
    assert pq.read_schema(snapshot.directory / "items.parquet").field("categories").type.value_type == "int32"


def test_no_target_was_seen_before_its_request_and_borders_hold(build: Callable[..., Snapshot]) -> None:
    snapshot = build(rows_of(600, n_users=12, n_items=60))
    events, requests, targets, borders = (
        snapshot.events(),
        snapshot.requests(),
        snapshot.targets(),
        snapshot.meta.borders,
    )
    ends = [borders.candidate_end_ms, borders.ranker_end_ms]
    assert events.part.tolist() == np.searchsorted(ends, events.event_time_ms, side="right").tolist()
    assert requests.part.tolist() == np.searchsorted(ends, requests.request_time_ms, side="right").tolist()
    for request, item in zip(targets.request_id, targets.item_index, strict=True):
        user, time = requests.user_index[request], requests.request_time_ms[request]
        touched = (events.user_index == user) & (events.item_index == item)
        assert events.event_time_ms[touched].min() >= time
    shares = [snapshot.meta.counts[f"{name}_events"] / len(events) for name in ("candidate", "ranker", "evaluation")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.01)


def test_pairs_are_unique_after_duplicates_were_merged(build: Callable[..., Snapshot]) -> None:
    items = [("i01", "Café!", "", 3, None), ("i00", "cafe", "", 2, None), ("i02", "Other", "", 1, None)]
    rows = [*rows_of(200, seed=3), ("u0", "i01", "click", 1.0, 5), ("u0", "i00", "click", 1.0, 6)]
    merged, apart = build(rows, items), build(rows, items, duplicates={"method": "none"})
    events = merged.events()
    keys = np.stack([events.user_index, events.item_index, events.signal], axis=1)
    assert len(np.unique(keys, axis=0)) == len(events)
    table = merged.items()
    assert merged.aliases() == {"i01": table.item_id.tolist().index("i00")}
    assert "i01" not in table.item_id.tolist()
    assert merged.meta.counts["items_duplicate"] == 1
    assert apart.aliases() == {} and "i01" in apart.items().item_id.tolist()
    assert apart.meta.fingerprint != merged.meta.fingerprint


def test_the_order_of_input_does_not_matter(build: Callable[..., Snapshot]) -> None:
    rows = [(*row[:4], row[4] // DAY_MS * DAY_MS) for row in rows_of(300)]  # many ties
    items = [(f"i{n:02d}", f"Title {n % 5}", "", n, 1.0) for n in range(20)]
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = build(rows, items), build(shuffled, items[::-1])
    assert first.meta == second.meta
    assert build([*rows, ("new", "i00", "click", 1.0, 5)], items).meta.fingerprint != first.meta.fingerprint
    changed = [(*items[0][:4], 2.0), *items[1:]]
    assert build(rows, changed).meta.fingerprint != first.meta.fingerprint


def test_a_cap_on_all_requests_belongs_to_the_seed_and_the_fingerprint(build: Callable[..., Snapshot]) -> None:
    rows, size = rows_of(600, n_users=12, n_items=60), {"targets_per_request": 1}
    capped = {"requests": {**size, "max_ranker_requests": 20, "max_evaluation_requests": 10}}
    every, first, again = build(rows, requests=size), build(rows, **capped), build(rows, **capped)
    other = build(rows, **capped, seed=1)
    for name in ("events", "requests", "targets"):
        files = [(snapshot.directory / f"{name}.parquet").read_bytes() for snapshot in (first, again)]
        assert files[0] == files[1]
    assert first.meta == again.meta
    assert len({snapshot.meta.fingerprint for snapshot in (every, first, other)}) == 3
    roomy = {f"max_{part}_requests": 10**6 for part in ("ranker", "evaluation")}
    assert build(rows, requests={**size, **roomy}).meta.fingerprint == every.meta.fingerprint
    assert np.bincount(first.requests().part).tolist() == [0, 20, 10]
    for part, most in (("ranker", 20), ("evaluation", 10)):
        left_out = every.meta.counts[f"{part}_requests"] - most
        assert first.meta.counts[f"{part}_requests_not_sampled"] == left_out > 0


def test_as_of_time_and_history_leave_events_out(build: Callable[..., Snapshot]) -> None:
    rows = rows_of(300)
    late = [("u0", "i00", "click", 1.0, 30 * DAY_MS), ("u9", "i77", "like", 1.0, 40 * DAY_MS)]
    counted = build([*rows, *late, ("u0", "i00", "view", 1.0, 3)])
    assert counted.meta.fingerprint == build(rows).meta.fingerprint
    assert counted.meta.counts["events_after_as_of"] == 2
    assert counted.meta.counts["events_of_other_signals"] == 1
    shorter = build(rows, history_days=20)
    assert shorter.events().event_time_ms.min() >= 10 * DAY_MS == shorter.meta.borders.start_ms
    assert shorter.meta.counts["events_before_history"] == sum(row[4] < 10 * DAY_MS for row in rows)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Row], list[Row], int]:
    """Two logs that agree before a border (day 10 or 20) and differ in any way after it."""
    border = draw(st.sampled_from([10, 20]))
    event = st.tuples(
        st.sampled_from([f"u{n}" for n in range(6)]),
        st.sampled_from([f"i{n:02d}" for n in range(12)]),
        st.sampled_from(["click", "like"]),
        st.sampled_from([0.5, 1.0]),
    )

    def rows(first: int, last: int, size: int) -> list[Row]:
        times = st.integers(first * 4, last * 4 - 1)  # six-hour steps make ties
        drawn = draw(st.lists(st.tuples(event, times), max_size=size))
        return [(*row, time * DAY_MS // 4) for row, time in drawn]

    def anchors(first: int) -> list[Row]:
        return [("a", f"i{first + n:02d}", "click", 1.0, first * DAY_MS + n) for n in range(3)]

    before = anchors(0) + rows(0, border, 40)
    middle = [] if border == 10 else anchors(10)
    versions = [rows(border, 30, 30) + ([] if border == 20 else anchors(10)) + anchors(20) for _ in range(2)]
    return before + middle + versions[0], before + middle + versions[1], border


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds(), st.integers(1, 3), st.sampled_from([None, 1, 2]), st.sampled_from([None, 1, 3]))
def test_later_events_change_nothing_of_earlier_parts(
    build: Callable[..., Snapshot], logs: tuple[list[Row], list[Row], int], size: int, cap: int | None, most: int | None
) -> None:
    first_rows, second_rows, border = logs
    items = [(f"i{n:02d}", f"Title {n % 9}", f"c{n % 4}", None if n % 3 else n * DAY_MS, None) for n in range(12)]
    requests = {
        "targets_per_request": size,
        "window_days": 4,
        "max_requests_per_user": cap,
        "max_ranker_requests": most,
    }
    found = []
    for rows in (first_rows, second_rows):
        snapshot = build(rows, items, requests=requests, **DAYS)
        events, asked, targets = snapshot.events(), snapshot.requests(), snapshot.targets()
        rows_before = events.take(events.event_time_ms < border * DAY_MS)
        asked_before = asked.take(asked.request_time_ms < border * DAY_MS)
        answers = targets.request_id < len(asked_before)
        n_users = len(np.unique(rows_before.user_index))
        table = snapshot.items()
        known = int((table.created_at_ms < border * DAY_MS).sum())
        assert len(rows_before) == 0 or rows_before.user_index.max() == n_users - 1
        assert len(rows_before) == 0 or rows_before.item_index.max() < known
        found.append(
            [
                *(getattr(rows_before, name).tolist() for name in rows_before.TYPES),
                *(getattr(asked_before, name).tolist() for name in asked_before.TYPES),
                *(column[answers].tolist() for column in (targets.request_id, targets.item_index, targets.labels)),
                snapshot.user_ids()[:n_users].tolist(),
                table.item_id[:known].tolist(),
                table.created_at_ms[:known].tolist(),
                table.category_codes[: table.category_offsets[known]].tolist(),
            ]
        )
    assert found[0] == found[1]


def test_nobody_active_names_the_threshold(build: Callable[..., Snapshot]) -> None:
    rows = rows_of(200)
    with pytest.raises(EmptyDatasetError, match=r"min_events = 500 .*window_days = 7 .*8 users.* \d+ events"):
        build(rows, activity={"min_events": 500, "window_days": 7})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"signals": ("buy",), "tasks": (Task(name="b", signals=("buy",), relevance=1),)}, "200 are of other signals"),
        ({"as_of_ms": 0}, "200 are not before as_of = 0"),
    ],
)
def test_nothing_left_says_why(build: Callable[..., Snapshot], changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(EmptyDatasetError, match=wanted):
        build(rows_of(200), **changes)


def test_an_empty_warehouse_says_so(build: Callable[..., Snapshot]) -> None:
    with pytest.raises(EmptyDatasetError, match="holds no events"):
        build([])


def test_empty_parts_too_few_items_and_no_requests_are_refused(build: Callable[..., Snapshot]) -> None:
    rows = rows_of(200)
    with pytest.raises(DataError, match=r"evaluation part \[.*\) ms has no events"):
        build([row for row in rows if row[4] < 20 * DAY_MS], **DAYS)
    with pytest.raises(DataError, match=r"dataset.split .*must increase"):
        build([(*row[:4], 5) for row in rows])
    with pytest.raises(DataError, match=r"dataset.split .*must increase"):
        build(rows, history_days=10, split={"ranker_days": 10, "evaluation_days": 10})
    with pytest.raises(DataError, match="min_items = 21: found 20 items"):
        build(rows, min_items=21)
    bought = Task(name="bought", signals=("click",), min_value=5, relevance=1)
    with pytest.raises(DataError, match=r"ranker part gives no request: .*\['bought'\]"):
        build(rows, tasks=(bought,))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"tasks": [{"name": "x", "signals": ["buy"], "relevance": 1}]}, "allowed"),
        ({"tasks": [{"name": "x", "signals": ["click"]}]}, "relevance above 0"),
        ({"signals": ["click", "click"]}, "must not repeat"),
        ({"split": {"candidate_share": 0.8, "ranker_share": 0.2}}, "below 1"),
        ({"split": {"ranker_days": 3}}, "together"),
        ({"activity": {"min_events": 3, "max_events": 2}}, "at least min_events"),
        ({"requests": {"targets_per_request": 0}}, "greater than or equal to 1"),
        ({"requests": {"max_ranker_requests": 0}}, r"max_ranker_requests\n.*greater than or equal to 1"),
        ({"requests": {"max_evaluation_requests": 0}}, r"max_evaluation_requests\n.*greater than or equal to 1"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes: dict[str, Any], wanted: str) -> None:
    values = {"signals": ["click"], "tasks": [{"name": "click", "signals": ["click"], "relevance": 1}]}
    with pytest.raises(ValidationError, match=wanted):
        DatasetConfig.model_validate(values | changes)
