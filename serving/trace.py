"""One request on its way through the funnel: what was read, and what each stage passed on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from serving.answer import Place
from stages.candidate.scorer import Asked, Blended
from stages.contracts.sources import SOURCE_NAMES
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs


@dataclass
class Trace:
    """What becomes of one request.

    Attributes:
        user: index, below 0 for somebody unknown.
        time_ms: the moment to answer for.
        seen: int64 items that are not answered with.
        inputs: of the user tower, None without history.
        available_ms: int64 ``[N]``, when each item may be answered with, the request's filter included.
        mask: bool ``[N]``, what the filter allows; None without one.
        context: one code a context column.
        asked, early: what the sources beside the index are asked with, and the lists of those that read the state.
        blended: the candidates with their sources.
        stages: (stage, what it passed on).
        counts, timings_ms: for the explanation.
    """

    user: int
    time_ms: int
    seen: np.ndarray
    inputs: TowerInputs | None
    available_ms: np.ndarray
    mask: np.ndarray | None = None
    context: tuple[int, ...] = ()
    asked: Asked | None = None
    early: dict[str, ScoredItems] = field(default_factory=dict)
    blended: Blended | None = None
    stages: list[tuple[str, ScoredItems]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap to ``stage``."""
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

    def first_sources(self, ids: np.ndarray) -> list[str]:
        """Return the source that each of ``ids`` is due to."""
        if self.blended is None:
            return ["tower"] * len(ids)
        name_of = dict(zip(self.blended.items.ids.tolist(), self.blended.source.tolist(), strict=True))
        return [SOURCE_NAMES[name_of[int(item)]] for item in ids]

    def named_by(self, ids: np.ndarray) -> list[dict[str, Place]]:
        """Return score and rank of each of ``ids`` in every source's list that holds it."""
        said = None if self.blended is None else self.blended.sources
        if self.blended is None or said is None:
            return [{} for _ in ids]
        row_of = {item: row for row, item in enumerate(self.blended.items.ids.tolist())}
        rows = [row_of[int(item)] for item in ids]
        return [
            {
                name: Place(float(said.scores[row, column]), int(said.ranks[row, column]))
                for column, name in enumerate(said.names)
                if said.ranks[row, column] >= 0
            }
            for row in rows
        ]
