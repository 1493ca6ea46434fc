import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.candidate.data.examples import first_touches, latest_inputs, touch_matrix, training_examples
from stages.candidate.data.item_features import Catalogue
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.snapshot import ItemTable, Snapshot, SnapshotMeta, Task, TimeBorders
from stages.features.config import FeatureConfig
from stages.features.history import Moment, event_relevance, tower_inputs
from stages.features.state import FunnelState

N_ITEMS, LENGTH = 6, 3
META = SnapshotMeta(
    signals=("click", "impression"),
    categories=("a", "b"),
    tasks=(Task(name="like", signals=("click",)),),
    borders=TimeBorders(start_ms=0, candidate_end_ms=100, ranker_end_ms=200, as_of_ms=300),
    counts={},
    fingerprint="0",
)
ITEMS = ItemTable(
    item_id=np.array([str(i) for i in range(N_ITEMS)], object),
    title=np.array([str(i) for i in range(N_ITEMS)], object),
    created_at_ms=np.array([0, 0, 0, 0, 99, 100]),
    duration_s=np.array([np.nan, 10, 20, 30, 40, np.nan], np.float32),
    category_offsets=np.array([0, 2, 3, 3, 3, 4, 4]),
    category_codes=np.array([0, 1, 1, 0], np.int32),
    n_categories=2,
)
valued_rows = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(0, 6),
        st.sampled_from([0, 2]),
        st.sampled_from([1.0, 2.0, 3.0]),
    ),
    min_size=1,
    max_size=25,
)
event_rows = st.lists(st.tuples(st.integers(0, 2), st.integers(0, N_ITEMS - 1), st.integers(0, 8)), max_size=30)


def naive_examples(rows):
    """Every first touch with what the user had touched strictly before, newest first; by user and time."""
    first = {}
    for user, item, time in rows:
        first.setdefault((user, item), time)
    found = []
    for (user, item), time in first.items():
        before = [i for (u, i), t in first.items() if u == user and t < time]
        found.append((user, item, before[::-1][:LENGTH]))
    return sorted(found, key=lambda example: example[0])


@settings(deadline=None)
@given(event_rows.filter(len))
def test_examples_match_a_naive_loop_and_the_serving_state(event_table, rows):
    rows.sort(key=lambda row: row[2])
    examples = first_touches(event_table(*np.array(rows).T, np.zeros(len(rows))))
    histories = examples.histories(np.arange(len(examples)), LENGTH, N_ITEMS)
    late = np.flatnonzero(examples.end >= LENGTH)  # what is read in whole runs
    np.testing.assert_array_equal(examples.histories(late, LENGTH, N_ITEMS), histories[late])
    wanted = naive_examples(rows)
    assert examples.items.tolist() == [item for _, item, _ in wanted]
    assert [row[row < N_ITEMS].tolist() for row in histories] == [history for _, _, history in wanted]

    state = FunnelState.empty(ITEMS, FeatureConfig(history_length=LENGTH), META.signals, META.tasks)
    for user, item, time in rows:
        state.apply(user, item, 0, 1.0, time)
    for user in {row[0] for row in rows}:
        touched = [item for owner, item, _ in wanted if owner == user]
        assert state.history(user).items.tolist() == touched[::-1][:LENGTH]


@settings(deadline=None)
@given(event_rows.filter(len))
def test_read_by_others_are_the_touches_of_some_history(event_table, rows):
    rows.sort(key=lambda row: row[2])
    examples = first_touches(event_table(*np.array(rows).T, np.zeros(len(rows))))
    wanted = set()
    for start, end in zip(examples.start.tolist(), examples.end.tolist(), strict=True):
        wanted |= set(range(max(start, end - LENGTH), end))
    assert examples.read_by_others(LENGTH).tolist() == sorted(wanted)


@settings(deadline=None)
@given(valued_rows)
def test_inputs_are_those_that_serving_builds_from_its_state(event_table, rows):
    """Items, best signals so far, ages, user and context of every example, as a replayed state gives them."""
    rows.sort(key=lambda row: row[2])
    user, item, step, signal, value = (np.array(column) for column in zip(*rows, strict=True))
    time_ms, context = 1700 * step, np.arange(len(rows)) % 3
    tasks = (Task(name="liked", signals=("like",), min_value=2.0, relevance=1.0), Task(name="any", signals=("click",)))
    signals, moments = ("click", "impression", "like"), np.array([[0, 0], [1, 2], [2, 0]], np.int32)
    events = event_table(user, item, time_ms, np.zeros(len(rows)), signal=signal, value=value, context=context)
    examples = first_touches(events, event_relevance(events.signal, events.value, signals, tasks), moments)
    config = FeatureConfig(history_length=LENGTH)
    found = examples.inputs(np.arange(len(examples)), LENGTH, N_ITEMS)
    late = np.flatnonzero(examples.end >= LENGTH)  # what is read in whole runs
    for name, array in vars(examples.inputs(late, LENGTH, N_ITEMS)).items():
        np.testing.assert_array_equal(array, getattr(found, name)[late])
    for row in range(len(examples)):
        owner, moment_ms = int(examples.users[row]), int(examples.times_ms[row])
        state = FunnelState.empty(ITEMS, config, signals, tasks)
        for event in np.flatnonzero(time_ms < moment_ms):
            state.apply(
                int(user[event]), int(item[event]), int(signal[event]), float(value[event]), int(time_ms[event])
            )
        context_row = context[np.flatnonzero((user == owner) & (item == examples.items[row]))[0]]
        moment = Moment(moment_ms, owner, tuple(moments[context_row].tolist()))
        wanted = tower_inputs([state.history(owner)], [moment], config, N_ITEMS)
        for name, array in vars(wanted).items():
            assert getattr(found, name)[row].tolist() == array[0].tolist(), name


