"""A blend whose weights are learnt: a small network scores candidates by their shares of clicks and co-clicks.

It is trained on the last day of the training period and then fixed; the shares advance with the log.

Legend: B events of a block, M items of a block, K candidates, F shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import CoClicks, Count, CoVisitation, ReplayModel
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
from stages.contracts.config import Config
from stages.contracts.errors import DataError

SMALL_SHARE = 1e-5
"""The network reads log(1 + share / this), 0 for an item without clicks: shares far below this one look alike."""

_DAY_MS = 86_400_000


class WindowShare(Config):
    """An item's share of everybody's clicks in a window before the block.

    Attributes:
        minutes: length of the window.
        weight: in the sum that chooses candidates.
    """

    minutes: Positive
    weight: NotNegative = 1.0


class CoClickShare(CoVisitation):
    """An item's share of the co-clicks of the user's latest items.

    Attributes:
        weight: in the sum that chooses candidates.
    """

    weight: NotNegative = 1.0


class LearnedBlend(ReplayModel):
    """The ``candidates`` best items by a weighted sum of shares, ordered by a network that sees each share.

    The network is trained with the softmax over an event's candidates, on every ``every``-th block of the last ``days``
    of the training period. An event is left out if its item is no candidate, or already known to its user.

    Attributes:
        windows, segments, together: the shares, one or more.
        candidates: K.
        days, every, block, events: training data: of the last ``days`` before the judged period every ``every``-th
            block of ``block`` events, and at most ``events`` events of each.
        hidden: width of the two hidden layers.
        epochs, learning_rate: of AdamW with a one-cycle schedule, one block a step.
        seed: of everything that is drawn.
    """

    windows: tuple[WindowShare, ...] = ()
    segments: tuple[SegmentShare, ...] = ()
    together: tuple[CoClickShare, ...] = (CoClickShare(),)
    candidates: Count = 1000
    days: Positive = 1.0
    every: Count = 2
    block: Count = 500
    events: Count = 100
    hidden: Count = 32
    epochs: Count = 4
    learning_rate: Positive = 0.004
    seed: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _one_share_or_more(self) -> LearnedBlend:
        if not self.shares:
            raise ValueError("windows, segments and together are empty: allowed is one share or more")
        return self

    @property
    def shares(self) -> tuple[WindowShare | SegmentShare | CoClickShare, ...]:
        """All shares in the order in which the network reads them."""
        return (*self.windows, *self.segments, *self.together)

    def check(self, log: Log) -> None:
        """Check that the log has the segments."""
        require_segments(log, self.segments)

    def gigabytes(self, log: Log, train: int) -> float:
        """The co-clicks, all lessons, and the shares of a block."""
        first = int(np.searchsorted(log.time_ms[:train], log.time_ms[train - 1] - self.days * _DAY_MS))
        lessons = 1 + (train - first) // (self.block * self.every)
        candidates = min(self.candidates, log.items)
        taught = lessons * min(self.events, self.block) * candidates * (4 * len(self.shares) + 1)
        block = 2 * self.block * len(self.shares) * (8 * log.items + 8 * candidates)
        return sum(each.gigabytes(log, train) for each in self.together) + (taught + block) / 1e9

    def prepare(self, log: Log, train: int) -> Walker:
        """Train the network.

        Raises:
            DataError: if the log lacks a segment, or there is nothing to learn from.
        """
        self.check(log)
        sources = _Sources(log, self)
        network = self._fit(log, sources, train)

        def walk(rows: slice) -> Pool:
            found = sources.find(rows, np.arange(rows.stop - rows.start))
            scores = np.full((rows.stop - rows.start, len(found.items)), -np.inf, dtype=np.float32)
            with torch.no_grad():
                own = network(*found.tensors()).numpy()
            np.put_along_axis(scores, found.place, np.where(found.answered, own, -np.inf), axis=1)
            return Pool(found.items, scores)

        return walk

    def _lessons(self, log: Log, sources: _Sources, train: int, rng: np.random.Generator) -> list[_Lesson]:
        first = int(np.searchsorted(log.time_ms[:train], log.time_ms[train - 1] - self.days * _DAY_MS))
        lessons = []
        for start in range(first, train, self.block * self.every):
            rows = slice(start, min(start + self.block, train))
            new = np.flatnonzero(log.first_touch[rows])
            new = np.sort(rng.choice(new, min(self.events, len(new)), replace=False))
            found = sources.find(rows, new)
            hit = found.answered & (found.items[found.place] == log.item[rows][new][:, None])
            taught = hit.any(axis=1)
            if taught.any():
                shares, context = found.tensors()
                allowed, target = torch.from_numpy(found.answered[taught]), torch.from_numpy(hit[taught].argmax(axis=1))
                lessons.append(_Lesson(shares[taught], context[taught], allowed, target))
        if not lessons:
            raise DataError(
                f"learned_blend: no click of the last {self.days:g} days before the judged part is on a candidate; "
                "allowed is a log with clicks that the shares can answer"
            )
        return lessons

    def _fit(self, log: Log, sources: _Sources, train: int) -> _Network:
        rng = np.random.default_rng(self.seed)
        lessons = self._lessons(log, sources, train, rng)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = _Network(len(self.shares), self.hidden)
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=0.0)
        steps = self.epochs * len(lessons)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        for place in np.concatenate([rng.permutation(len(lessons)) for _ in range(self.epochs)]):
            lesson = lessons[place]
            scores = network(lesson.shares, lesson.context).masked_fill(~lesson.answered, -torch.inf)
            optimizer.zero_grad()
            functional.cross_entropy(scores, lesson.target).backward()
            optimizer.step()
            schedule.step()
        return network


@dataclass(frozen=True)
class _Lesson:
    """Events of a block whose own item is among their candidates.

    Attributes:
        shares, context, answered: from ``_Found``.
        target: int64 ``[B]``, the place of the event's item.
    """

    shares: torch.Tensor
    context: torch.Tensor
    answered: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class _Found:
    """The candidates of some events of a block.

    Attributes:
        items: int64 ``[M]``, ascending.
        place: int64 ``[B, K]``, of the candidates in ``items``.
        answered: bool ``[B, K]``; where False there were fewer candidates.
        shares: float32 ``[B, K, F]``.
        earlier: int64 ``[B]``, events of the user before each.
    """

    items: np.ndarray
    place: np.ndarray
    answered: np.ndarray
    shares: np.ndarray
    earlier: np.ndarray

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scaled logarithms of the shares ``[B, K, F]``, 0 for none, and what is known of users ``[B, 2]``."""
        shares = torch.log(torch.from_numpy(self.shares) / SMALL_SHARE + 1) / 4
        earlier = torch.from_numpy(self.earlier)
        return shares, torch.stack([torch.log1p(earlier.float()), (earlier == 0).float()], dim=1)


