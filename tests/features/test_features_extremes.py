"""The extremes of a log and of its requests, in all that is computed while a log is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.examples import ExamplesFile
from stages.contracts.snapshot import ItemTable
from stages.contracts.tables import DAY_MS, PART_RANKER, CandidateTable, EventTable, RequestTable
from stages.features.build import ExamplesConfig, build_examples
from stages.features.config import FeatureConfig
from stages.features.feature_blocks import feature_blocks
from stages.features.ranking import feature_schema
from stages.features.reading import Wanted, read_blocks
from stages.features.state import FunnelState
from tests.builders.snapshots import CLICK, event_table, request_table, write_snapshot
from tests.features.plain.replay import replay
from tests.features.worlds import written

T0 = 10_000 * DAY_MS
CONFIG = FeatureConfig(history_length=5, covisitation_window=2, covisitation_neighbours=5)
CANDIDATES = 2
"""Items 0 and 1 are every request's candidates, 0 is the target."""


@dataclass(frozen=True)
class World:
    items: ItemTable
    events: EventTable
    requests: RequestTable

    def state(self) -> FunnelState:
        return FunnelState.empty(self.items, CONFIG, ("click",), (CLICK,))

    def vectors(self) -> np.ndarray:
        return np.ones((len(self.items), 2), dtype=np.float32)

    def touched(self, request: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return users and items of all first touches before a request, or of all, in the order of time."""
        before = np.ones(len(self.events), dtype=bool)
        if request is not None:
            before = self.events.event_time_ms < self.requests.request_time_ms[request]
        users, items = self.events.user_index[before], self.events.item_index[before]
        first = np.sort(np.unique(users * len(self.items) + items, return_index=True)[1])
        return users[first], items[first]

    def candidates(self) -> CandidateTable:
        n = len(self.requests)
        rank = np.tile(np.arange(CANDIDATES, dtype=np.int32), n)
        return CandidateTable(
            request_id=np.repeat(np.arange(n), CANDIDATES),
            item_index=rank.astype(np.int64),
            score=-rank.astype(np.float32),
            rank=rank,
            source=np.zeros(len(rank), dtype=np.int8),
        )


@pytest.fixture
def world(make_items: Callable[..., ItemTable]) -> Callable[..., World]:
    """Return a function that makes a world of events (users, items, times) and requests (users, times), in columns."""

    def make(events: tuple, requests: tuple, n_items: int = 4) -> World:
        users, items, times = (np.array(column, dtype=np.int64) for column in events)
        asked, asked_at = (np.array(column, dtype=np.int64) for column in requests)
        return World(
            make_items(n_items), event_table(users, items, T0 + times), request_table(asked, T0 + asked_at, PART_RANKER)
        )

    return make


Answers = dict[int, tuple[int, list[int]]]
"""By request: how many items its user has touched, and how many users each candidate."""


def by_replay(world: World) -> tuple[Answers, FunnelState]:
    state = world.state()
    rows = replay(world.events, world.requests, state)
    users = world.requests.user_index
    return {row: (len(state.touched(int(users[row]))), state.touches[:CANDIDATES].tolist()) for row in rows}, state


def by_reading(world: World) -> tuple[Answers, FunnelState]:
    """The state is looked at as well, so requests are read one by one; other tests read blocks."""
    state, touches = world.state(), {}

    def visit(row: int, now: FunnelState) -> None:
        touches[row] = now.touches[:CANDIDATES].tolist()

    wanted = Wanted({PART_RANKER: np.full(len(world.items), T0)}, popular_k=2, visit=visit)
    blocks = read_blocks(world.events, world.requests, state, wanted, 3)
    seen = {int(row): len(block.seen_by(n)) for block in blocks for n, row in enumerate(block.rows)}
    return {row: (seen[row], touches[row]) for row in seen}, state


def by_features(world: World) -> tuple[Answers, FunnelState]:
    state = world.state()
    rows = world.candidates()
    parts = np.array_split(np.arange(len(rows)), range(3 * CANDIDATES, len(rows), 3 * CANDIDATES)) if len(rows) else []
    blocks = (CandidateBlock(rows.take(part)) for part in parts)
    contexts = np.zeros((1, 0), dtype=np.int32)
    made = list(feature_blocks(blocks, world.events, world.requests, state, world.vectors(), contexts))
    ids = [block.candidates.rows.request_id for block in made]
    features = [block.features for block in made]
    names = feature_schema(CONFIG, (CLICK,)).names
    return (answers(np.concatenate(ids), np.concatenate(features), names) if made else {}), state


def by_examples(world: World) -> tuple[Answers, FunnelState]:
    with TemporaryDirectory() as place:
        directories = {name: Path(place) / name for name in ("snapshot", "candidate", "retrieve", "out")}
        for directory in directories.values():
            directory.mkdir()
        write_inputs(world, directories)
        out = directories["out"]
        build_examples(ExamplesConfig(features=CONFIG), directories, out)
        file = ExamplesFile(out)
        rows = file.read()
        state = FunnelState.load(out / "state", world.items, CONFIG, ("click",), (CLICK,))
        # What is mapped from a file is read before the file is gone.
        state = copied(state)
    return answers(rows.request_id, rows.features, file.feature_names), state


def copied(state: FunnelState) -> FunnelState:
    state.touches = np.array(state.touches)
    touched = {user: state.touched(user).tolist() for user in range(state.n_users)}
    state.touched = touched.__getitem__  # type: ignore[method-assign, assignment]
    return state


def write_inputs(world: World, directories: dict[str, Path]) -> None:
    n_users = 1 + max(world.events.user_index.max(initial=0), world.requests.user_index.max(initial=0))
    end = int(max(world.events.event_time_ms.max(initial=T0), world.requests.request_time_ms.max(initial=T0)))
    write_snapshot(
        directories["snapshot"],
        (T0 - DAY_MS, T0 - 1, end + 1, end + 2),
        categories="abcd",
        events=world.events,
        requests=world.requests,
        targets={"request_id": np.arange(len(world.requests)), "item_index": np.zeros(len(world.requests))},
        items=written(world.items),
        users=[f"u{user}" for user in range(n_users)],
    )
    np.save(directories["candidate"] / "item_vectors.npy", world.vectors())
    world.candidates().write(directories["retrieve"] / "candidates.parquet")


def answers(request_id: np.ndarray, features: np.ndarray, names: tuple[str, ...]) -> Answers:
    assert np.isfinite(features).all()
    columns = [names.index(name) for name in ("user_history_length", "item_popularity_all")]
    counts = np.round(np.expm1(features[:, columns].astype(np.float64))).astype(int)
    found = {}
    for row in np.unique(request_id).tolist():
        mine = counts[request_id == row]
        assert len(set(mine[:, 0].tolist())) == 1
        found[row] = (int(mine[0, 0]), mine[:, 1].tolist())
    return found


PATHS = {"replay": by_replay, "read_blocks": by_reading, "feature_blocks": by_features, "build_examples": by_examples}


def assert_right(world: World, found: Answers, state: FunnelState) -> None:
    """The answers are those of the log before each request; at the end all events are applied."""
    assert sorted(found) == list(range(len(world.requests)))
    for row, (seen, touches) in found.items():
        users, items = world.touched(row)
        assert seen == (users == world.requests.user_index[row]).sum()
        assert touches == np.bincount(items, minlength=CANDIDATES)[:CANDIDATES].tolist()
    users, items = world.touched()
    assert state.touches.tolist() == np.bincount(items, minlength=len(world.items)).tolist()
    for user in np.unique(users)[:100].tolist():
        assert list(state.touched(user)) == items[users == user].tolist()


SMALL = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=12)
ASKED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=5)


@pytest.mark.parametrize("path", list(PATHS))
@given(SMALL, ASKED)
@settings(deadline=None, max_examples=40)
def test_a_request_sees_what_was_before_it(
    make_items: Callable[..., ItemTable], path: str, events: list[tuple], asked: list[tuple]
) -> None:
    """Few moments, so that requests are at the times of events, before all of them and behind all of them."""
    events, asked = sorted(events), sorted(asked)
    log, users = np.array(events, dtype=np.int64).reshape(-1, 3), np.array(asked, dtype=np.int64).reshape(-1, 2)
    made = World(
        make_items(4),
        event_table(log[:, 1], log[:, 2], T0 + log[:, 0]),
        request_table(users[:, 1], T0 + users[:, 0], PART_RANKER),
    )
    if path == "build_examples" and not asked:
        with pytest.raises(EmptyDatasetError, match="holds no candidates"):
            PATHS[path](made)
    else:
        assert_right(made, *PATHS[path](made))


def extremes() -> Iterator[tuple[str, tuple, tuple, int]]:
    rng = np.random.default_rng(0)
    few = ([0, 1, 1], [0, 0, 1], [0, 5, 5])
    yield "one request", few, ([1], [6]), 4
    yield "one request before the log", few, ([1], [-1]), 4
    yield "requests at the time of the first event", few, ([0, 1, 2], [0, 0, 0]), 4
    yield "no event", ([], [], []), ([0, 3], [0, 9]), 4
    many = 200_000
    users, items = rng.integers(0, 3_000, many), (100 * rng.random(many) ** 2).astype(np.int64)
    at = np.zeros(many, dtype=np.int64)
    yield "an instant", (users, items, at), ([0, 0, 1, 5_000], [-1, 0, 1, 2]), 100
    own = 50_000
    late = own - 10 + np.arange(100) // 10
    yield "one user", (np.zeros(own), rng.permutation(own), np.arange(own)), (np.zeros(100), late), own


EXTREMES = {name: rest for name, *rest in extremes()}


@pytest.mark.parametrize("path", list(PATHS))
@pytest.mark.parametrize("name", list(EXTREMES))
def test_an_extreme_log_is_read_as_any_other(world: Callable[..., World], path: str, name: str) -> None:
    made = world(*EXTREMES[name])
    assert_right(made, *PATHS[path](made))


@pytest.mark.parametrize("path", ["replay", "read_blocks", "feature_blocks"])
def test_without_a_request_all_events_are_applied(world: Callable[..., World], path: str) -> None:
    events, _, n_items = EXTREMES["an instant"]
    made = world(events, ([], []), n_items)
    found, state = PATHS[path](made)
    assert found == {}
    assert_right(made, found, state)


@pytest.mark.parametrize("name", list(EXTREMES))
def test_what_requests_of_a_block_have_seen_is_in_the_order_of_time(world: Callable[..., World], name: str) -> None:
    made = world(*EXTREMES[name])
    wanted = Wanted({PART_RANKER: np.full(len(made.items), T0)}, popular_k=2)
    read = 0
    for block in read_blocks(made.events, made.requests, made.state(), wanted, 1_000):
        for number, row in enumerate(block.rows.tolist()):
            users, items = made.touched(row)
            mine = items[users == made.requests.user_index[row]]
            np.testing.assert_array_equal(block.seen_by(number), mine)
            history = block.inputs.items[number]
            newest = mine[: -CONFIG.history_length - 1 : -1]
            assert history[: block.lengths[number]].tolist() == newest.tolist()
            assert (history[block.lengths[number] :] == len(made.items)).all()
            read += 1
    assert read == len(made.requests)
