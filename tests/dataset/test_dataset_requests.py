from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.snapshot import Targets, Task
from stages.contracts.tables import DAY_MS, PART_EVALUATION, PART_RANKER, EventTable, RequestTable
from stages.dataset.config import RequestConfig
from stages.dataset.requests import build_requests

SIGNALS = ("click", "like")
TASKS = (Task(name="click", signals=("click",), relevance=1.0), Task(name="like", signals=("like",), relevance=2.0))
N_ITEMS = 6
Row = tuple[int, int, int, int, int, bool]  # user, item, day, signal, part, active


def events_of(rows: list[Row], values: list[float] | None = None) -> EventTable:
    columns = np.array([row[:5] for row in rows], dtype=np.int64).reshape(-1, 5)
    return EventTable(
        user_index=columns[:, 0],
        item_index=columns[:, 1],
        event_time_ms=columns[:, 2] * DAY_MS,
        signal=columns[:, 3].astype(np.int16),
        value=np.array(values if values else [1.0] * len(rows), dtype=np.float32),
        part=columns[:, 4].astype(np.int8),
        active=np.array([row[5] for row in rows], dtype=bool),
    )


def build(rows: list[Row], tasks: tuple[Task, ...] = TASKS, **config: Any) -> dict[tuple[int, int], list[Any]]:
    """Return ``{(user, request day): [(item, labels), ...]}``."""
    requests, targets, _ = build_requests(events_of(rows), N_ITEMS, RequestConfig(**config), tasks, SIGNALS, (), 0)
    return as_dict(requests, targets)


def as_dict(requests: RequestTable, targets: Targets) -> dict[tuple[int, int], list[Any]]:
    found: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for request, item, labels in zip(targets.request_id, targets.item_index, targets.labels, strict=True):
        key = int(requests.user_index[request]), int(requests.request_time_ms[request]) // DAY_MS
        found[key].append((int(item), tuple(labels.tolist())))
    return dict(found)


def test_first_touches_are_cut_into_chunks_in_time_order() -> None:
    rows = [(0, item, item + 1, 0, 2, True) for item in range(5)]
    found = build(rows, targets_per_request=2, window_days=100)
    assert {key: [item for item, _ in items] for key, items in found.items()} == {
        (0, 1): [0, 1],
        (0, 3): [2, 3],
        (0, 5): [4],
    }


def test_a_chunk_ends_early_at_the_window() -> None:
    rows = [(0, 0, 1, 0, 2, True), (0, 1, 2, 0, 2, True), (0, 2, 4, 0, 2, True)]
    found = build(rows, targets_per_request=5, window_days=3)
    assert {key: [item for item, _ in items] for key, items in found.items()} == {(0, 1): [0, 1], (0, 4): [2]}


def test_what_was_touched_in_an_earlier_part_is_no_target() -> None:
    rows = [(0, 0, 1, 0, 0, True), (0, 0, 5, 1, 2, True), (0, 1, 6, 0, 2, True)]
    assert build(rows) == {(0, 6): [(1, (1.0, 0.0))]}


def test_ranker_requests_need_active_users_evaluation_requests_do_not() -> None:
    rows = [(0, 0, 1, 0, 1, False), (1, 0, 2, 0, 1, True), (0, 1, 3, 0, 2, False)]
    assert set(build(rows)) == {(1, 2), (0, 3)}


def test_labels_stay_within_the_part_and_the_window() -> None:
    rows = [(0, 0, 1, 0, 1, True), (0, 1, 2, 0, 1, True), (0, 0, 3, 1, 1, True), (0, 1, 9, 1, 2, True)]
    assert build(rows, window_days=7) == {(0, 1): [(0, (1.0, 1.0)), (1, (1.0, 0.0))]}
    assert build(rows, window_days=2) == {(0, 1): [(0, (1.0, 0.0)), (1, (1.0, 0.0))]}


def test_min_value_and_relevance_decide_what_is_a_target() -> None:
    rows = [(0, item, item + 1, 0, 2, True) for item in range(3)]
    tasks = (Task(name="seen", signals=("click",)), Task(name="liked", signals=("click",), min_value=4, relevance=3))
    events = events_of(rows, [5.0, 3.0, 4.0])
    requests, targets, counts = build_requests(events, N_ITEMS, RequestConfig(), tasks, SIGNALS, (), 0)
    assert as_dict(requests, targets) == {(0, 1): [(0, (1.0, 1.0)), (2, (1.0, 1.0))]}
    assert targets.relevance.tolist() == [3.0, 3.0]
    assert counts["evaluation_touches_without_relevance"] == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_cap_spreads_requests_evenly(seed: int) -> None:
    rows = [(0, item, item, 0, 2, True) for item in range(20)]
    config = RequestConfig(targets_per_request=1, window_days=1, max_requests_per_user=5)
    requests, _, counts = build_requests(events_of(rows), 20, config, TASKS, SIGNALS, (), seed)
    days = requests.request_time_ms // DAY_MS
    assert np.diff(days).tolist() == [4] * 4 and days[0] < 4
    assert counts["evaluation_requests_over_the_cap"] == 15


CAPS = {PART_RANKER: "max_ranker_requests", PART_EVALUATION: "max_evaluation_requests"}
NAMES = {PART_RANKER: "ranker", PART_EVALUATION: "evaluation"}


