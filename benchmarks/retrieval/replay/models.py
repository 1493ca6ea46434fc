"""Models of the replay protocols: one candidate generator of the product each, on the product's state.

A generator is fitted to the training events, as by the step ``train_sources``. The product's replay advances its state,
and answers each judged event with the generator's own list, without the two-tower index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from benchmarks.retrieval.replay.run import Replay
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.files import SourcesSummary
from stages.candidate.generators.generator import FitSize
from stages.candidate.generators.table import TOWER, generator_class
from stages.candidate.retrieval.check_memory import refuse_what_does_not_fit
from stages.candidate.retrieval.fit_generators import fit_data
from stages.candidate.retrieval.retriever import Retriever, empty_state
from stages.contracts.config import Config, merged
from stages.contracts.errors import DataError
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig

ANSWERS = 200
"""Items of an answer: as many as the figures read."""
_BLOCK = 1024
_EVENT_BYTES = 400
"""Memory of an event: its row in the log and in the snapshot, its place in a history, and its links and counts."""
_ITEM_BYTES = 4000
"""Memory of an item in the state: its counters, and what a block of answers needs."""
ALL_TIME = 1e8
"""Minutes, longer than any log."""


class ReplayModel(Config, ABC):
    """Settings of a model of a replay."""

    @abstractmethod
    def ranks(self, replay: Replay) -> np.ndarray:
        """Learn from the training events; return the rank of each judged event's item, see ``Replay.ranks``."""

    @abstractmethod
    def gigabytes(self, replay: Replay) -> float:
        """Return the 10^9 bytes that ``ranks`` takes at most, beside the log itself."""

    def check(self, replay: Replay) -> None:
        """Raise those errors of ``ranks`` that the log shows before anything is trained.

        Raises:
            SluiceError: if the log lacks what the model reads.
        """


