import dataclasses
from collections import Counter

import numpy as np
import pytest

from stages.candidate.config import CandidateConfig
from stages.candidate.training.batches import Batches
from stages.contracts.config import merged
from stages.contracts.errors import EmptyDatasetError
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER

FEATURES = FeatureConfig(history_length=4, history_decay=2.0)


def batches(world, rank=0, ranks=1, **changes):
    training = {"batch_size": 16, "item_id_dropout": 0.0, "history_dropout": 0.0}
    values = merged({"negatives": {"shared": 5}, "training": training}, changes)
    return Batches(*world, CandidateConfig(**values), FEATURES, rank, ranks)


def test_ranks_share_out_an_epoch(small_world):
    """Two ranks see as many batches, no example twice, and all but the rest that fills no step."""
    examples, _ = small_world
    parts = [batches(small_world, rank, 2) for rank in (0, 1)]
    drawn = [list(part.epoch(0)) for part in parts]
    assert len(drawn[0]) == len(drawn[1]) == parts[0].steps == 200 // 16
    seen = Counter(tuple(row) for part in drawn for batch in part for row in np.c_[batch.history, batch.items[:8]])
    usable = examples.usable(False)
    every = Counter(tuple(row) for row in np.c_[examples.histories(usable, 4, 12), examples.items[usable]])
    assert every.total() == 200
    assert seen.total() == 192
    assert seen <= every


def test_epochs_repeat_by_seed_and_differ_from_one_another(small_world):
    first, again = (next(batches(small_world, training={"seed": 5}).epoch(1)) for _ in range(2))
    np.testing.assert_array_equal(first.items, again.items)
    assert next(batches(small_world, training={"seed": 5}).epoch(2)).items.tolist() != first.items.tolist()
    assert next(batches(small_world, training={"seed": 6}).epoch(1)).items.tolist() != first.items.tolist()


def test_uniform_negatives_are_distinct_and_at_most_the_catalogue(small_world):
    drawn = batches(small_world, negatives={"shared": 1000})
    batch = next(drawn.epoch(0))
    assert drawn.shared.n == 12
    assert sorted(batch.items[16:].tolist()) == list(range(12))


def test_history_dropout_keeps_the_newest(small_world):
    batch = next(batches(small_world, training={"history_dropout": 0.9}).epoch(0))
    assert batch.kept[:, 0].all()
    assert not batch.kept[batch.history == 12].any()
    assert (~batch.kept[:, 1:][batch.history[:, 1:] < 12]).mean() > 0.7


def test_id_dropout_hides_ids_but_not_categories(small_world):
    batch = next(batches(small_world, negatives={"shared": 12}, training={"item_id_dropout": 0.5}).epoch(0))
    hidden = batch.kept & ~batch.named
    assert 0.3 < hidden.sum() / batch.kept.sum() < 0.7
    assert set(batch.item_named.tolist()) == {False, True}


def test_user_id_dropout_hides_users(small_world):
    """Users are hidden at random, so that the history alone is trained to serve."""
    drawn = list(batches(small_world, model={"user_id": True}, training={"user_id_dropout": 0.5}).epoch(0))
    users = np.concatenate([batch.users for batch in drawn])
    assert 0.3 < (users == UNKNOWN_USER).mean() < 0.7
    examples, _ = small_world
    owners = {(user, item) for user, item in zip(examples.users.tolist(), examples.items.tolist(), strict=True)}
    for batch in drawn:
        for user, item in zip(batch.users.tolist(), batch.items.tolist(), strict=False):
            assert user == UNKNOWN_USER or (user, item) in owners


def test_ages_of_candidates_are_those_at_the_examples_moments(small_world):
    examples, catalogue = small_world
    catalogue = dataclasses.replace(catalogue, created_at_ms=np.arange(12) * -7_000)
    batch = next(batches((examples, catalogue), model={"item_age": True}).epoch(0))
    times_ms = {(u, i): t for u, i, t in zip(examples.users, examples.items, examples.times_ms, strict=True)}
    for user, item, age in zip(batch.users, batch.items, batch.item_ages, strict=False):
        assert age == (times_ms[user, item] + 7_000 * item) // 1000


def test_too_few_examples_for_the_processes(small_world):
    with pytest.raises(
        EmptyDatasetError,
        match=r"200 of 240 training examples have a history, training.batch_size = 16; 9 processes need at least 18",
    ):
        batches(small_world, ranks=9)


def test_a_small_world_shrinks_the_batch(small_world):
    assert batches(small_world, training={"batch_size": 4096}).size == 200
    assert batches(small_world, training={"batch_size": 4096, "use_empty_histories": True}).size == 240


def test_popular_negatives_come_as_often_as_they_are_expected(small_world):
    _, catalogue = small_world
    shared = batches(small_world, negatives={"sampling": "popularity", "shared": 6}).shared
    rng, counts = np.random.default_rng(0), np.zeros(12)
    for _ in range(20000):
        counts += np.bincount(shared.draw(rng), minlength=12)
    np.testing.assert_allclose(shared.expected, counts / 20000, rtol=0.05)
    weight = (1 + catalogue.frequency) ** 0.75
    np.testing.assert_allclose(shared.expected, 6 * weight / weight.sum())


def test_some_negatives_are_needed():
    with pytest.raises(ValueError, match="leaves no negatives"):
        CandidateConfig(negatives={"in_batch": False, "shared": 0})
