"""Vectors of new items from queries and content, in a world whose true vectors are known."""

import numpy as np

from stages.candidate.config import FoldInConfig
from stages.candidate.data.examples import first_touches
from stages.candidate.refresh.fold_in import fold_in, ridge
from stages.features.history import TowerInputs
from tests.builders.snapshots import event_table

D, KNOWN, NEW = 8, 300, 60
NUMBERS = (1, 2, 4, 16, 40)


class Tower:
    """Gives each user's query; notes how many queries were asked for."""

    def __init__(self, queries):
        self.queries, self.asked = queries, 0

    def embed(self, inputs: TowerInputs):
        self.asked += len(inputs.users)
        assert (inputs.items[:, 0] == 0).all(), "each user touched item 0 before"
        return self.queries[inputs.users]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def world(noise=0.3, content_noise=1.0, seed=0):
    """Queries are turned, scaled and moved item vectors with noise. Item 0 is in every history; item KNOWN + i is new.

    Each touch of an item is that of another user: 40 of a known item, some of ``NUMBERS`` of a new one, and the last
    new one has none.
    """
    rng = np.random.default_rng(seed)
    truth = unit(rng.normal(size=(KNOWN + NEW, D)))
    counts = np.full(KNOWN + NEW, 40)
    counts[0], counts[KNOWN:] = 0, np.resize(NUMBERS, NEW)
    counts[-1] = 0
    items = np.repeat(np.arange(len(truth)), counts)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]
    queries = 0.5 * truth[items] @ turn + 2.0 + noise * rng.normal(size=(len(items), D))
    content = unit(truth + content_noise * rng.normal(size=truth.shape))
    users = np.arange(len(items))
    events = event_table(
        np.concatenate([users, users]),
        np.concatenate([np.zeros(len(items), int), items]),
        np.concatenate([users, 10**6 + users]),
        np.zeros(2 * len(items)),
    )
    vectors = np.where((np.arange(len(truth)) < KNOWN)[:, None], truth, content).astype(np.float32)
    return truth, vectors, content, counts, Tower(queries.astype(np.float32)), first_touches(events)


def folded(made, **config):
    truth, vectors, content, _, tower, touches = made
    found = vectors.copy()
    metrics = fold_in(touches, tower, found, content, np.arange(len(truth)) < KNOWN, 4, FoldInConfig(**config))
    return found, metrics


def test_more_touches_bring_an_item_nearer_to_its_true_vector():
    made = truth, vectors, content, counts, tower, _ = world()
    found, metrics = folded(made)
    assert metrics["folded_items"] == NEW - 1
    assert metrics["fold_in_cosine"] > metrics["content_cosine"] + 0.3
    np.testing.assert_array_equal(found[:KNOWN], vectors[:KNOWN])
    np.testing.assert_array_equal(found[-1], content[-1], "nobody touched it")
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    cosine, before = ((each * truth).sum(axis=1)[KNOWN:] for each in (found, content))
    by_number = [float(cosine[counts[KNOWN:] == n].mean()) for n in NUMBERS]
    assert by_number[-1] > 0.85 and by_number == sorted(by_number)
    assert by_number[0] > float(before.mean()), "a single touch is better than none"
    assert tower.asked == counts[KNOWN:].sum() + 40 * (KNOWN - 1)


def test_the_newest_touches_of_some_known_items_are_enough():
    made = _, _, _, counts, tower, _ = world()
    found, metrics = folded(made, touches=5, known_items=100)
    again, _ = folded(made, touches=5, known_items=100)
    np.testing.assert_array_equal(found, again)
    assert metrics["folded_items"] == NEW - 1
    assert tower.asked == 2 * (100 * 5 + np.minimum(counts[KNOWN:], 5).sum())


def test_useless_queries_leave_items_to_their_content():
    """Pure noise, and content that is nearly the truth: nothing that a regression gives is nearer than the content."""
    made = _, _, _, _, tower, _ = world(content_noise=1e-3)
    tower.queries = np.random.default_rng(3).normal(size=tower.queries.shape).astype(np.float32)
    found, metrics = folded(made)
    truth = made[0]
    assert (found[KNOWN:] * truth[KNOWN:]).sum(axis=1).min() > 0.999
    assert metrics["folded_items"] in (0, NEW - 1)


def test_with_few_known_items_nothing_is_folded():
    truth, vectors, content, _, tower, touches = world()
    found = vectors.copy()
    is_known = np.arange(len(truth)) < 20  # item 0 has no touch with a history, so that 19 can be learnt from
    assert fold_in(touches, tower, found, content, is_known, 4, FoldInConfig()) == {"folded_items": 0.0}
    np.testing.assert_array_equal(found, vectors)


def test_ridge_leaves_each_row_out_of_its_own_prediction():
    rng = np.random.default_rng(0)
    inputs, noise = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    wanted = inputs @ rng.normal(size=(4, 2)) + 5.0 + 0.1 * noise
    left_out, weights, offset = ridge(inputs, wanted)
    np.testing.assert_allclose(inputs @ weights + offset, wanted, atol=0.4)
    for row in range(3):
        rest = np.delete(np.arange(30), row)
        _, own, shift = ridge(inputs[rest], wanted[rest])
        np.testing.assert_allclose(left_out[row], inputs[row] @ own + shift, atol=1e-2)
    assert np.abs(left_out - wanted).mean() > np.abs(inputs @ weights + offset - wanted).mean()
    useless, _, _ = ridge(inputs, noise)
    assert (useless**2).mean() < 0.3 * (noise**2).mean(), "noise is shrunk"
