"""The blend that learns how much each share says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.retrieval.replay.learned_blend import CoClickShare, LearnedBlend, WindowShare
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import SegmentShare
from benchmarks.retrieval.replay.run import METRICS, Replay, walk
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError, DataError

MINUTE = 60_000
EVENTS, TRAIN = 6000, 4000
SEGMENTS = (
    SegmentShare(name="region", minutes=60, weight=0.0, smoothing=1),
    SegmentShare(name="noise", minutes=60, weight=1.0, smoothing=1),
)


@pytest.fixture(scope="module")
def log() -> Log:
    """Each of eight regions reads ten of eighty items, all alike; what is called noise says nothing."""
    rng = np.random.default_rng(5)
    region = rng.integers(0, 8, EVENTS)
    item = region * 10 + rng.integers(0, 10, EVENTS)
    times = np.arange(EVENTS) * MINUTE // 10
    return Log.of(rng.integers(0, 3000, EVENTS), item, times, {"region": region, "noise": rng.integers(0, 8, EVENTS)})


def hit_rate(log: Log, model: LearnedBlend) -> float:
    """Return HR@10 of the rest of the log."""
    replay = Replay(log, {"rest": slice(TRAIN, EVENTS)}, train=TRAIN, block=100)
    rank = walk(replay, model.prepare(log, TRAIN))
    return float(METRICS["hr@10"](rank)[log.first_touch[replay.rows]].mean())


def blend(**settings: object) -> LearnedBlend:
    """Return a blend of three shares of which one says everything, though the sum of weights leaves it out."""
    windows = (WindowShare(minutes=60),)
    return LearnedBlend(**{"windows": windows, "segments": SEGMENTS, "block": 100, "every": 2, **settings})


def test_what_says_most_counts_most(log: Log) -> None:
    learnt = hit_rate(log, blend(epochs=8, learning_rate=0.02))
    untaught = hit_rate(log, blend(epochs=1, learning_rate=1e-9))
    assert learnt > 0.99  # of ten items of a region all are answered, but for what the user has met
    assert untaught < 0.8
    blind = hit_rate(log, blend(epochs=8, learning_rate=0.02, segments=SEGMENTS[1:]))
    assert blind < 0.3


def test_the_seed_decides_and_nothing_else_is_drawn(log: Log) -> None:
    rows, settings = slice(TRAIN, TRAIN + 100), {"epochs": 1, "hidden": 4}
    before = torch.random.get_rng_state()
    first, again, other = (blend(seed=seed, **settings).prepare(log, TRAIN)(rows).scores for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("candidates", [1, 7, 1000])
def test_so_many_candidates_and_none_that_the_user_has_met(log: Log, candidates: int) -> None:
    rows = slice(TRAIN, TRAIN + 100)
    pool = blend(candidates=candidates, epochs=1).prepare(log, TRAIN)(rows)
    answered = np.isfinite(pool.scores)
    assert answered.sum(axis=1).max() == min(candidates, len(pool.items))
    met = log.before(rows)
    assert len(met.row)
    assert not answered[met.row, np.searchsorted(pool.items, met.item)].any()
    if candidates < len(pool.items):
        assert (answered.sum(axis=1) == candidates).all()


def test_bad_input(log: Log) -> None:
    with pytest.raises(DataError, match=r"segments.name = 'os'.*region, noise"):
        blend(segments=(SegmentShare(name="os", minutes=5),)).prepare(log, TRAIN)
    with pytest.raises(ConfigError, match="windows, segments and together are empty: allowed is one share or more"):
        parse_config(LearnedBlend, {"together": ()}, "--set learned_blend")
    users = np.arange(50)
    strangers = Log.of(users, users, users * MINUTE)
    with pytest.raises(DataError, match="no click of the last 1 days"):
        LearnedBlend(together=(CoClickShare(),)).prepare(strangers, 40)


def test_one_lesson_is_enough(log: Log) -> None:
    pool = blend(days=100 / 14_400, every=1, block=1000, epochs=1).prepare(log, TRAIN)(slice(TRAIN, TRAIN + 10))
    assert np.isfinite(pool.scores).any(axis=1).all()
