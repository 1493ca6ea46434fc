"""FunnelState: histories, counters, the popular list, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.snapshot import ItemTable, Task
from stages.contracts.tables import DAY_MS
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState

CLICK, RATING, IMPRESSION = 0, 1, 2
T0 = 10_000 * DAY_MS
MakeState = Callable[..., FunnelState]


def test_history_is_newest_first_distinct_and_cut(make_state: MakeState) -> None:
    events = [(0, item, CLICK, 1.0, T0 + item) for item in (2, 5, 1)]
    state = make_state([*events, (0, 2, CLICK, 1.0, T0 + 9)], history_length=2)
    history = state.history(0)
    assert history.items.tolist() == [1, 5]
    assert history.times_ms.tolist() == [T0 + 1, T0 + 5]
    assert [column.dtype.name for column in vars(history).values()] == ["int64", "int64", "int16", "float32"]
    assert state.touched(0).tolist() == [2, 5, 1], "seen items are never cut, a repeat does not move its item"
    assert state.last_event_ms(0) == T0 + 9


def test_a_repeat_raises_signal_and_value_but_never_lowers_them(make_state: MakeState) -> None:
    state = make_state([(0, 3, CLICK, 1.0, T0)])
    state.apply(0, 3, RATING, 0.9, T0 + 1)
    assert (state.history(0).signals[0], state.history(0).values[0]) == (RATING, np.float32(0.9))
    state.apply(0, 3, RATING, 0.8, T0 + 2)
    state.apply(0, 3, CLICK, 5.0, T0 + 3)
    assert (state.history(0).signals[0], state.history(0).values[0]) == (RATING, np.float32(0.9))
    assert state.history(0).times_ms.tolist() == [T0]


def test_counters_count_pairs_once_and_events_each_time(make_state: MakeState) -> None:
    state = make_state(
        [
            (0, 3, CLICK, 1.0, T0),
            (0, 3, RATING, 0.5, T0 + 1),
            (0, 3, RATING, 0.75, T0 + 2),
            (0, 3, RATING, 1.0, T0 + 3),
            (1, 3, RATING, 0.25, T0 + 4),
            (1, 4, IMPRESSION, 1.0, T0 + 5),
        ]
    )
    assert state.touches[3] == 2
    assert state.positives[:, 3].tolist() == [2, 1], "a pair is positive for a task once"
    assert (state.item_events[3], state.item_value_sum[3]) == (5, 3.5)
    assert (state.exposures[4], state.touches[4]) == (1, 0)
    assert state.touched(1).tolist() == [3], "an impression is no touch"
    assert state.popularity(T0, None).tolist() == [0, 0, 0, 2, 0, 0, 0, 0]
    assert [state.total(name) for name in ("touches", "exposures", "item_events", "item_value_sum")] == [2, 1, 5, 3.5]
    assert [state.task_total(0), state.task_total(1)] == [2, 1]


def test_a_value_is_compared_as_float32_like_the_event_table(make_state: MakeState) -> None:
    """0.7 is below the float64 threshold once it went through float32: live and replayed must agree."""
    live, replayed = make_state([(0, 1, RATING, 0.7, T0)]), make_state([(0, 1, RATING, float(np.float32(0.7)), T0)])
    assert live.positives[1, 1] == replayed.positives[1, 1] == 1


def test_categories_count_once_each(make_state: MakeState) -> None:
    state = make_state([(0, 1, CLICK, 1.0, T0), (1, 4, CLICK, 1.0, T0)])
    assert state.category_counts.read(0, T0).tolist() == [0, 2, 0, 1]


def test_an_unknown_user_is_served_and_grows_the_state(make_state: MakeState) -> None:
    state = make_state()
    assert state.history(70).items.tolist() == state.touched(70).tolist() == []
    assert state.last_event_ms(70) is None
    assert state.n_users == 0
    state.apply(70, 1, CLICK, 1.0, T0)
    assert state.n_users == 71
    assert state.history(70).items.tolist() == [1]


def test_popular_ranks_born_items_without_the_excluded_ones(make_state: MakeState) -> None:
    touched = [
        (user, item, CLICK, 1.0, T0) for item, users in ((6, 3), (2, 2), (4, 2), (1, 4)) for user in range(users)
    ]
    state = make_state(touched)
    none = np.zeros(0, dtype=np.int64)
    assert state.popular(T0, 4, none).ids.tolist() == [1, 6, 2, 4], "ties by item index"
    assert state.popular(T0, 3, none).ids.tolist() == [1, 6, 2]
    assert state.popular(T0, 4, np.array([1, 2])).ids.tolist() == [6, 4, 0, 3]
    assert state.popular(T0 - 3 * DAY_MS, 9, none).ids.tolist() == [6, 4, 3, 5, 7], "0, 1, 2 are not born"
    assert len(state.popular(T0, 0, none)) == 0


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ((-1, 0, 0, 1.0, T0), "user_index = -1"),
        ((0, 8, 0, 1.0, T0), "item_index = 8, allowed are 0 to 7"),
        ((0, -1, 0, 1.0, T0), "item_index = -1"),
        ((0, 0, 3, 1.0, T0), "signal = 3"),
        ((0, 0, 0, float("nan"), T0), "value = nan"),
        ((0, 0, 0, 1e39, T0), "value = 1e"),
        ((0, 0, 0, 1.0, 1 << 61), "time_ms"),
    ],
)
def test_a_wrong_event_is_refused_and_changes_nothing(make_state: MakeState, event: tuple, field: str) -> None:
    state = make_state()
    with pytest.raises(DataError, match=field):
        state.apply(*event)
    assert state.n_users == 0
    assert state.total("item_events") == 0


def saved(make_state: MakeState, directory: Path) -> tuple[ItemTable, FeatureConfig, tuple[str, ...], tuple[Task, ...]]:
    state = make_state([(0, 3, CLICK, 1.0, T0), (2, 3, RATING, 1.0, T0), (2, 5, CLICK, 1.0, T0 + 1)])
    state.save(directory)
    return state.items, state.config, state.signals, state.tasks


def test_load_returns_what_was_saved_and_leaves_the_files_alone(make_state: MakeState, tmp_path: Path) -> None:
    arguments = saved(make_state, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    state = FunnelState.load(tmp_path, *arguments)
    assert state.n_users == 3
    assert [state.touched(user).tolist() for user in range(4)] == [[3], [], [3, 5], []]
    assert state.covisitation.neighbours(5)[0].tolist() == [3]
    state.apply(1, 5, CLICK, 1.0, T0 + 2)
    assert state.touched(1).tolist() == [5]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy", ".json"}


def test_load_refuses_another_world(
    make_state: MakeState, make_items: Callable[..., ItemTable], tmp_path: Path
) -> None:
    items, config, signals, tasks = saved(make_state, tmp_path)
    with pytest.raises(ReleaseError, match="n_items = 8, expected 9"):
        FunnelState.load(tmp_path, make_items(9), config, signals, tasks)
    with pytest.raises(ReleaseError, match="signals ="):
        FunnelState.load(tmp_path, items, config, signals[:2], tasks)
    with pytest.raises(ReleaseError, match="config ="):
        FunnelState.load(tmp_path, items, FeatureConfig(history_length=3), signals, tasks)


def test_load_names_the_broken_file(make_state: MakeState, tmp_path: Path) -> None:
    arguments = saved(make_state, tmp_path)
    cases: list[tuple[str, np.ndarray, str]] = [
        ("touches", np.zeros(8), "float64, expected int64"),
        ("touches", np.zeros(7, dtype=np.int64), "shape"),
        ("users_items", np.zeros(2, dtype=np.int64), "2 entries, its offsets end at 3"),
        ("touches", np.array([{}], dtype=object), "not a readable array"),
    ]
    for name, broken, message in cases:
        path = tmp_path / f"{name}.npy"
        whole = path.read_bytes()
        np.save(path, broken, allow_pickle=True)
        with pytest.raises(ReleaseError, match=message):
            FunnelState.load(tmp_path, *arguments)
        path.write_bytes(whole)
    (tmp_path / "touches.npy").unlink()
    with pytest.raises(ReleaseError, match=r"touches\.npy"):
        FunnelState.load(tmp_path, *arguments)
    (tmp_path / "state.json").write_text(json.dumps([])[:1])
    with pytest.raises(ReleaseError, match=r"state\.json"):
        FunnelState.load(tmp_path, *arguments)