class _Sources:
    """The shares of a log."""

    def __init__(self, log: Log, settings: LearnedBlend) -> None:
        self._log, self._settings = log, settings
        self._together = [CoClicks(log, each) for each in settings.together]
        lengths = [each.minutes for each in settings.windows] + [each.minutes for each in settings.segments]
        self._longest = max(lengths, default=1.0)

    def find(self, rows: slice, events: np.ndarray) -> _Found:
        """Return the candidates of some events of a block, by their places in it, int64 ``[B]``."""
        log, settings = self._log, self._settings
        there = recent_counts(log, rows.start, self._longest) > 0
        co_clicks = [each.before(rows) for each in self._together]
        for _, item, _ in co_clicks:
            there |= flags(log.items, item)
        items = np.flatnonzero(there)
        places = np.full(log.items, -1)
        places[items] = np.arange(len(items))
        shares: list[np.ndarray] = []
        size = (len(events), len(items))
        for window in settings.windows:
            counts = recent_counts(log, rows.start, window.minutes)
            shares.append(np.broadcast_to(counts[items] / max(counts.sum(), 1), size))
        for segment in settings.segments:
            shares.append(segment_shares(log, rows, segment, places, len(items))[events])
        for row, item, weight in co_clicks:
            shares.append(spread(rows, items, log.items, row, item, weight)[events])
        first = np.zeros(size)
        for share, each in zip(shares, settings.shares, strict=True):
            first += each.weight * share
        known = log.before(rows)
        met = np.zeros((rows.stop - rows.start, len(items)), dtype=bool)
        named = places[known.item] >= 0
        met[known.row[named], places[known.item[named]]] = True
        first[met[events]] = 0.0
        k = min(settings.candidates, len(items))
        place = np.argpartition(-first, k - 1, axis=1)[:, :k] if k else np.empty((len(events), 0), dtype=np.int64)
        return _Found(
            items,
            place,
            np.take_along_axis(first, place, axis=1) > 0,
            np.stack([np.take_along_axis(share, place, axis=1) for share in shares], axis=-1).astype(np.float32),
            log.place[rows][events],
        )


class _Network(nn.Module):  # type: ignore[misc]
    """A weighted sum of the logarithms, and two hidden layers on them and on how much is known of the user."""

    def __init__(self, shares: int, hidden: int) -> None:
        super().__init__()
        self.sum = nn.Linear(shares, 1, bias=False)
        nn.init.constant_(self.sum.weight, 0.2)
        self.rest = nn.Sequential(
            nn.Linear(shares + 2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, shares: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return scores ``[B, K]`` of shares ``[B, K, F]`` and contexts ``[B, 2]``."""
        around = context[:, None].expand(-1, shares.shape[1], -1)
        scores: torch.Tensor = self.sum(shares) + self.rest(torch.cat([shares, around], dim=-1))
        return scores.squeeze(-1)
