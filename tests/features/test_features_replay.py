"""Replay and history: point in time, online equal to offline, the user tower's inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.snapshot import ContextColumn
from stages.contracts.tables import DAY_MS, EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, Moment, tower_inputs
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState, History
from tests.features.plain.replay import replay

T0 = 10_000 * DAY_MS
HOUR = 3_600_000
N = 8
VECTORS = np.random.default_rng(3).normal(size=(N, 4)).astype(np.float32)
CANDIDATES = np.arange(N, dtype=np.int64)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
CONFIG = {"covisitation_neighbours": 2, "covisitation_window": 2, "similarity_history": 3, "context": CONTEXT}

Event = tuple[int, int, int, float, int, int]
MakeState = Callable[..., FunnelState]
MakeEvents = Callable[..., EventTable]
MakeRequests = Callable[..., RequestTable]

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, N - 1),
        st.integers(0, 2),
        st.floats(0, 1, width=32),
        st.integers(0, 300).map(lambda hours: T0 + hours * HOUR),
        st.integers(0, 4),
    ),
    max_size=40,
)


def features(state: FunnelState, user: int, time_ms: int, moment: int = 2) -> np.ndarray:
    scores, ranks = np.linspace(1, 0, N, dtype=np.float32), np.arange(N, dtype=np.int32)
    return ranking_features(state, user, time_ms, CANDIDATES, scores, ranks, VECTORS, CONTEXTS[moment].tolist())


def replayed(state: FunnelState, events: EventTable, requests: RequestTable) -> dict[int, np.ndarray]:
    users, times, moments = (
        column.tolist() for column in (requests.user_index, requests.request_time_ms, requests.context)
    )
    rows = replay(events, requests, state, CONTEXTS)
    return {row: features(state, users[row], times[row], moments[row]) for row in rows}


@given(EVENTS, EVENTS, st.integers(0, 4), st.integers(0, 300), st.integers(0, 4))
def test_events_at_or_after_a_request_change_none_of_its_features(
    make_state: MakeState,
    make_events: MakeEvents,
    make_requests: MakeRequests,
    events: list[Event],
    extra: list[Event],
    user: int,
    hours: int,
    context: int,
) -> None:
    moment = T0 + hours * HOUR
    later = [(*event[:4], max(event[4], moment), event[5]) for event in extra]
    requests = make_requests([(user, moment, context)])
    alone = replayed(make_state(**CONFIG), make_events([e for e in events if e[4] < moment]), requests)[0]
    among = replayed(make_state(**CONFIG), make_events([*events, *later]), requests)[0]
    assert np.isfinite(alone).all()
    np.testing.assert_array_equal(alone, among)


@given(EVENTS, st.integers(0, 40))
def test_features_online_equal_features_offline(
    make_state: MakeState, make_events: MakeEvents, make_requests: MakeRequests, events: list[Event], cut: int
) -> None:
    """A state that is saved, loaded and advanced by events equals, bit for bit, one rebuilt by replay."""
    ordered = sorted(events, key=lambda event: event[4])
    end = T0 + 301 * HOUR
    requests = make_requests([(user, end, 2) for user in range(5)])
    offline = replayed(make_state(**CONFIG), make_events(ordered), requests)
    before = make_state(ordered[:cut], **CONFIG)
    with tempfile.TemporaryDirectory() as directory:
        before.save(Path(directory))
        online = FunnelState.load(Path(directory), before.items, before.config, before.signals, before.tasks, CONTEXT)
        for *event, moment in ordered[cut:]:
            online.apply(*event, online.context_values(CONTEXTS[moment].tolist()))
        for user in range(5):
            np.testing.assert_array_equal(features(online, user, end), offline[user])
            for name, column in vars(before.history(user)).items():
                assert getattr(online.history(user), name).dtype == column.dtype


def test_requests_come_in_time_order_each_before_the_events_of_its_time(
    make_state: MakeState, make_events: MakeEvents, make_requests: MakeRequests
) -> None:
    events = make_events([(0, item, 0, 1.0, T0 + time) for item, time in ((0, 5), (1, 10), (2, 10), (3, 20))])
    requests = make_requests([(0, T0 + 10), (0, T0 + 30), (0, T0 + 5), (0, T0 + 10), (0, T0 + 11)])
    state = make_state()
    seen = [(row, state.touched(0).tolist()) for row in replay(events, requests, state)]
    assert seen == [(2, []), (0, [0]), (3, [0]), (4, [0, 1, 2]), (1, [0, 1, 2, 3])]


def test_events_after_the_last_request_are_applied_too(
    make_state: MakeState, make_events: MakeEvents, make_requests: MakeRequests
) -> None:
    events = make_events([(0, 1, 0, 1.0, T0), (0, 2, 0, 1.0, T0 + 9)])
    for requests in (make_requests([(0, T0 + 1)]), make_requests([])):
        state = make_state()
        assert list(replay(events, requests, state)) == list(range(len(requests)))
        assert state.touched(0).tolist() == [1, 2]


def test_events_out_of_order_are_refused(
    make_state: MakeState, make_events: MakeEvents, make_requests: MakeRequests
) -> None:
    events = make_events([(0, 1, 0, 1.0, T0), (0, 2, 0, 1.0, T0 + 9)]).take(np.array([1, 0]))
    with pytest.raises(DataError, match="event_time_ms of row 1"):
        list(replay(events, make_requests([(0, T0)]), make_state()))


def history_of(items: list[int], times_ms: list[int], signals: list[int]) -> History:
    return History(
        np.array(items, dtype=np.int64),
        np.array(times_ms, dtype=np.int64),
        np.array(signals, np.int16),
        np.ones(len(items), np.float32),
    )


def test_tower_inputs_are_padded_and_know_signals_and_ages() -> None:
    config = FeatureConfig(history_length=3)
    histories = [
        history_of([4, 1], [9_500, 3_000], [2, 0]),
        history_of([], [], []),
        history_of([0, 1, 2, 3], [7_000, 6_000, 5_999, 1], [1, 1, 1, 1]),
    ]
    moments = [Moment(10_000, 5, (1, 0)), Moment(10_000, context=(0, 2)), Moment(6_000, 2, (0, 0))]
    inputs = tower_inputs(histories, moments, config, 8)
    assert inputs.items.tolist() == [[4, 1, 8], [8, 8, 8], [0, 1, 2]]
    assert inputs.signals.tolist() == [[2, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert inputs.ages.tolist() == [[0, 7, 0], [0, 0, 0], [0, 0, 0]]
    assert inputs.users.tolist() == [5, UNKNOWN_USER, 2]
    assert inputs.context.tolist() == [[1, 0], [0, 2], [0, 0]]
    assert {array.dtype for array in inputs.named().values()} == {np.dtype(np.int64)}


def test_tower_inputs_of_nobody_are_empty() -> None:
    inputs = tower_inputs([], [], FeatureConfig(history_length=3), 8)
    assert inputs.items.shape == inputs.ages.shape == (0, 3)
    assert len(inputs) == len(inputs.users) == len(inputs.context) == 0
