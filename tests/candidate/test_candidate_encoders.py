"""Each encoder on a planted world that it, and not the simpler one, can answer."""

import dataclasses

import numpy as np
import pytest
import torch

from stages.candidate.config import CandidateConfig
from stages.candidate.data.examples import first_touches
from stages.candidate.data.words import hashed_words
from stages.candidate.towers.encoders import Histories, MeanEncoder, Sizes, age_buckets
from stages.candidate.training.batches import Batches, make_batches
from stages.features.config import FeatureConfig
from tests.candidate.towers import build, fit, plain_catalogue, scores

FEATURES = FeatureConfig(history_length=14, history_decay=4.0)
BASE = CandidateConfig(
    model={"dimension": 16, "category_dimension": 4, "hidden": (16,)},
    negatives={"shared": 64},
    training={"batch_size": 128, "history_dropout": 0.0, "item_id_dropout": 0.0},
    optimizer={"dense_learning_rate": 1e-2},
    distributed={"device": "cpu"},
)


def changed(**values):
    return BASE.changed(**values)


def sequences(rows, event_table):
    """Examples of one sequence a user, a second between its items."""
    user, item, step = np.array([(u, i, s) for u, items in enumerate(rows) for s, i in enumerate(items)]).T
    order = np.argsort(step, kind="stable")
    return first_touches(event_table(user[order], item[order], 1000 * step[order], np.zeros(len(user))))


def only_last(examples):
    """Leave each user's last touch as the one example."""
    last = np.append(np.diff(examples.start) > 0, True)
    return dataclasses.replace(examples, start=np.where(last, examples.start, examples.end))


