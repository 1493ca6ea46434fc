"""Running a ranking stage, the same way in a server and offline: scores, order, cut.

Shapes: n items that were retrieved for one or more requests, m of them that a stage gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Self

import numpy as np

from stages.contracts.ranking import RankingInputs, StageScorer
from stages.contracts.ranking_stages import RankingStage


@dataclass(frozen=True)
class StageOutput:
    """What a stage made of rows of ``RankingInputs.ids``.

    Attributes:
        ranked: int64 ``[m]``, all rows, request by request, best first.
        passed: int64, the rows that the next stage gets, request by request.
    """

    ranked: np.ndarray
    passed: np.ndarray


@dataclass(frozen=True)
class LoadedStage:
    """A ranking stage with its model.

    Attributes:
        row: of the table of ranking stages.
        scorer: its model.
        is_used: whether it orders and cuts; a stage that is bypassed still scores where another one reads its scores.
    """

    row: RankingStage
    scorer: StageScorer
    is_used: bool = True

    @classmethod
    def load(
        cls,
        row: RankingStage,
        directory: Path,
        feature_schema_hash: str,
        objective: Mapping[str, float],
        is_used: bool = True,
    ) -> Self:
        """Import the stage's scorer by the names in its row, and load the model, see ``StageScorer.load``.

        Raises:
            ReleaseError: if a file is missing or unreadable, or was trained on other features.
        """
        scorer: type[StageScorer] = getattr(import_module(row.module), row.scorer)
        return cls(row, scorer.load(directory, feature_schema_hash, objective), is_used)

    def run(self, inputs: RankingInputs, rows: np.ndarray, sizes: object) -> StageOutput:
        """Score rows, and keep scores and ranks in ``inputs`` for the stages after it.

        A bypassed stage passes the rows on in the order in which it got them.

        Args:
            inputs: of one or more requests.
            rows: int64 ``[m]``, rows of ``inputs.ids``, request by request, in the order of the stage before.
            sizes: has the attribute that ``row.cut`` names.
        """
        order = inputs.keep(self.row.name, rows, self.scorer.score_rows(inputs, rows))
        ranked = rows[order]
        passed = ranked if self.is_used else rows
        if self.row.cut is not None:
            passed = inputs.first(passed, int(getattr(sizes, self.row.cut)))
        return StageOutput(ranked, passed)
