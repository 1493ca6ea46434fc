"""Histories of all other touches, for data without times."""

import dataclasses

import numpy as np
import pytest

from stages.candidate.config import CandidateConfig
from stages.candidate.data.examples import first_touches
from stages.candidate.training.batches import make_batches
from stages.features.config import FeatureConfig
from tests.builders import snapshots
from tests.candidate.towers import plain_catalogue

SIZES = (1, 2, 5, 9)
LENGTH, N_ITEMS = 4, 40
CONFIG = CandidateConfig(
    training={"histories": "others", "batch_size": 6, "history_dropout": 0.0}, distributed={"device": "cpu"}
)


@pytest.fixture(scope="module")
def touches():
    """Users of 1, 2, 5 and 9 touches, each on an item of its own."""
    user = np.repeat(np.arange(len(SIZES)), SIZES)
    time = np.arange(len(user)) * 1000
    return first_touches(snapshots.event_table(user, np.arange(len(user)) + 3, time, np.zeros(len(user))))


def batches_of(touches, config=CONFIG):
    return make_batches(touches, plain_catalogue(touches, N_ITEMS), config, FeatureConfig(history_length=LENGTH))


def pairs(batches, touches, epoch):
    """Return each query's target and history."""
    owner = dict(zip(touches.items.tolist(), touches.users.tolist(), strict=True))
    found = []
    for batch in batches.epoch(epoch):
        for row, target in enumerate(batch.items[: batch.n_queries].tolist()):
            history = batch.history[row][batch.kept[row]].tolist()
            assert {owner[item] for item in history} == {owner[target]} == {batch.users[row]}
            found.append((target, history))
    return found


def test_a_history_holds_the_users_other_touches_and_never_the_target(touches):
    batches = batches_of(touches)
    owner = dict(zip(touches.items.tolist(), touches.users.tolist(), strict=True))
    found = pairs(batches, touches, 0)
    assert len(found) == batches.steps * 6 == 12
    for target, history in found:
        assert target not in history and len(set(history)) == len(history)
        assert len(history) == min(LENGTH, SIZES[owner[target]] - 1)
    everything = [pair for epoch in range(30) for pair in pairs(batches, touches, epoch)]
    assert {target for target, _ in everything} == {item for item, user in owner.items() if SIZES[user] > 1}
    last = int(touches.items[-1])
    of_last = [history for target, history in everything if target == last]
    assert {item for history in of_last for item in history} == set(range(last - 8, last))
    assert len({tuple(history) for history in of_last}) > 10  # in an order drawn anew


def test_epochs_are_drawn_alike_again_and_from_any_step(touches):
    batches = batches_of(touches)
    whole = [batch.history for batch in batches.epoch(3)]
    np.testing.assert_array_equal(next(batches.epoch(3, 1)).history, whole[1])
    np.testing.assert_array_equal(next(batches_of(touches).epoch(3)).history, whole[0])
    assert not np.array_equal(next(batches.epoch(4)).history, whole[0])


def test_ages_signals_and_contexts_are_those_of_the_touches(touches):
    moments = np.arange(2 * len(touches), dtype=np.int32).reshape(-1, 2)
    signals = np.arange(len(touches), dtype=np.int16)
    touches = dataclasses.replace(touches, moments=moments, contexts=signals.astype(np.int32), version_signals=signals)
    order = touches.shuffled(np.random.default_rng(1))
    places = np.arange(8, 17)  # the user of nine
    inputs = touches.others(places, order, touches.sizes(), LENGTH, N_ITEMS)
    assert sorted(order[8:].tolist()) == list(range(8, 17)) and order[:8].tolist() != list(range(8))
    np.testing.assert_array_equal(inputs.signals, inputs.items - 3)
    np.testing.assert_array_equal(inputs.ages, 17 - (inputs.items - 3))  # asked a second after touch 16
    np.testing.assert_array_equal(inputs.context, moments[order[places]])


def test_whose_only_touch_it_is_trains_only_with_empty_histories(touches):
    assert touches.usable(False, of_others=True).tolist() == list(range(1, 17))
    assert touches.usable(True, of_others=True).tolist() == list(range(17))
    assert touches.read_by_others(LENGTH, of_others=True).tolist() == list(range(1, 17))


def test_sequences_have_an_order():
    with pytest.raises(ValueError, match="histories = 'others' with mode = 'sequences'"):
        CandidateConfig(model={"encoder": "attention"}, training={"mode": "sequences", "histories": "others"})