@pytest.fixture(scope="module")
def asked(event_table):
    """Items (key, value), of each key two in any order, then a question for a key: the newer value is right."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(1200):
        told = np.concatenate([4 * key + rng.choice(4, 2, replace=False) for key in range(6)])
        told, key = rng.permutation(told), rng.integers(6)
        rows.append([*told, 24 + key, 30 + told[told // 4 == key][-1] % 4])
    return only_last(sequences(rows, event_table))


def hit_rate(config, asked):
    fitted, held_out = (
        dataclasses.replace(asked, end=np.where(kept, asked.end, asked.start))
        for kept in (asked.users < 900, asked.users >= 900)
    )
    catalogue = plain_catalogue(fitted, 34)
    _, loss_of = fit(fitted, catalogue, config, FEATURES)
    right = held_out.items[held_out.usable(False)] - 30
    return (scores(loss_of, held_out, catalogue, FEATURES, [30, 31, 32, 33]).argmax(axis=1) == right).mean()


def test_where_order_and_company_decide_attention_beats_the_mean(asked):
    attention = hit_rate(
        changed(model={"encoder": "attention", "dropout": 0.0, "blocks": 1}, training={"epochs": 60}), asked
    )
    mean = hit_rate(changed(training={"epochs": 60}), asked)
    assert attention > 0.9, (attention, mean)
    assert mean < attention - 0.2, (attention, mean)


def test_of_two_tastes_several_vectors_beat_the_mean(event_table):
    """Sixty narrow tastes in few dimensions: between two of them lie others."""
    rng, rows = np.random.default_rng(1), []
    for _ in range(900):
        mixed = np.concatenate([5 * taste + rng.permutation(5)[:4] for taste in rng.choice(60, 2, replace=False)])
        rows.append(rng.permutation(mixed))
    examples = sequences(rows, event_table)
    catalogue, recall = plain_catalogue(examples, 300), {}
    for encoder in ("mean", "tastes"):
        config = changed(
            model={"encoder": encoder, "tastes": 4, "dimension": 4, "hidden": (16,)},
            loss={"temperature": 0.1},
            training={"epochs": 12},
        )
        _, loss_of = fit(examples, catalogue, config, FEATURES)
        last = only_last(examples)
        found = scores(loss_of, last, catalogue, FEATURES, np.arange(300))
        target = last.items[last.usable(False)]
        recall[encoder] = ((found > found[np.arange(900), target][:, None]).sum(axis=1) < 10).mean()
    assert recall["tastes"] > recall["mean"] + 0.1, recall


def test_a_new_item_with_known_words_stands_near_its_kin(event_table):
    """Items 0 to 39 are touched by users of their block; 40 to 43 come after training, one a block."""
    rng = np.random.default_rng(2)
    rows = [4 * rng.permutation(10)[:6] + user % 4 for user in range(240)]
    examples = sequences(rows, event_table)
    topics = ("desert storm", "island sea", "winter snow", "city night")
    titles = np.array([f"{topics[item % 4]} no{item}" for item in range(44)], object)
    offsets, codes = hashed_words(titles, 512)
    catalogue = plain_catalogue(examples, 44, word_offsets=offsets, word_codes=codes, eligible=np.arange(40))
    shares = []
    for seed in (1, 2, 3, 42):
        config = changed(
            model={"word_buckets": 512, "word_dimension": 8},
            training={"item_id_dropout": 0.3, "epochs": 40, "seed": seed},
        )
        _, loss_of = fit(examples, catalogue, config, FEATURES)
        batch = dataclasses.replace(
            Batches(examples, catalogue, config, FEATURES).probe(1),
            items=np.arange(44),
            item_named=np.arange(44) < 40,
            item_ages=np.zeros(44, int),
        )
        with torch.no_grad():
            vectors = loss_of.forward(batch)[1].numpy()
        nearest = np.argsort(-(vectors[40:] @ vectors[:40].T), axis=1)[:, :8]
        shares.append((nearest % 4 == np.arange(4)[:, None]).mean())
    assert np.mean(shares) > 0.9


def test_words_are_hashed_the_same_everywhere():
    offsets, codes = hashed_words(np.array(["Toy Story (1995)", "", "STORY, toy: story"], object), 100)
    assert offsets.tolist() == [0, 3, 3, 5]
    assert codes.tolist() == [34, 36, 90, 36, 90]


def histories(kept, signals, ages, rows=40):
    slots = torch.where(kept, torch.randint(0, rows, kept.shape), rows)
    table = torch.nn.functional.pad(torch.randn(rows, 8), (0, 0, 0, 1))
    return Histories(table[:, :4].contiguous(), table[:, 4:].contiguous(), slots, signals, ages, kept)


def test_the_mean_begins_at_the_fixed_decay_and_learns_age_and_signal():
    torch.manual_seed(0)
    sizes = Sizes(40, 1, 0, 0, 0, signals=3, history_length=6, history_decay=2.5)
    encoder = MeanEncoder(sizes, BASE.model, 8)
    kept = torch.tensor([[True] * 6, [True, False, True, False, False, False], [False] * 6])
    given = histories(kept, torch.randint(0, 3, (3, 6)), torch.randint(0, 10**7, (3, 6)))
    weights = np.where(kept.numpy(), np.exp(-np.arange(6) / 2.5), 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    rows = np.concatenate([given.ids, given.content], axis=1)[given.slots]
    np.testing.assert_allclose(encoder(given).detach(), (rows * weights[:, :, None]).sum(axis=1), atol=1e-6)
    encoder(given).sum().backward()
    gradients = dict(encoder.named_parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in gradients.values()), gradients


def test_a_signal_that_says_nothing_loses_its_weight(event_table):
    """Signal 0 names the block that comes next, signal 1 is noise: its weight must fall."""
    rng, rows = np.random.default_rng(3), []
    for user in range(1200):
        block = user % 4
        for step, noise in enumerate(rng.permutation([0, 0, 0, 1, 1, 1])):
            item = rng.integers(40, 80) if noise else 10 * block + rng.integers(10)
            rows.append((user, item, 1000 * step, noise))
        rows.append((user, 10 * block + rng.integers(10), 7000, 0))
    user, item, time_ms, signal = np.array(sorted(rows, key=lambda row: row[2])).T
    examples = only_last(first_touches(event_table(user, item, time_ms, np.zeros(len(user)), signal=signal)))
    model, _ = fit(examples, plain_catalogue(examples, 80, n_signals=2), changed(training={"epochs": 40}), FEATURES)
    told, noise = model.query_tower.encoder.recency.signal_S.tolist()
    assert noise < told - 0.15


def test_age_buckets_are_binary_logarithms():
    ages = torch.tensor([0, 1, 2, 3, 4, 1023, 1024, 2**31, 2**40])
    assert age_buckets(ages).tolist() == [0, 1, 2, 2, 3, 10, 11, 32, 32]


def test_sequences_train_the_same_examples_with_the_same_queries(event_table):
    """Each position of a window gives the query that its example's own history gives; events of one
    moment see none of one another."""
    rng = np.random.default_rng(4)
    rows = []
    for user in range(30):
        items, times = rng.permutation(40)[: rng.integers(2, 12)], 0
        for item in items:
            times += int(rng.integers(0, 3)) * 3000
            rows.append((user, item, times))
    user, item, time_ms = np.array(sorted(rows, key=lambda row: row[2])).T
    examples = first_touches(event_table(user, item, time_ms, np.zeros(len(user))))
    catalogue = plain_catalogue(examples, 40)
    config = changed(model={"encoder": "attention", "dropout": 0.0}, training={"mode": "sequences", "batch_size": 1024})
    model, _, loss_of = build(examples, catalogue, config, FEATURES)
    torch.nn.init.normal_(model.query_tower.encoder.time_AH)
    plain = Batches(examples, catalogue, config, FEATURES).probe(len(examples))
    with torch.no_grad():
        wanted = loss_of.forward(plain)[0].numpy()
        found = {}
        for batch in make_batches(examples, catalogue, config, FEATURES).epoch(0):
            query = loss_of.forward(batch)[0].numpy()
            seen = batch.seen(40)
            for place in range(batch.n_queries):
                key = (batch.users[place], batch.items[place])
                found[key] = (query[place], np.sort(seen[place]).tolist())
    rows = examples.usable(False)
    pairs = list(zip(examples.users[rows], examples.items[rows], strict=True))
    for row, pair in enumerate(pairs):
        np.testing.assert_allclose(found[pair][0], wanted[row], atol=1e-5)
        assert found[pair][1] == np.sort(plain.history[row]).tolist()
    assert len(found) == len(pairs) > 50


def test_long_sequences_are_cut_into_windows_that_cover_every_example(event_table):
    examples = sequences([np.random.default_rng(u).permutation(60)[:50] for u in range(8)], event_table)
    catalogue = plain_catalogue(examples, 60)
    config = changed(model={"encoder": "attention"}, training={"mode": "sequences", "batch_size": 32})
    batches = make_batches(examples, catalogue, config, FEATURES)
    for epoch in range(2):
        drawn = [
            (batch.users[q], batch.items[q], batch.query_place[q])
            for batch in batches.epoch(epoch)
            for q in range(batch.n_queries)
        ]
        assert len({pair[:2] for pair in drawn}) > 0.7 * 8 * 49
        assert max(place for _, _, place in drawn) == 13


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"needs model.encoder = 'attention'"):
        changed(training={"mode": "sequences"})
    with pytest.raises(ValueError, match="heads = 3 must divide dimension = 16"):
        changed(model={"encoder": "attention", "heads": 3})
