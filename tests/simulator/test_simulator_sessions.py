from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stages.simulator import World, WorldConfig, sessions
from stages.simulator.sessions import _drop_repeats, event_batches, examination

MEDIUM = WorldConfig(n_users=400, n_items=500, n_events=60_000, days=20)


def log_of(world: World, chunk: int = 1 << 20) -> pa.Table:
    return pa.Table.from_batches(list(event_batches(world, chunk)))


def rows_of(ids: pa.ChunkedArray) -> np.ndarray:
    return np.array([int(value[1:]) for value in ids.to_pylist()])


@pytest.fixture(scope="module")
def world() -> World:
    return World(MEDIUM)


@pytest.fixture(scope="module")
def log(world: World) -> dict[str, np.ndarray]:
    table = log_of(world)
    return {
        "user": rows_of(table["user_id"]),
        "item": rows_of(table["item_id"]),
        "signal": np.array(table["signal"].to_pylist()),
        "value": table["value"].to_numpy(),
        "time": table["event_time_ms"].to_numpy(),
    }


@pytest.mark.parametrize("chunk", [1, 977, 10_000])
def test_log_does_not_depend_on_the_chunk_size(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BLOCK_SESSIONS", 16)  # many blocks, so that events cross them
    world = World(WorldConfig(n_users=50, n_items=60, n_events=1_500, days=1, slate_size=5))
    batches = list(event_batches(world, chunk))
    assert {len(batch) for batch in batches[:-1]} <= {chunk}
    assert pa.Table.from_batches(batches).combine_chunks().equals(log_of(world).combine_chunks())


def test_log_is_in_time_order_across_blocks_and_inside_its_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BLOCK_SESSIONS", 16)
    world = World(WorldConfig(n_users=50, n_items=60, n_events=1_500, days=1, slate_size=5))
    times = log_of(world)["event_time_ms"].to_numpy()
    assert np.all(np.diff(times) >= 0)
    assert world.config.start_ms <= times[0] and times[-1] < world.end_ms


@pytest.mark.parametrize("n_events", [1_000, 10_000, 100_000])
def test_impressions_are_close_to_the_number_aimed_at(n_events: int) -> None:
    signals = log_of(World(WorldConfig(n_events=n_events)))["signal"]
    counts = {entry["values"]: entry["counts"] for entry in signals.value_counts().to_pylist()}
    assert abs(counts["impression"] - n_events) < 0.02 * n_events
    assert 0.1 < counts["click"] / n_events < 0.25
    assert counts["watch"] == counts["click"] > counts["like"] > counts["purchase"] > 0


def test_nothing_is_shown_before_its_birth(world: World, log: dict[str, np.ndarray]) -> None:
    assert np.all(log["time"] >= world.birth_ms[log["item"]])


def test_values_are_watched_shares_or_one(log: dict[str, np.ndarray]) -> None:
    watched = log["signal"] == "watch"
    assert np.all(log["value"][~watched] == 1.0)
    assert np.all((log["value"][watched] > 0) & (log["value"][watched] <= 1))
    assert log["value"][watched].std() > 0.1


def test_popularity_is_skewed(log: dict[str, np.ndarray]) -> None:
    shown = np.bincount(log["item"][log["signal"] == "impression"], minlength=MEDIUM.n_items)
    top = np.sort(shown)[::-1][: MEDIUM.n_items // 10].sum()
    assert 0.25 < top / shown.sum() < 0.7


def test_inactive_users_have_at_most_one_session_in_the_first_half(world: World, log: dict[str, np.ndarray]) -> None:
    assert len(world.inactive_users()) == 40
    middle = (MEDIUM.start_ms + world.end_ms) // 2
    for row in world.inactive_rows:
        times = log["time"][(log["user"] == row) & (log["signal"] == "impression")]
        assert len(times) <= MEDIUM.slate_size
        assert np.all(times < middle + 86_400_000)
    assert np.isin(world.inactive_rows, log["user"]).mean() > 0.9


def test_clicks_go_to_items_of_higher_true_preference(world: World, log: dict[str, np.ndarray]) -> None:
    means = {}
    for signal in ("impression", "click", "like", "purchase"):
        chosen = log["signal"] == signal
        means[signal] = world.true_preference(log["user"][chosen], log["time"][chosen], log["item"][chosen]).mean()
    assert means["impression"] + 0.1 < means["click"] < means["like"] < means["purchase"]


def test_position_bias_is_what_examination_says(world: World, log: dict[str, np.ndarray]) -> None:
    """At each position, clicks over summed true preference is the chance of being looked at."""
    shown = log["signal"] == "impression"
    users, times, items = (log[name][shown] for name in ("user", "time", "item"))
    # Impressions of a session lie 150 ms apart, sessions of a user much further.
    order = np.lexsort((times, users))
    users, times, items = users[order], times[order], items[order]
    fresh = (np.diff(users, prepend=-1) != 0) | (np.diff(times, prepend=0) > 150)
    starts = np.flatnonzero(fresh)
    position = np.arange(len(users)) - np.repeat(starts, np.diff(np.append(starts, len(users))))
    pair, clicked_pair = users * MEDIUM.n_items + items, (log["user"] * MEDIUM.n_items + log["item"])
    clicked = np.isin(pair, clicked_pair[log["signal"] == "click"])
    alone = np.bincount(pair)[pair] == 1  # a pair shown once: its click, if any, belongs to this impression
    preference = world.true_preference(users, times, items)
    for place in range(MEDIUM.slate_size):
        here = alone & (position == place)
        assert clicked[here].sum() / preference[here].sum() == pytest.approx(examination(10)[place], rel=0.2)


def test_drop_repeats_keeps_the_first_of_each() -> None:
    slates = np.array([[4, 4, 2, 4, 1], [7, 7, 7, 7, 3]])
    assert _drop_repeats(slates, 3).tolist() == [[4, 2, 1], [7, 3, -1]]


def test_a_chunk_below_one_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="chunk = 0"):
        next(event_batches(world, 0))
