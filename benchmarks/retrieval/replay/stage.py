"""The product's candidate stage in a replay: the two-tower alone, or with other generators, as a run serves it.

Towers and generators are trained once. Where quotas or a mixture are learned, the latest training events are the ranker
period: they teach, and towers and generators are fitted to the events before them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from benchmarks.retrieval.product_steps import CandidateStage, answers_of, train_stage
from benchmarks.retrieval.replay.models import ReplayModel, fit_size, replay_gigabytes, require_segment
from benchmarks.retrieval.replay.run import Replay
from benchmarks.retrieval.static.stage import with_kind
from stages.candidate.config import CandidateConfig, IndexConfig
from stages.candidate.generators.config import SourcesConfig
from stages.contracts.errors import DataError
from stages.features.config import FeatureConfig


class ReplayTwoTower(ReplayModel):
    """The two-tower index alone.

    A user without history gets the popular items. An item that appears after training is embedded from its content,
    of which these logs have none.

    Attributes:
        candidate, features, index, candidate_k: as in ``CandidateStage``.
        seed: of everything that is drawn.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    index: IndexConfig = IndexConfig()
    candidate_k: Annotated[int, Field(ge=200)] = 200
    seed: Annotated[int, Field(ge=0)] = 1

    def stage(self, sources: SourcesConfig | None = None) -> CandidateStage:
        """Return the settings of the candidate stage, with other generators if ``sources`` names some."""
        own = {name: getattr(self, name) for name in ("candidate", "features", "index", "candidate_k")}
        return CandidateStage(**own, sources=SourcesConfig() if sources is None else sources).seeded(self.seed)

    def ranks(self, replay: Replay) -> np.ndarray:
        """Train on all training events, replay and answer."""
        return ranks_of(replay, self.stage(), 0, self.seed)

    def gigabytes(self, replay: Replay) -> float:
        """The training and its processes, or the replay of the log."""
        return stage_gigabytes(replay, self.stage())


class ReplayQuotas(ReplayModel):
    """The two-tower and other generators, mixed by quotas.

    Attributes:
        two_tower: settings of the model of that name.
        sources: a recipe's section: generators, their settings, and what mixes their lists.
        learn_share: share of the training events, the latest ones, that are the ranker period where quotas or a mixture
            are learned.
    """

    parts: ClassVar[tuple[str, ...]] = ("two_tower",)
    kind: ClassVar[str] = "quotas"
    two_tower: ReplayTwoTower = ReplayTwoTower()
    sources: SourcesConfig = Field(default_factory=SourcesConfig)
    learn_share: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @model_validator(mode="before")
    @classmethod
    def _mixed_by_its_kind(cls, values: Any) -> Any:
        return with_kind(cls.kind, values)

    @property
    def _stage(self) -> CandidateStage:
        return self.two_tower.stage(self.sources)

    def ranks(self, replay: Replay) -> np.ndarray:
        """Train, learn what is to be learned, replay and answer."""
        return ranks_of(replay, self._stage, self._learning(replay), self.two_tower.seed)

    def gigabytes(self, replay: Replay) -> float:
        """The training and its processes, the largest generator, or the replay of the log."""
        return stage_gigabytes(replay, self._stage)

    def check(self, replay: Replay) -> None:
        """Check that the generators fit their memory, and that there are segments and events to learn from."""
        require_segment(replay, self.sources)
        learning = self._learning(replay)
        self._stage.check(fit_size(replay, replay.train - learning))
        part = slice(replay.train - learning, replay.train)
        if learning and not (replay.log.first_touch & (replay.log.place > 0))[part].any():
            raise DataError(
                f"nobody meets a second item in the latest {self.learn_share:g} of the training events, from which the "
                "mixture is learned; allowed is a log with users of several items, or a larger learn_share"
            )

    def _learning(self, replay: Replay) -> int:
        """Return how many events are of the ranker period."""
        return round(self.learn_share * replay.train) if self.sources.learns else 0


class ReplayLearnedMixture(ReplayQuotas):
    """The two-tower and other generators, mixed by a network, where that gains; else by quotas."""

    kind: ClassVar[str] = "learned"


def ranks_of(replay: Replay, stage: CandidateStage, learning: int, seed: int) -> np.ndarray:
    """Return the ranks of the judged events' items, see ``Replay.ranks``.

    Args:
        replay: the log.
        stage: settings.
        learning: events of the ranker period.
        seed: of the choice of requests to learn from.
    """
    mixture = stage.sources.mixture
    asked = mixture.max_requests if mixture.kind == "learned" else stage.sources.learning.max_requests
    rows = replay.rows_with(learning, asked, seed)
    answers = answers_of(train_stage(rows, stage), stage)
    first = len(rows.requests) - len(replay.judged)
    return replay.ranks(((table.request_id, table.item_index, table.rank) for table in answers), first)


def stage_gigabytes(replay: Replay, stage: CandidateStage) -> float:
    """Return roughly the 10^9 bytes of the training, or of the replay of the log."""
    training = stage.gigabytes(fit_size(replay, replay.train), min(1024, len(replay.judged)))
    return max(training, replay_gigabytes(replay, stage.sources))
