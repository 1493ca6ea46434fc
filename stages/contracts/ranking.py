"""Ranking, the same way for every stage: scored rows of many requests offline, one request online.

Shapes: n items that were retrieved for one request, m of them that a stage scores, F ranking features, D vector
dimensions, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.tables import CandidateTable, RankedTable, ScoredItems
from stages.contracts.top_k import top_k

BASELINES_FILE = "baselines.json"
"""Output of the step ``rank_baselines``: ``rows`` are the names of its rankings, each in ``<name>.parquet``
(RankedTable); ``left_out`` is the reason by name of each baseline without a ranking."""

SOURCE_TOWER, SOURCE_POPULAR = 0, 1
"""Codes of ``CandidateTable.source``: the two-tower index, or the popular list that answers a
request without history. Rankers do not reorder requests of the popular list."""


def ranked_table(request_id: Sequence[int] | np.ndarray, answers: Sequence[ScoredItems]) -> RankedTable:
    """Return answers as rows.

    Args:
        request_id: int ``[Q]``, increasing.
        answers: one per request.
    """
    lengths = np.array([len(items) for items in answers], dtype=np.int64)
    return RankedTable(
        request_id=np.repeat(np.asarray(request_id, dtype=np.int64), lengths),
        item_index=np.concatenate([np.zeros(0, dtype=np.int64), *(items.ids for items in answers)]),
        score=np.concatenate([np.zeros(0, dtype=np.float32), *(items.scores for items in answers)]),
        rank=places_in_rows(lengths).astype(np.int32),
    )


def rank_rows(rows: CandidateTable, scores: np.ndarray, keep: int | None = None) -> RankedTable:
    """Re-rank candidate rows by ``scores``, request by request.

    Requests answered from the popular list keep the order they came in. Ties keep candidate order.

    Args:
        rows: R candidate rows, sorted by (request_id, rank).
        scores: float ``[R]``; NaN is not allowed. ``-inf`` drops a row.
        keep: how many rows of each request to keep, or None for all.

    Returns:
        Rows sorted by (request_id, rank), ranks counted from 0.
    """
    final = np.where(rows.source == SOURCE_POPULAR, rows.score, scores).astype(np.float32)
    order = np.lexsort((rows.rank, -final, rows.request_id))
    order = order[np.isfinite(final[order])]
    request_id = rows.request_id[order]
    rank = places_in_rows(np.diff(run_offsets(request_id))).astype(np.int32)
    kept = slice(None) if keep is None else rank < keep
    return RankedTable(
        request_id=request_id[kept],
        item_index=rows.item_index[order][kept],
        score=final[order][kept],
        rank=rank[kept],
    )


class RankingInputs:
    """Inputs of the ranking stages for one request, in the order of retrieval.

    Attributes:
        ids: int64 ``[n]``, the items that were retrieved, best first.
        query: float32 ``[D]``, the user's vector.
        scores: float32 ``[n]`` by stage; NaN for items that the stage did not score.
        ranks: int32 ``[n]`` by stage, counted from 0 among the items that it scored; -1 for the others.
    """

    def __init__(
        self, ids: np.ndarray, query: np.ndarray, item_vectors: np.ndarray, features: Callable[[], np.ndarray]
    ) -> None:
        """Keep the inputs; features are computed when a stage first reads them.

        Args:
            ids: see the attributes.
            query: see the attributes.
            item_vectors: float32 ``[N, D]``.
            features: returns float32 ``[n, F]``, the ranking features.
        """
        self.ids = ids
        self.query = query
        self.scores: dict[str, np.ndarray] = {}
        self.ranks: dict[str, np.ndarray] = {}
        self._item_vectors = item_vectors
        self._compute = features

    @cached_property
    def features(self) -> np.ndarray:
        """The ranking features, float32 ``[n, F]``."""
        return self._compute()

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the item vectors, float32 ``[m, D]``, of int64 ``[m]`` rows of ``ids``."""
        return np.asarray(self._item_vectors[self.ids[rows]])

    def keep(self, stage: str, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Store a stage's scores for the stages after it.

        Args:
            stage: its name.
            rows: int64 ``[m]``, rows of ``ids`` that it scored.
            scores: float32 ``[m]``.

        Returns:
            int64 ``[m]``, positions in ``rows`` in the order of the scores, best first, ties in the order of retrieval.

        Raises:
            DataError: if a score is NaN.
        """
        order = top_k(scores, len(scores), rows)
        self.scores[stage] = np.full(len(self.ids), np.nan, dtype=np.float32)
        self.scores[stage][rows] = scores
        self.ranks[stage] = np.full(len(self.ids), -1, dtype=np.int32)
        self.ranks[stage][rows[order]] = np.arange(len(rows), dtype=np.int32)
        return order


class StageScorer(Protocol):
    """The scorer of a row of ``stages.contracts.ranking_stages``: it scores the items of one request."""

    @classmethod
    def load(cls, directory: Path, feature_schema_hash: str, objective: Mapping[str, float]) -> Self:
        """Load a trained stage.

        Args:
            directory: a release, or the finished step that trained the stage.
            feature_schema_hash: of the ranking features that the caller computes.
            objective: weight of each task in a score; empty means the weights that the stage was trained for.

        Raises:
            ReleaseError: if a file is missing or unreadable, or was trained on other features.
        """
        ...

    def score_rows(self, inputs: RankingInputs, rows: np.ndarray) -> np.ndarray:
        """Return float32 ``[m]`` scores, higher is better, of int64 ``[m]`` rows of ``inputs.ids``."""
        ...
