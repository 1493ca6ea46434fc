"""The product's two-tower in a replay: it is trained once, and its histories advance with the log.

Legend: B events of a block, N items, M items of a pool.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from benchmarks.retrieval.data import Interactions
from benchmarks.retrieval.product_towers import TouchHistories, towers_gigabytes, train_towers
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import ReplayModel
from benchmarks.retrieval.replay.run import Pool, Walker
from benchmarks.retrieval.replay.shares import recent_counts
from stages.candidate.config import CandidateConfig
from stages.features.config import FeatureConfig


class ReplayTwoTower(ReplayModel):
    """The two-tower trained on the past; each event's history is embedded as it stands before it.

    A user without a history of items that the tower knows gets the popular items. Items that appear after training
    have no vector and are not answered.

    Attributes:
        candidate, features: as in ``TwoTower``.
        seed: of the training.
    """

    candidate: CandidateConfig = CandidateConfig()
    features: FeatureConfig = FeatureConfig()
    seed: Annotated[int, Field(ge=0)] = 1

    def prepare(self, log: Log, train: int) -> Walker:
        """Train on the first ``train`` events."""
        items = int(log.item[:train].max()) + 1
        rows = Interactions(
            log.user[:train], log.item[:train], log.time_ms[:train] // 1000, int(log.user[:train].max()) + 1, items
        )
        trained = train_towers(rows, self.candidate.changed(training={"seed": self.seed}), self.features)
        known = np.flatnonzero(log.item < items)
        histories = TouchHistories(
            log.user[known], log.item[known], log.time_ms[known], self.features.history_length, items
        )

        def walk(rows: slice) -> Pool:
            events = np.arange(rows.start, rows.stop)
            start, end = histories.before(log.user[rows], np.searchsorted(known, events))
            scores_BN = trained.scores(trained.queries(histories.inputs(start, end, log.time_ms[rows])))
            scores_BN[start == end] = recent_counts(log, rows.start, None)[:items]
            return Pool(np.arange(items), scores_BN)

        return walk

    def gigabytes(self, log: Log, train: int) -> float:
        """The training and its processes, and the log by user."""
        items = int(log.item[:train].max()) + 1
        return towers_gigabytes(train, items, self.candidate, self.features) + 80 * len(log) / 1e9