def one_a_touch(rows: list[Row], seed: int = 0, **caps: int | None) -> tuple[list[list[int]], dict[str, int]]:
    """Return the items that a part's requests ask for, one a request in the order of time, by part; and the counts."""
    config = RequestConfig(targets_per_request=1, window_days=1, **{"max_requests_per_user": None, **caps})
    requests, targets, counts = build_requests(events_of(rows), len(rows) + 1, config, TASKS, SIGNALS, (), seed)
    assert targets.request_id.tolist() == requests.request_id.tolist() == list(range(len(requests)))
    return [targets.item_index[requests.part == part].tolist() for part in range(3)], counts


users_and_days = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60)


@given(users_and_days, st.sampled_from(list(CAPS)), st.integers(1, 40), st.integers(0, 1_000))
def test_a_cap_on_all_requests_keeps_every_stretch_of_time_its_share(
    raw: list[tuple[int, int]], part: int, cap: int, seed: int
) -> None:
    other = PART_RANKER + PART_EVALUATION - part
    touches = sorted((day + 20 * of, user, of) for user, day in raw for of in CAPS)
    rows = [(user, item, day, 0, of, True) for item, (day, user, of) in enumerate(touches)]
    every, _ = one_a_touch(rows)
    kept, counts = one_a_touch(rows, seed, **{CAPS[part]: cap})
    assert kept[other] == every[other]
    assert len(kept[part]) == counts[f"{NAMES[part]}_requests"] == min(cap, len(raw))
    assert counts[f"{NAMES[part]}_requests_not_sampled"] == len(raw) - len(kept[part])
    assert counts[f"{NAMES[other]}_requests_not_sampled"] == 0
    so_far = np.cumsum(np.isin(every[part], kept[part]))
    assert [item for item in every[part] if item in set(kept[part])] == kept[part]
    share = np.arange(1, len(raw) + 1) * len(kept[part]) / max(1, len(raw))
    assert np.all(np.abs(so_far - share) < 1)


def test_a_cap_on_all_requests_gives_each_the_same_chance() -> None:
    rows = [(item % 3, item, item, 0, PART_EVALUATION, True) for item in range(10)]
    drawn = [one_a_touch(rows, seed, max_evaluation_requests=3)[0][PART_EVALUATION] for seed in range(2_000)]
    assert drawn[5] == one_a_touch(rows, 5, max_evaluation_requests=3)[0][PART_EVALUATION]
    shares = np.bincount(np.concatenate(drawn), minlength=10) / len(drawn)
    np.testing.assert_allclose(shares, 0.3, atol=0.05)


def test_the_cap_a_user_comes_before_the_cap_on_all() -> None:
    busy = [(0, item, item, 0, PART_RANKER, True) for item in range(20)]
    rows = busy + [(user, 19 + user, 19 + user, 0, PART_RANKER, True) for user in range(1, 5)]
    kept, counts = one_a_touch(rows, max_requests_per_user=2, max_ranker_requests=3)
    assert len(kept[PART_RANKER]) == 3 and sum(item < 20 for item in kept[PART_RANKER]) <= 2
    assert (counts["ranker_requests_over_the_cap"], counts["ranker_requests_not_sampled"]) == (18, 3)


@pytest.mark.parametrize("cap", [1, 2])
def test_one_request_stays_and_no_request_stays_none(cap: int) -> None:
    one, counts = one_a_touch([(0, 0, 1, 0, PART_RANKER, True)], max_ranker_requests=cap, max_evaluation_requests=cap)
    assert one == [[], [0], []]
    assert counts["ranker_requests_not_sampled"] == counts["evaluation_requests_not_sampled"] == 0


def test_no_events_of_a_part_give_no_requests() -> None:
    assert build([(0, 0, 1, 0, 0, True)]) == {}


def oracle(rows: list[Row], size: int, window: int) -> dict[tuple[int, int], list[Any]]:
    """The definition, row by row."""
    found: dict[tuple[int, int], list[Any]] = {}
    for part in (1, 2):
        for user in {row[0] for row in rows}:
            own = [row for row in rows if row[0] == user]
            first: dict[int, Row] = {}
            for row in own:
                first.setdefault(row[1], row)

            def labels(item: int, since: int, own: list[Row] = own, part: int = part) -> tuple[float, float]:
                signals = {r[3] for r in own if r[1] == item and r[4] == part and r[2] < since + window}
                return float(0 in signals), float(1 in signals)

            queue = [row for row in first.values() if row[4] == part and (part == 2 or row[5])]
            queue = [row for row in queue if any(labels(row[1], row[2]))]
            while queue:
                start = queue[0][2]
                chunk = [row for row in queue[:size] if row[2] < start + window]
                queue = queue[len(chunk) :]
                targets = sorted((row[1], labels(row[1], start)) for row in chunk)
                found.setdefault((user, start), []).extend(target for target in targets if any(target[1]))
    return {key: items for key, items in found.items() if items}


rows_strategy = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 29), st.integers(0, 1)), max_size=40
)


@given(rows_strategy, st.integers(1, 4), st.integers(1, 12))
def test_requests_agree_with_the_definition(raw: list[tuple[int, int, int, int]], size: int, window: int) -> None:
    first: dict[tuple[int, int, int], Row] = {}
    for user, item, day, signal in sorted(raw, key=lambda row: row[2]):
        first.setdefault((user, item, signal), (user, item, day, signal, day // 10, user != 1))
    rows = list(first.values())
    found = build(rows, targets_per_request=size, window_days=window, max_requests_per_user=None)
    wanted = oracle(rows, size, window)
    assert {key: sorted(items) for key, items in found.items()} == {k: sorted(v) for k, v in wanted.items()}
