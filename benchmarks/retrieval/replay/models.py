"""Models of the replay protocols: trending items, co-visited items, a blend of both, and trained item models.

Each is a frozen set of settings; ``prepare`` learns from the training period and returns a walker (see ``replay.run``).

Legend: E events, B events of a block, N items, M items of a pool, P co-clicks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy import sparse

from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.run import Pool, Walker
from benchmarks.retrieval.replay.shares import (
    NotNegative,
    Positive,
    SegmentShare,
    flags,
    recent_counts,
    require_segments,
    segment_shares,
    spread,
)
from benchmarks.retrieval.solved import solve_ease
from stages.candidate.linear.config import ImplicitAlsSettings, LimitedEase
from stages.candidate.linear.models import Ease, ImplicitAls, als_gigabytes, ease_method, recency_weights
from stages.contracts.config import Config
from stages.contracts.ragged import ranges

Count = Annotated[int, Field(ge=1)]
_CO_CLICK_BYTES = 96
"""Memory of a co-click while all of them are found and sorted."""
_ITEM_BYTES = 64
"""Memory of an item, for counts, places and flags."""


class ReplayModel(Config, ABC):
    """Settings of a model of a replay."""

    @abstractmethod
    def prepare(self, log: Log, train: int) -> Walker:
        """Learn from the first ``train`` events of the log, and return a walker."""

    @abstractmethod
    def gigabytes(self, log: Log, train: int) -> float:
        """Return the 10^9 bytes that ``prepare`` takes at most, beside the log itself."""

    def check(self, log: Log) -> None:
        """Raise those errors of ``prepare`` that the log shows before anything is trained.

        Raises:
            SluiceError: if the log lacks what the model reads.
        """


class Trending(ReplayModel):
    """Most events in a window before the block.

    Attributes:
        minutes: length of the window; None for all of the past.
    """

    minutes: Positive | None = None

    def prepare(self, log: Log, train: int) -> Walker:
        """Nothing is learnt."""

        def walk(rows: slice) -> Pool:
            counts = recent_counts(log, rows.start, self.minutes)
            items = np.flatnonzero(counts)
            return Pool(items, counts[None, items])

        return walk

    def gigabytes(self, log: Log, train: int) -> float:
        """Counts of each item."""
        return 32 * log.items / 1e9


class LastTenMinutes(Trending):
    """Most events in the last ten minutes."""

    minutes: Positive | None = 10


class LastHour(Trending):
    """Most events in the last hour."""

    minutes: Positive | None = 60


class LastThreeHours(Trending):
    """Most events in the last three hours."""

    minutes: Positive | None = 180


class LastDay(Trending):
    """Most events in the last 24 hours."""

    minutes: Positive | None = 1440


class LastWeek(Trending):
    """Most events in the last seven days."""

    minutes: Positive | None = 10_080


class CoVisitation(ReplayModel):
    """Items that other users met next to the user's latest items.

    Two events of a user make a co-click of their items, in both directions, if they are at most ``lag`` events of that
    user apart. Of each item the latest ``recent`` co-clicks count. A candidate's score is its share of an item's
    co-clicks, summed over the user's latest items with weights decay ** place.

    Attributes:
        lag: how far two events of a user may be apart.
        recent: latest co-clicks of an item that count, which are all that it has to store online.
        latest: how many of the user's latest items are used.
        decay: weight of an item against the next later one.
        smoothing: added to the number of co-clicks, so that an item with few of them counts little.
    """

    lag: Count = 2
    recent: Count = 1000
    latest: Count = 3
    decay: Positive = 0.6
    smoothing: NotNegative = 10.0

    def prepare(self, log: Log, train: int) -> Walker:
        """Sort the co-clicks of the log; each event reads those before it."""
        shares = CoClicks(log, self)

        def walk(rows: slice) -> Pool:
            row, item, weight = shares.before(rows)
            items = np.flatnonzero(flags(log.items, item))
            scores = spread(rows, items, log.items, row, item, weight)
            return Pool(items, np.where(scores > 0, scores, -np.inf))

        return walk

    def gigabytes(self, log: Log, train: int) -> float:
        """All co-clicks, and those of the log's events by item while they are sorted."""
        return (_CO_CLICK_BYTES * 2 * self.lag * len(log) + _ITEM_BYTES * log.items) / 1e9


class Blend(CoVisitation):
    """A sum of shares: of the clicks of the last ten minutes, the last hour and the last day, and of co-clicks.

    Attributes:
        ten_minutes, hour, day, together: weights of the four shares.
    """

    ten_minutes: NotNegative = 1.0
    hour: NotNegative = 0.5
    day: NotNegative = 0.01
    together: NotNegative = 1.0

    def prepare(self, log: Log, train: int) -> Walker:
        """Sort the co-clicks of the log; each event reads those before it."""
        shares = CoClicks(log, self)
        windows = ((10.0, self.ten_minutes), (60.0, self.hour), (1440.0, self.day))

        def walk(rows: slice) -> Pool:
            trend = np.zeros(log.items)
            for minutes, share in windows:
                counts = recent_counts(log, rows.start, minutes)
                trend += share * counts / max(counts.sum(), 1)
            row, item, weight = shares.before(rows)
            items = np.flatnonzero(flags(log.items, item) | (trend > 0))
            scores = trend[items] + self.together * spread(rows, items, log.items, row, item, weight)
            return Pool(items, np.where(scores > 0, scores, -np.inf))

        return walk


