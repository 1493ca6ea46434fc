"""Replay: walk through a log, predict each event from the state just before it, judge by full rankings.

Models stay as they were trained on the past; the state advances event by event. Items that a user has met are removed
from the answers, and events on such items are not counted (they advance the state all the same).

A model answers a block of consecutive events with a ``Pool``. Its scores of an event may depend on the training rows
and on the events before that one; nothing else. What a model wants to refresh now and then, such as a list of trending
items, it computes at the first event of a block: the length of the blocks is the protocol's.

Legend: E events, B events of a block, M items of a pool, J judged events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.retrieval.replay.log import Log
from stages.contracts.errors import DataError
from stages.contracts.ndcg import discounts
from stages.evaluation.bootstrap import paired_bootstrap


@dataclass(frozen=True)
class Pool:
    """Scores of the items that a block of events may be answered with.

    Attributes:
        items: int64 ``[M]``, ascending; other items are not answered.
        scores: float ``[B, M]``, or ``[1, M]`` where all events of the block get the same; ``-inf`` is not answered.
            Of equal scores the lower item is first.
    """

    items: np.ndarray
    scores: np.ndarray


Walker = Callable[[slice], Pool]
"""Returns the pool of a block of consecutive events. Blocks come in time order, but may skip events of the log."""


@dataclass(frozen=True)
class Replay:
    """What is replayed.

    Attributes:
        log: all events, the training period first.
        parts: names and rows of the judged periods, consecutive and in time order.
        train: number of events that models are trained on.
        block: events between two refreshes.
    """

    log: Log
    parts: Mapping[str, slice]
    train: int
    block: int

    @property
    def rows(self) -> slice:
        """All judged periods together."""
        slices = list(self.parts.values())
        return slice(slices[0].start, slices[-1].stop)


METRICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "hr@10": lambda rank: _within(rank, 10),
    "ndcg@10": lambda rank: _within(rank, 10) * discounts(np.maximum(rank, 1) - 1, 10),
    "hr@20": lambda rank: _within(rank, 20),
    "mrr@20": lambda rank: _within(rank, 20) / np.maximum(rank, 1),
    "hr@200": lambda rank: _within(rank, 200),
}
"""Metrics by name, as functions of the rank of the one wanted item: from 1, or 0 where it is not answered."""


def _within(rank: np.ndarray, k: int) -> np.ndarray:
    return ((rank >= 1) & (rank <= k)).astype(np.float64)


def walk(replay: Replay, walker: Walker) -> np.ndarray:
    """Return the rank of each judged event's item, int64, from 1, aligned with ``replay.rows``; 0 = not answered.

    Blocks begin anew with each judged period, so that its figures do not depend on the other periods.
    """
    ranks = [
        rank_targets(replay.log, slice(start, min(start + replay.block, rows.stop)), walker)
        for rows in replay.parts.values()
        for start in range(rows.start, rows.stop, replay.block)
    ]
    return np.concatenate(ranks)


def rank_targets(log: Log, rows: slice, walker: Walker) -> np.ndarray:
    """Return the rank of each event's item in its block's pool, without the items that its user has met.

    Raises:
        DataError: if the pool's items are not ascending, its shape is wrong, or a score is NaN.
    """
    pool = walker(rows)
    events, size = rows.stop - rows.start, len(pool.items)
    if pool.scores.shape not in {(events, size), (1, size)} or (np.diff(pool.items) <= 0).any():
        raise DataError(f"pool of {events} events: {size} ascending items, found scores {list(pool.scores.shape)}")
    scores_BM = np.array(np.broadcast_to(pool.scores, (events, size)), dtype=np.float32)
    if np.isnan(scores_BM).any():
        raise DataError("scores hold NaN; allowed are numbers, and -inf for what is not answered")
    column = np.full(log.items, -1)
    column[pool.items] = np.arange(size)
    seen = log.before(rows)
    place = column[seen.item]
    scores_BM[seen.row[place >= 0], place[place >= 0]] = -np.inf
    target = column[log.item[rows]]
    own = np.where(target >= 0, scores_BM[np.arange(events), target], -np.inf) if size else np.full(events, -np.inf)
    better = scores_BM > own[:, None]
    better |= (scores_BM == own[:, None]) & (np.arange(size) < target[:, None])
    return np.where(own > -np.inf, better.sum(axis=1) + 1, 0)


def report(replay: Replay, rank: np.ndarray, samples: int) -> dict[str, dict[str, Any]]:
    """Return the metrics of each judged period, and of all together by users with and without a training event.

    Args:
        replay: what was walked through.
        rank: as ``walk`` returns it.
        samples: of the bootstrap over users.

    Returns:
        By row: the number of judged events and users, and for each metric its mean with a 95% interval.
    """
    log, rows = replay.log, replay.rows
    counted = log.first_touch[rows]
    trained = np.zeros(log.users, dtype=bool)
    trained[log.user[: replay.train]] = True
    warm = trained[log.user[rows]]
    places = np.arange(rows.start, rows.stop)
    masks = {name: (places >= part.start) & (places < part.stop) for name, part in replay.parts.items()}
    masks |= {"all": np.ones(len(places), dtype=bool), "users of training": warm, "new users": ~warm}
    found = {}
    for name, mask in masks.items():
        chosen = mask & counted
        if chosen.any():
            found[name] = _figures(rank[chosen], log.user[rows][chosen], samples)
    return found


def _figures(rank: np.ndarray, user: np.ndarray, samples: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"events": len(rank), "users": len(np.unique(user))}
    for metric, of in METRICS.items():
        values = of(rank)
        gain = paired_bootstrap(np.zeros(len(values)), values, user, samples, seed=0)
        figures[metric] = {"mean": round(gain.value, 5), "low": round(gain.low, 5), "high": round(gain.high, 5)}
    return figures
