"""The funnel's answer, and the trace of a request through the funnel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stages.candidate.scorer import Blended, CandidateRequest
from stages.contracts.newcomers import NewcomerList
from stages.contracts.sources import source_name
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs

AnswerPath = Literal["funnel", "popular"]
CandidateMixture = Literal["index", "quotas", "learned"]
"""What the score of a candidate is: the index's own, the fused rank of several lists, or a learned mixture's."""


@dataclass(frozen=True)
class Place:
    """Score and rank of an item at one stage; ranks count from 0."""

    score: float
    rank: int


@dataclass(frozen=True)
class AnsweredItem:
    """One recommended item.

    Attributes:
        item_id, title: from the catalogue.
        score: of the last stage that ranked it.
        rank: position in the answer, from 0.
        source: the candidate generator that it is counted to (see ``stages.candidate.generators.blend``), such as
            ``tower``; ``popular`` for items of the popular list, and for all items without history.
        places: score and rank at each stage that ran; empty unless an explanation was requested.
        named_by: score and rank in the list of every generator that returned it; empty unless an explanation was
            requested, and where the index is the only generator.
    """

    item_id: str
    title: str
    score: float
    rank: int
    source: str
    places: dict[str, Place] = field(default_factory=dict)
    named_by: dict[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One answer, made by exactly one release.

    Attributes:
        release_id: of that release.
        request_id: a fresh UUID.
        user_id: of the request.
        path: ``funnel``, or ``popular`` for a user without history.
        time_ms: the request time, int ms UTC.
        items: best first, no duplicates, nothing that the user has seen.
        counts: number of items at each step of the funnel: ``catalogue``, ``withheld_excluded`` (by the item
            policy), ``filtered_excluded`` (by the request's filter), ``seen_excluded``,
            ``not_yet_available``, ``retrieved``, ``after_light``, ``after_heavy``, ``filled`` (taken from
            the popular list) and ``returned``; with several generators ``retrieved_<name>``, the items counted to
            each. A stage that did not run has no count.
        timings_ms: wall-clock milliseconds by stage, and ``total``.
        explain: whether the request asked for an explanation.
        mixture: what the scores of the stage ``candidate`` are.
        bypassed: why each ranking stage that the release does not use is bypassed, by name.
        newcomers: the list that answered, for a user without history; None otherwise, and in older releases.
    """

    release_id: str
    request_id: str
    user_id: str
    path: AnswerPath
    time_ms: int
    items: tuple[AnsweredItem, ...]
    counts: dict[str, int]
    timings_ms: dict[str, float]
    explain: bool = False
    mixture: CandidateMixture = "index"
    bypassed: Mapping[str, str] = field(default_factory=dict)
    newcomers: NewcomerList | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the explanation only where the request asked for it."""
        body: dict[str, Any] = {
            "release_id": self.release_id,
            "request_id": self.request_id,
            "user_id": self.user_id,
            "path": self.path,
            "time_ms": self.time_ms,
            "items": [self._item(item) for item in self.items],
        }
        if self.explain:
            timings = {stage: round(value, 4) for stage, value in self.timings_ms.items()}
            body["explain"] = {
                "counts": self.counts,
                "timings_ms": timings,
                "mixture": self.mixture,
                "bypassed": dict(self.bypassed),
            }
            if self.newcomers is not None:
                body["explain"]["newcomers"] = {"list": self.newcomers.name, "reason": self.newcomers.reason}
        return body

    def _item(self, item: AnsweredItem) -> dict[str, Any]:
        body: dict[str, Any] = {
            "item_id": item.item_id,
            "title": item.title,
            "score": item.score,
            "rank": item.rank,
            "source": item.source,
        }
        if self.explain:
            body["explain"] = _plain(item.places)
            if item.named_by:
                body["sources"] = _plain(item.named_by)
        return body


def _plain(places: dict[str, Place]) -> dict[str, Any]:
    return {name: {"score": place.score, "rank": place.rank} for name, place in places.items()}


@dataclass
class Trace:
    """The intermediate results of one request.

    Attributes:
        user: index, below 0 for an unknown user.
        time_ms: the request time, int ms UTC.
        seen: int64 items that must not be returned.
        inputs: of the user tower, None without history.
        available_ms: int64 ``[N]``, when each item may be returned; the request's filter is applied.
        mask: bool ``[N]``, what the filter allows; None without one.
        context: one code for each context column.
        request: the input of the generators beside the index; None without any, or without history.
        state_lists: the lists of those generators that read the state.
        blended: the candidates, with the generator that each is counted to.
        stages: (stage, its output) of each stage that ran.
        counts, timings_ms: for the explanation.
    """

    user: int
    time_ms: int
    seen: np.ndarray
    inputs: TowerInputs | None
    available_ms: np.ndarray
    mask: np.ndarray | None = None
    context: tuple[int, ...] = ()
    request: CandidateRequest | None = None
    state_lists: dict[str, ScoredItems] = field(default_factory=dict)
    blended: Blended | None = None
    stages: list[tuple[str, ScoredItems]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to that of ``stage``."""
        now = time.perf_counter()
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + (now - self._last) * 1000
        self._last = now

    def places(self, ids: np.ndarray) -> list[dict[str, Place]]:
        """Return score and rank of each of ``ids`` at every stage."""
        places: list[dict[str, Place]] = [{} for _ in ids]
        for name, passed in self.stages:
            rank_of = {int(item): rank for rank, item in enumerate(passed.ids)}
            for position, item in enumerate(ids):
                rank = rank_of[int(item)]
                places[position][name] = Place(float(passed.scores[rank]), rank)
        return places

    def first_generators(self, ids: np.ndarray) -> list[str]:
        """Return the generator that each of ``ids`` is counted to."""
        if self.blended is None:
            return ["tower"] * len(ids)
        name_of = dict(zip(self.blended.items.ids.tolist(), self.blended.source.tolist(), strict=True))
        return [source_name(name_of[int(item)]) for item in ids]

    def named_by(self, ids: np.ndarray) -> list[dict[str, Place]]:
        """Return score and rank of each of ``ids`` in every generator's list that holds it."""
        source_scores = None if self.blended is None else self.blended.sources
        if self.blended is None or source_scores is None:
            return [{} for _ in ids]
        row_of = {item: row for row, item in enumerate(self.blended.items.ids.tolist())}
        rows = [row_of[int(item)] for item in ids]
        return [
            {
                name: Place(float(source_scores.scores[row, column]), int(source_scores.ranks[row, column]))
                for column, name in enumerate(source_scores.names)
                if source_scores.ranks[row, column] >= 0
            }
            for row in rows
        ]