class SegmentBlend(Blend):
    """The blend with shares of what is clicked in the request's own segments, such as its region.

    Attributes:
        segments: further shares.
    """

    segments: tuple[SegmentShare, ...] = ()

    def check(self, log: Log) -> None:
        """Check that the log has the segments."""
        require_segments(log, self.segments)

    def prepare(self, log: Log, train: int) -> Walker:
        """Prepare the blend.

        Raises:
            DataError: if the log lacks a segment.
        """
        self.check(log)
        blend = super().prepare(log, train)

        def walk(rows: slice) -> Pool:
            pool = blend(rows)
            places, items = np.full(log.items, -1), pool.items
            places[items] = np.arange(len(items))
            scores = np.maximum(pool.scores, 0.0)
            for each in self.segments:
                scores = scores + each.weight * segment_shares(log, rows, each, places, len(items))
            return Pool(items, np.where(scores > 0, scores, -np.inf))

        return walk


class ReplayEase(ReplayModel, LimitedEase):
    """EASE trained on the past, which scores the history before each event; without one, items by popularity.

    Attributes:
        decay: a history's weight is exp(-rank / decay); None for 1.
    """

    decay: Positive | None = None

    def prepare(self, log: Log, train: int) -> Walker:
        """Solve in closed form."""
        ease = solve_ease(training_matrix(log, train), self, self.memory_gb)
        return _personal(log, ease, self.decay)

    def gigabytes(self, log: Log, train: int) -> float:
        """What the method takes: two item-item matrices, or the nearest items of each; and the histories."""
        return ease_method(self, log.users, log.items, train, self.memory_gb).gigabytes


class RecencyReplayEase(ReplayEase):
    """EASE trained on the past, which scores a history with decaying weights."""

    decay: Positive | None = 5.0


class ReplayIals(ReplayModel, ImplicitAlsSettings):
    """Implicit ALS trained on the past; histories are folded in as they are at each event.

    Attributes:
        seed: of the first factors.
    """

    factors: Count = 32
    seed: int = Field(default=1, ge=0)

    def prepare(self, log: Log, train: int) -> Walker:
        """Alternate least squares."""
        matrix = training_matrix(log, train)
        als = ImplicitAls.fit(matrix, self, self.seed)
        return _personal(log, als, None)

    def gigabytes(self, log: Log, train: int) -> float:
        """Factors, and the matrix by users and by items."""
        return als_gigabytes(log.users, log.items, train, self.factors)


REPLAY_MODELS: dict[str, type[ReplayModel]] = {
    "popularity": Trending,
    "last_7_days": LastWeek,
    "last_24_hours": LastDay,
    "last_3_hours": LastThreeHours,
    "last_hour": LastHour,
    "last_10_minutes": LastTenMinutes,
    "co_visitation": CoVisitation,
    "blend": Blend,
    "segment_blend": SegmentBlend,
    "ials": ReplayIals,
    "ease": ReplayEase,
    "ease_recency": RecencyReplayEase,
}


class CoClicks:
    """All co-clicks of a log, item by item in time order, so that those before an event are one slice."""

    def __init__(self, log: Log, settings: CoVisitation) -> None:
        self.log, self.settings = log, settings
        source, target, event = _co_clicks(log, settings.lag)
        key = source * len(log) + event
        order = np.argsort(key, kind="stable")
        self._key, self._target = key[order], target[order].astype(np.int32)

    def before(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row in the block, item and weight of the co-clicks that answer each event."""
        parts = []
        events = np.arange(rows.start, rows.stop)
        for back in range(1, self.settings.latest + 1):
            source = self.log.previous(rows, back)
            end = np.searchsorted(self._key, source * len(self.log) + events)
            start = np.maximum(np.searchsorted(self._key, source * len(self.log)), end - self.settings.recent)
            length = np.where(source >= 0, end - start, 0)
            row = np.repeat(np.arange(len(events)), length)
            weight = self.settings.decay ** (back - 1) / np.maximum(length + self.settings.smoothing, 1)
            parts.append((row, self._target[ranges(start, length)], weight[row]))
        row, item, weight = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return row, item, weight


def _co_clicks(log: Log, lag: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return source item, target item and the event that made it, int64 ``[P]`` each."""
    parts = []
    order = log.by_user
    for apart in range(1, lag + 1):
        earlier, later = order[:-apart], order[apart:]
        real = (log.user[earlier] == log.user[later]) & (log.item[earlier] != log.item[later])
        first, second, event = log.item[earlier[real]], log.item[later[real]], later[real]
        parts += [(first, second, event), (second, first, event)]
    source, target, event = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return source, target, event


def training_matrix(log: Log, train: int) -> sparse.csr_matrix:
    """Return ones where a user met an item in the first ``train`` events, float64 ``[U, N]``."""
    rows = np.flatnonzero(log.first_touch[:train])
    cells = (log.user[rows], log.item[rows])
    return sparse.csr_matrix((np.ones(len(rows)), cells), shape=(log.users, log.items))


def _personal(log: Log, model: Ease | ImplicitAls, decay: float | None) -> Walker:
    def walk(rows: slice) -> Pool:
        seen = log.before(rows)
        weight = np.ones(len(seen.row)) if decay is None else recency_weights(seen.rank, decay)
        history = _latest_visits(seen.row, seen.item, weight, (rows.stop - rows.start, log.items))
        popular = recent_counts(log, rows.start, None)
        items = np.flatnonzero(popular)
        scores = model.score(history)[:, items]
        scores[np.diff(history.indptr) == 0] = popular[items]
        return Pool(items, scores)

    return walk


def _latest_visits(row: np.ndarray, item: np.ndarray, weight: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return histories in which an item that was met twice weighs what its latest visit weighs."""
    key, last = np.unique((row * shape[1] + item)[::-1], return_index=True)
    place = len(row) - 1 - last
    return sparse.csr_matrix((weight[place], (key // shape[1], key % shape[1])), shape=shape)
