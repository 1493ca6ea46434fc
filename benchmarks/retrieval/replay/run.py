"""Replay: walk through a log, predict each event from the state just before it, judge by full rankings.

The log becomes a snapshot (``Replay.rows_with``), and the judged events are requests of its evaluation period, each
with its item as the target. The product's replay advances the state event by event, and answers each request from the
state just before it. Models stay as they were trained on the past. Items that a user has met are removed from the
answers, and events on such items are not judged; they advance the state all the same.

Legend: E events, N items, X contexts, J judged events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.retrieval.product_steps import SnapshotRows, events_of, requests_of
from benchmarks.retrieval.replay.log import Log
from stages.contracts.ndcg import discounts
from stages.contracts.snapshot import TimeBorders
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER
from stages.evaluation.bootstrap import paired_bootstrap


@dataclass(frozen=True)
class Replay:
    """What is replayed.

    Attributes:
        log: all events, the training period first.
        parts: names and rows of the judged periods, consecutive and in time order.
        train: number of events that models are trained on.
    """

    log: Log
    parts: Mapping[str, slice]
    train: int

    @property
    def rows(self) -> slice:
        """All judged periods together."""
        slices = list(self.parts.values())
        return slice(slices[0].start, slices[-1].stop)

    @cached_property
    def judged(self) -> np.ndarray:
        """The events that are judged, int64 ``[J]``: those on which a user meets an item for the first time."""
        rows = self.rows
        return rows.start + np.flatnonzero(self.log.first_touch[rows])

    @cached_property
    def time_ms(self) -> np.ndarray:
        """Times at which the product replays the events, int64 ``[E]``, ascending.

        The product's state at a time holds what came before that time. So that every event is before the next one, an
        event that is not later than the one before it comes a millisecond after it.
        """
        place = np.arange(len(self.log))
        times: np.ndarray = np.maximum.accumulate(self.log.time_ms - place) + place
        return times

    def rows_with(self, learning: int = 0, asked: int = 0, seed: int = 0) -> SnapshotRows:
        """Return the snapshot of the log.

        An item may be an answer from its first event on, but not at it.

        Args:
            learning: how many of the latest training events are of the ranker period.
            asked: how many of their first touches, drawn at random, are requests to learn from, at most.
            seed: of that choice.
        """
        log, times, events = self.log, self.time_ms, np.arange(len(self.log))
        border = self.train - learning
        teaching = events[border : self.train][(log.first_touch & (log.place > 0))[border : self.train]]
        if len(teaching) > asked:
            teaching = np.sort(np.random.default_rng(seed).choice(teaching, asked, replace=False))
        chosen = np.concatenate([teaching, self.judged])
        part = np.repeat([PART_CANDIDATE, PART_RANKER, PART_EVALUATION], [border, learning, len(log) - self.train])
        first = np.zeros(log.items, dtype=np.int64)
        first[log.item[::-1]] = times[::-1]
        contexts, context = log.contexts
        ends = [int(times[row]) if row < len(log) else int(times[-1]) + 1 for row in (border, self.train, len(log))]
        return SnapshotRows(
            events=events_of(log.user, log.item, times, part, context),
            requests=requests_of(log.user[chosen], times[chosen], part[chosen], context[chosen]),
            target_request=np.arange(len(chosen)),
            target_item=log.item[chosen],
            users=log.users,
            items=log.items,
            borders=TimeBorders(
                start_ms=int(times[0]), candidate_end_ms=ends[0], ranker_end_ms=ends[1], as_of_ms=ends[2]
            ),
            created_at_ms=first + 1,
            context=log.columns,
            contexts=contexts,
        )

    def ranks(self, answers: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], first: int) -> np.ndarray:
        """Return the rank of each judged event's item, int64 ``[J]``, from 1; 0 where it is not answered.

        Args:
            answers: request, item and rank from 0 of some candidates, each int ``[n]``.
            first: the request of the first judged event.
        """
        found, target = np.zeros(len(self.judged), dtype=np.int64), self.log.item[self.judged]
        for request, item, rank in answers:
            place = request - first
            hit = np.flatnonzero(place >= 0)
            hit = hit[target[place[hit]] == item[hit]]
            found[place[hit]] = rank[hit] + 1
        return found


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


def report(replay: Replay, rank: np.ndarray, samples: int) -> dict[str, dict[str, Any]]:
    """Return the metrics of each judged period, and of all together by users with and without a training event.

    Args:
        replay: what was replayed.
        rank: as ``Replay.ranks`` returns it.
        samples: of the bootstrap over users.

    Returns:
        By row: the number of judged events and users, and for each metric its mean with a 95% interval.
    """
    log, judged = replay.log, replay.judged
    trained = np.zeros(log.users, dtype=bool)
    trained[log.user[: replay.train]] = True
    warm = trained[log.user[judged]]
    masks = {name: (judged >= part.start) & (judged < part.stop) for name, part in replay.parts.items()}
    masks |= {"all": np.ones(len(judged), dtype=bool), "users of training": warm, "new users": ~warm}
    found = {}
    for name, mask in masks.items():
        if mask.any():
            found[name] = _figures(rank[mask], log.user[judged[mask]], samples)
    return found


def _figures(rank: np.ndarray, user: np.ndarray, samples: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"events": len(rank), "users": len(np.unique(user))}
    for metric, of in METRICS.items():
        values = of(rank)
        gain = paired_bootstrap(np.zeros(len(values)), values, user, samples, seed=0)
        figures[metric] = {"mean": round(gain.value, 5), "low": round(gain.low, 5), "high": round(gain.high, 5)}
    return figures