def test_only_active_touches_of_the_candidate_part_are_read(event_table):
    events = event_table(
        user=[0, 0, 0, 1, 0, 0],
        item=[0, 1, 2, 3, 4, 5],
        time_ms=[1, 2, 3, 4, 150, 250],
        part=[0, 0, 0, 0, 1, 2],
        signal=[0, 1, 0, 0, 0, 0],
        active=[True, True, True, False, True, True],
    )
    assert training_examples(events, META, FeatureConfig()).items.tolist() == [0, 2]


def test_linear_models_see_what_active_users_touched_in_the_candidate_part(event_table):
    rows = [(0, 1, 0, 0, True), (0, 1, 0, 0, True), (1, 2, 0, 0, False), (1, 0, 0, 1, True), (2, 0, 1, 0, True)]
    user, item, signal, part, active = zip(*rows, strict=True)
    events = event_table(user, item, np.arange(5), part, signal=signal, active=active)
    examples = training_examples(events, META, FeatureConfig())
    assert touch_matrix(examples, 4).toarray().tolist() == [[0, 1, 0, 0]]


def test_nothing_to_train_on_says_what_removed_it(event_table):
    events = event_table([0, 1], [0, 1], [1, 150], [0, 1], active=[False, True])
    with pytest.raises(EmptyDatasetError, match=r"none of 2 events .* 1 lie in its part, 1 are of active users"):
        training_examples(events, META, FeatureConfig())


def test_catalogue_counts_targets_and_knows_what_existed(event_table):
    events = event_table([0, 0, 1, 1], [0, 1, 0, 2], [1, 2, 1, 2], [0] * 4)
    examples = first_touches(events)
    catalogue = Catalogue.of(ITEMS, examples, examples.usable(False), 50, end_ms=100)
    assert catalogue.frequency.tolist() == [0, 1, 1, 0, 0, 0]
    assert np.flatnonzero(catalogue.in_histories).tolist() == [0]
    assert catalogue.eligible.tolist() == [0, 1, 2, 3, 4]
    assert catalogue.log_duration[[0, 5]].tolist() == [0, 0]
    assert abs(catalogue.log_duration[1:5].mean()) < 1e-6
    everything = Catalogue.of(ITEMS, examples, examples.usable(True), 50, end_ms=100)
    assert everything.frequency.tolist() == [2, 1, 1, 0, 0, 0]


def test_category_bags_hold_what_each_item_has(event_table):
    examples = first_touches(event_table([0], [0], [1], [0]))
    catalogue = Catalogue.of(ITEMS, examples, examples.usable(True), 50, end_ms=100)
    codes, counts = catalogue.category_bags(np.array([4, 2, 0]))
    assert codes.tolist() == [0, 0, 1]
    assert counts.tolist() == [1, 0, 2]


def test_examples_survive_a_round_trip(event_table, tmp_path):
    examples = first_touches(event_table([0, 0, 1], [3, 1, 2], [1, 2, 3], [0] * 3))
    examples.save(tmp_path)
    loaded = type(examples).load(tmp_path)
    assert loaded.items.tolist() == examples.items.tolist()
    assert loaded.end.tolist() == examples.end.tolist()


def test_latest_inputs_are_complete_histories_after_the_last_touch(planted):
    snapshot = Snapshot(planted)
    events = snapshot.events()
    inputs = latest_inputs(snapshot, FeatureConfig(history_length=3), 60, 40, np.random.default_rng(0))
    assert len(inputs) == len(set(inputs.users.tolist())) == 40
    for user, items, ages in zip(inputs.users, inputs.items, inputs.ages, strict=True):
        rows = np.flatnonzero((events.user_index == user) & (events.part == 0))[::-1][:3]
        assert items.tolist() == events.item_index[rows].tolist()
        asked_ms = events.event_time_ms[rows[0]] + 1
        assert ages.tolist() == ((asked_ms - events.event_time_ms[rows]) // 1000).tolist()