class Generator(ReplayModel):
    """One candidate generator; a user without history gets the popular items, behind its own where it has some.

    Attributes:
        generator: its name.
        preset: settings below ``sources`` where none are given.
        features: ``history_length`` is how much of a history is read; the state's counters.
        sources: a recipe's section; its ``names`` are the generator's.
    """

    generator: ClassVar[str]
    preset: ClassVar[dict[str, Any]] = {}
    features: FeatureConfig = FeatureConfig()
    sources: SourcesConfig = Field(default_factory=SourcesConfig)

    @model_validator(mode="before")
    @classmethod
    def _of_this_generator(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = merged(cls.preset, values.get("sources") or {})
        return {**values, "sources": {**given, "names": (TOWER, cls.generator)}}

    def ranks(self, replay: Replay) -> np.ndarray:
        """Fit, replay and answer."""
        rows = replay.rows_with()
        snapshot = Snapshot(rows.snapshot().directory)
        kind, sources = generator_class(self.generator), self.sources
        arrays = kind.fit(sources, fit_data(self.features, snapshot))
        summary = SourcesSummary(
            names=sources.names,
            quotas={TOWER: 0, self.generator: ANSWERS},
            learned=False,
            candidate_k=ANSWERS,
            n_items=rows.items,
            tower_version="",
            data_fingerprint=snapshot.meta.fingerprint,
            config=sources,
        )
        typed = {name: arrays[name].astype(dtype, copy=False) for name, dtype in kind.arrays.items()}
        blend = Blend(summary, [kind.load(sources, typed, rows.items)])
        retriever = Retriever(None, empty_state(snapshot, self.features, blend), snapshot, ANSWERS, blend)
        tables = (answers.table() for answers in retriever.answers(rows.events, _BLOCK))
        return replay.ranks(((table.request_id, table.item_index, table.rank) for table in tables), 0)

    def gigabytes(self, replay: Replay) -> float:
        """The fit, and the replay of the log."""
        needed = generator_class(self.generator).needs(self.sources, fit_size(replay, replay.train))
        return max(needed, replay_gigabytes(replay, self.sources))

    def check(self, replay: Replay) -> None:
        """Check that the generator fits its memory, and that the log has its segment."""
        require_segment(replay, self.sources)
        size = fit_size(replay, replay.train)
        needed = generator_class(self.generator).needs(self.sources, size)
        refuse_what_does_not_fit(self.sources, {self.generator: needed}, size)


class Trending(Generator):
    """What was touched most within the windows of ``sources.trending``."""

    generator = "trending"


def _window(minutes: float) -> dict[str, Any]:
    return {"trending": {"windows_minutes": (minutes,), "weights": (1.0,)}}


class Popularity(Trending):
    """What was touched most of all time."""

    preset = _window(ALL_TIME)


class LastTenMinutes(Trending):
    """What was touched most in the last ten minutes."""

    preset = _window(10)


class LastHour(Trending):
    """What was touched most in the last hour."""

    preset = _window(60)


class LastThreeHours(Trending):
    """What was touched most in the last three hours."""

    preset = _window(180)


class LastDay(Trending):
    """What was touched most in the last 24 hours."""

    preset = _window(1440)


class LastWeek(Trending):
    """What was touched most in the last seven days."""

    preset = _window(10_080)


class Covisitation(Generator):
    """What others touched next to the user's newest items."""

    generator = "covisitation"


class LongHistories(Generator):
    """A generator that weighs all items of a history alike.

    Attributes:
        features: histories are read whole.
    """

    preset: ClassVar[dict[str, Any]] = {"history_length": 1000, "history_decay": 1e9}
    features: FeatureConfig = FeatureConfig(history_length=1000)


class ReplayItemKnn(LongHistories):
    """Neighbours by cosine."""

    generator = "item_knn"


class ReplayIals(LongHistories):
    """Neighbours by implicit ALS."""

    generator = "ials"


class ReplayEase(LongHistories):
    """Neighbours by EASE."""

    generator = "ease"


class RecencyReplayEase(Generator):
    """Neighbours by EASE, with histories whose items weigh exp(-position / 5)."""

    generator = "ease"


REPLAY_MODELS: dict[str, type[ReplayModel]] = {
    "popularity": Popularity,
    "last_7_days": LastWeek,
    "last_24_hours": LastDay,
    "last_3_hours": LastThreeHours,
    "last_hour": LastHour,
    "last_10_minutes": LastTenMinutes,
    "trending": Trending,
    "covisitation": Covisitation,
    "item_knn": ReplayItemKnn,
    "ials": ReplayIals,
    "ease": ReplayEase,
    "ease_recency": RecencyReplayEase,
}


def require_segment(replay: Replay, sources: SourcesConfig) -> None:
    """Check that the log has the segment whose touches are counted.

    Raises:
        DataError: if it lacks it.
    """
    counted = sources.counted
    if counted is not None and counted.segment is not None and counted.segment not in replay.log.segments:
        found = ", ".join(replay.log.segments) or "none"
        raise DataError(
            f"sources.trending.segment = {counted.segment!r}: the log has no such column; allowed is one of: {found}"
        )


def replay_gigabytes(replay: Replay, sources: SourcesConfig) -> float:
    """Return roughly the 10^9 bytes of the snapshot and of a replay of all events."""
    counted, log = sources.counted, replay.log
    windows = 0 if counted is None else len(counted.windows_minutes)
    segments = 1
    if counted is not None and counted.segment in log.segments:
        segments += int(log.segments[counted.segment].max()) + 2
    return (_EVENT_BYTES * len(log) + (_ITEM_BYTES + 4 * windows * segments) * log.items) / 1e9


def fit_size(replay: Replay, events: int) -> FitSize:
    """Return the sizes of what is fitted to the first events of a log."""
    log = replay.log
    counts = np.bincount(log.user[:events][log.first_touch[:events]])
    return FitSize(
        items=log.items,
        users=int((counts > 0).sum()),
        touches=int(counts.sum()),
        longest=int(counts.max(initial=0)),
    )
