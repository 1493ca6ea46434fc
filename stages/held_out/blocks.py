"""Blocks of held-out requests: cut from the candidates, and ranked by every stage.

Shapes: n candidates of a block, R rows of a piece, Q requests, N items, D vector dimensions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.ragged import run_offsets
from stages.contracts.ranking import SOURCE_POPULAR, RankingInputs
from stages.contracts.stage_runs import LoadedStage
from stages.contracts.tables import CandidateTable, RankedTable
from stages.features.feature_blocks import FeatureBlock
from stages.held_out.config import RankHeldOutConfig


def pieces(blocks: Iterable[CandidateBlock], wanted: np.ndarray, rows: int) -> Iterator[CandidateBlock]:
    """Yield the candidates of some requests, whole requests only.

    Args:
        blocks: candidates, sorted by request.
        wanted: bool ``[Q]``, by request id.
        rows: candidates of a piece at most, unless one request has more.
    """
    for block in blocks:
        kept = block.take(wanted[block.rows.request_id])
        offsets = run_offsets(kept.rows.request_id)
        first = 0
        while first < len(offsets) - 1:
            end = int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1
            end = max(first + 1, end)
            yield kept.take(np.arange(offsets[first], offsets[end]))
            first = end


class PopularRows:
    """Sets the requests of the popular list aside: no stage reorders them, and they need no features."""

    def __init__(self) -> None:
        self._waiting: deque[CandidateTable] = deque()

    def without(self, blocks: Iterable[CandidateBlock]) -> Iterator[CandidateBlock]:
        """Yield the other requests of each block that has any."""
        for block in blocks:
            popular = block.rows.source == SOURCE_POPULAR
            if popular.any():
                self._waiting.append(block.rows.take(popular))
            if not popular.all():
                yield block.take(~popular)

    def before(self, request_id: int | None) -> list[CandidateTable]:
        """Return and forget what was set aside, as far as it begins before a request; None = everything."""
        found = []
        while self._waiting and (request_id is None or self._waiting[0].request_id[0] < request_id):
            found.append(self._waiting.popleft())
        return found


@dataclass(frozen=True)
class BlockRanker:
    """Runs every ranking stage on blocks; threads may share it.

    Attributes:
        stages: in the order in which they run.
        config: has the sizes by which the stages cut.
        queries: float32 ``[Q, D]``, the users' vectors by request id.
        vectors: float32 ``[N, D]``, the item vectors.
    """

    stages: Sequence[LoadedStage]
    config: RankHeldOutConfig
    queries: np.ndarray
    vectors: np.ndarray

    def rank(self, block: FeatureBlock) -> dict[str, RankedTable]:
        """Return all rows that each stage got, by its name, in its order."""
        candidates = block.candidates.rows
        ids, request = np.unique(candidates.request_id, return_inverse=True)
        inputs = RankingInputs(
            candidates.item_index, np.asarray(self.queries[ids]), self.vectors, lambda: block.features, request
        )
        rows, tables = np.arange(len(candidates)), {}
        for stage in self.stages:
            output, name = stage.run(inputs, rows, self.config), stage.row.name
            tables[name] = RankedTable(
                request_id=candidates.request_id[output.ranked],
                item_index=candidates.item_index[output.ranked],
                score=inputs.scores[name][output.ranked],
                rank=inputs.ranks[name][output.ranked],
            )
            rows = output.passed
        return tables

    def keep(self, candidates: CandidateTable) -> dict[str, RankedTable]:
        """Return the rows of requests of the popular list that each stage got: in their own order, cut likewise."""
        tables = {}
        for stage in self.stages:
            tables[stage.row.name] = RankedTable(**{name: getattr(candidates, name) for name in RankedTable.TYPES})
            if stage.row.cut is not None:
                candidates = candidates.take(candidates.rank < getattr(self.config, stage.row.cut))
        return tables
