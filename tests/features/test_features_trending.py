"""Trending: exact sliding windows by brute force, segments, files, bounds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.tables import DAY_MS, EventTable, RequestTable
from stages.features.config import FeatureConfig, TrendingConfig, TrendsConfig
from stages.features.state import FunnelState
from stages.features.trending import COLUMNS, Trending
from tests.features.plain.replay import replay

T0 = 10_000 * DAY_MS
MINUTE = 60_000
N = 8
SIGNALS = ("click", "rating", "impression")
TASKS = (Task(name="click", signals=("click", "rating"), relevance=1.0),)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
ONE_LIST = TrendingConfig(windows_minutes=(10, 60), weights=(1.0, 0.5))
TWO = TrendsConfig(lists={"trending": ONE_LIST})
REGION_LIST = ONE_LIST.model_copy(update={"segment": "region", "segment_smoothing": 2.0})
BY_REGION = TrendsConfig(lists={"trending": REGION_LIST})
MakeItems = Callable[..., ItemTable]


def empty_state(make_items: MakeItems, trending: TrendsConfig | None) -> FunnelState:
    return FunnelState.empty(make_items(), FeatureConfig(), SIGNALS, TASKS, context=CONTEXT, trending=trending)


def log_of(touches: list[tuple[int, int, tuple[int, ...]]], config: TrendsConfig) -> Trending:
    """Touches (item, minute, positions of context values)."""
    arrays = {f"trending_{name}": np.zeros(0, dtype) for name, dtype in COLUMNS.items()}
    log = Trending(config, CONTEXT, arrays, N)
    for item, minute, context in touches:
        log.add(item, T0 + minute * MINUTE, context)
    return log


def named(pool: tuple[np.ndarray, np.ndarray]) -> dict[int, float]:
    return dict(zip(pool[0].tolist(), pool[1].tolist(), strict=True))


def test_shares_of_both_windows_are_weighed() -> None:
    log = log_of([(3, 0, ()), (3, 20, ()), (1, 45, ()), (1, 55, ()), (2, 60, ())], TWO)
    # At minute 60: five touches since minute 0 (included), of which those at 55 and 60 in the last ten minutes.
    assert named(log.scores(T0 + 60 * MINUTE)) == pytest.approx(
        {1: 1 / 2 + 0.5 * 2 / 5, 2: 1 / 2 + 0.5 * 1 / 5, 3: 0.5 * 2 / 5}
    )
    assert named(log.scores(T0 + 66 * MINUTE)) == pytest.approx({1: 0.5 * 2 / 4, 2: 1.0 + 0.5 * 1 / 4, 3: 0.5 * 1 / 4})
    assert named(log.scores(T0 + 121 * MINUTE)) == {}


def test_a_read_before_the_newest_touch_is_as_of_it_and_changes_nothing() -> None:
    log = log_of([(3, 0, ()), (1, 45, ())], TWO)
    now = named(log.scores(T0 + 45 * MINUTE))
    assert named(log.scores(T0 - DAY_MS)) == now
    assert named(log.scores(T0 + DAY_MS)) == {}
    assert named(log.scores(T0 + 45 * MINUTE)) == now


def test_a_late_touch_counts_at_the_newest_time() -> None:
    late, punctual = (log_of([(3, 60, ()), (1, minute, ())], TWO) for minute in (5, 60))
    assert named(late.scores(T0 + 65 * MINUTE)) == named(punctual.scores(T0 + 65 * MINUTE)) == {1: 0.75, 3: 0.75}


def test_a_segments_share_is_smoothed_by_everybodys() -> None:
    north, south = 3, 4  # positions among the values of both columns
    log = log_of([(1, 0, (0, north)), (1, 1, (north,)), (2, 2, (1, south)), (3, 3, ())], BY_REGION)
    time_ms = T0 + 5 * MINUTE
    everybody = {1: 1.5 * 2 / 4, 2: 1.5 / 4, 3: 1.5 / 4}
    assert named(log.scores(time_ms)) == pytest.approx(everybody)
    south_only = {1: 1.5 * (2 * 0.5) / 3, 2: 1.5 * (1 + 2 * 0.25) / 3, 3: 1.5 * (2 * 0.25) / 3}
    assert named(log.scores(time_ms, segment=2)) == pytest.approx(south_only)
    assert [log.segment(codes) for codes in ((1, 2), (3, 0), ())] == [2, 0, 0]


TOUCHES = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 200), st.integers(0, 2)), max_size=60)


@given(TOUCHES, st.integers(0, 300), st.integers(0, 2))
def test_counts_equal_a_scan_of_all_touches(touches: list[tuple[int, int, int]], minute: int, segment: int) -> None:
    touches.sort(key=lambda touch: touch[1])
    log = log_of([(item, at, (2 + code,) if code else ()) for item, at, code in touches], BY_REGION)
    now = max([minute, *(at for _, at, _ in touches)])
    wanted: dict[int, float] = {}
    for window, weight in zip(REGION_LIST.windows_minutes, REGION_LIST.weights, strict=True):
        inside = [(item, code) for item, at, code in touches if at >= now - window]
        own = [item for item, code in inside if code == segment]
        for item in {item for item, at, _ in touches if at >= now - 60}:
            share = sum(other == item for other, _ in inside) / max(len(inside), 1)
            if segment:
                share = (own.count(item) + 2 * share) / (len(own) + 2)
            wanted[item] = wanted.get(item, 0.0) + weight * share
    found = named(log.scores(T0 + minute * MINUTE, segment))
    assert found == pytest.approx(wanted)
    assert list(found) == sorted(found)


SEVERAL = TrendsConfig(
    lists={
        "trending": REGION_LIST,
        "trending_30": TrendingConfig(windows_minutes=(30,), weights=(1.0,)),
        "segment_trending_90": TrendingConfig(
            windows_minutes=(90,), weights=(1.0,), segment="region", segment_smoothing=2.0
        ),
    }
)


@given(TOUCHES, st.integers(0, 300), st.integers(0, 2))
def test_each_list_is_that_of_a_state_with_this_list_alone(
    touches: list[tuple[int, int, int]], minute: int, segment: int
) -> None:
    touches.sort(key=lambda touch: touch[1])
    added = [(item, at, (2 + code,) if code else ()) for item, at, code in touches]
    together = log_of(added, SEVERAL)
    for name, listed in SEVERAL.lists.items():
        alone = log_of(added, TrendsConfig(lists={"trending": listed}))
        found = named(together.scores(T0 + minute * MINUTE, segment, name))
        assert found == named(alone.scores(T0 + minute * MINUTE, segment))
    shares = named(together.scores(T0 + minute * MINUTE, segment, "trending_30"))
    assert sum(shares.values()) == pytest.approx(1.0 if shares else 0.0), "a list over all users reads no segment"


def test_lists_of_one_state_share_one_log_and_one_segment() -> None:
    assert SEVERAL.windows_minutes == (10, 30, 60, 90)
    assert log_of([], SEVERAL).arrays.counts.shape[1:] == (4, N)
    with pytest.raises(ReleaseError, match="nothing for the generator 'trending_1h', its lists are trending, "):
        log_of([], SEVERAL).scores(T0, 0, "trending_1h")
    other = TrendingConfig(segment="device")
    with pytest.raises(ValidationError, match=r"segments and smoothing .*'device'.*: allowed is one for all lists"):
        TrendsConfig(lists={"trending": REGION_LIST, "other": other})


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), st.integers(0, N - 1), st.integers(0, 9), st.integers(0, 2)),
        st.tuples(st.just("read"), st.integers(-90, 90), st.integers(0, 2)),
    ),
    max_size=40,
)


@given(STEPS)
def test_reads_between_touches_change_nothing(steps: list[tuple]) -> None:
    """Whatever was read before, and at whichever moment, counts are those of a log that is read for the first time."""
    log, touches, minute = log_of([], BY_REGION), [], 0
    for kind, *values in steps:
        if kind == "touch":
            item, later, code = values
            minute += later
            touches.append((item, minute, (2 + code,) if code else ()))
            log.add(item, T0 + minute * MINUTE, touches[-1][2])
        else:
            shift, segment = values
            moment = T0 + (minute + shift) * MINUTE
            assert named(log.scores(moment, segment)) == named(log_of(touches, BY_REGION).scores(moment, segment))


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, N - 1),
        st.integers(0, 2),
        st.just(1.0),
        st.integers(0, 300).map(lambda minute: T0 + minute * MINUTE),
        st.integers(0, 4),
    ),
    max_size=40,
)


@given(EVENTS, st.integers(0, 40), st.integers(0, 2))
def test_saved_loaded_and_advanced_equals_replay(
    make_items: MakeItems,
    make_events: Callable[..., EventTable],
    make_requests: Callable[..., RequestTable],
    events: list[tuple[int, ...]],
    cut: int,
    region: int,
) -> None:
    ordered = sorted(events, key=lambda event: event[4])
    offline = empty_state(make_items, BY_REGION)
    list(replay(make_events(ordered), make_requests([(0, T0 + 301 * MINUTE)]), offline, CONTEXTS))
    before = empty_state(make_items, BY_REGION)

    def apply(state: FunnelState, rows: list[tuple[int, ...]]) -> None:
        for *event, moment in rows:
            state.apply(*event, state.context_values(CONTEXTS[moment].tolist()))

    apply(before, ordered[:cut])
    with tempfile.TemporaryDirectory() as directory:
        before.save(Path(directory))
        online = FunnelState.load(
            Path(directory), before.items, before.config, SIGNALS, TASKS, CONTEXT, trending=BY_REGION
        )
        apply(online, ordered[cut:])
        for minute in (0, 150, 301, 330):
            pools = [state.trending.scores(T0 + minute * MINUTE, region) for state in (online, offline)]
            for column in range(2):
                np.testing.assert_array_equal(pools[0][column], pools[1][column])


def test_only_first_touches_count(make_items: MakeItems) -> None:
    state = empty_state(make_items, TWO)
    for user, item, signal in ((0, 1, 0), (0, 1, 1), (0, 2, 2), (1, 1, 0), (1, 4, 1)):
        state.apply(user, item, signal, 1.0, T0)
    assert state.trending is not None
    assert named(state.trending.scores(T0)) == pytest.approx({1: 1.5 * 2 / 3, 4: 1.5 / 3})


def test_memory_is_bounded_by_the_longest_window() -> None:
    log = log_of([], TWO)
    for minute in range(20_000):
        log.add(minute % N, T0 + minute * MINUTE)
        if minute % 100 == 99:
            assert log.scores(T0 + minute * MINUTE)[1].sum() == pytest.approx(1.5)
    assert len(log.arrays.items) == 1024
    assert sum(named(log.scores(T0 + 19_999 * MINUTE)).values()) == pytest.approx(1.5)


def test_a_state_that_counts_no_trends_has_no_such_files(make_items: MakeItems, tmp_path: Path) -> None:
    empty_state(make_items, None).save(tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if "trending" in path.name]
    assert "trending" not in json.loads((tmp_path / "state.json").read_text())
    with pytest.raises(ReleaseError, match="trending = None, expected"):
        FunnelState.load(tmp_path, make_items(), FeatureConfig(), SIGNALS, TASKS, CONTEXT, trending=TWO)


def test_columns_of_unequal_length_are_refused(make_items: MakeItems, tmp_path: Path) -> None:
    state = empty_state(make_items, TWO)
    state.apply(0, 1, 0, 1.0, T0)
    state.save(tmp_path)
    np.save(tmp_path / "trending_segments.npy", np.zeros(2, dtype=np.int16))
    with pytest.raises(ReleaseError, match=r"trending_segments\.npy': 2.* must be equally long"):
        FunnelState.load(tmp_path, make_items(), FeatureConfig(), SIGNALS, TASKS, CONTEXT, trending=TWO)


def test_an_unknown_segment_is_refused(make_items: MakeItems) -> None:
    with pytest.raises(ConfigError, match=r"segment = 'age': unknown, the context columns are \['device', 'region'\]"):
        by_age = ONE_LIST.model_copy(update={"segment": "age"})
        empty_state(make_items, TrendsConfig(lists={"trending": by_age}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"windows_minutes": (60, 10), "weights": (1, 1)}, "strictly ascending"),
        ({"windows_minutes": (10,)}, "must be as many"),
        ({"windows_minutes": (0,), "weights": (1,)}, "greater than 0"),
    ],
)
def test_windows_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrendingConfig(**values)
