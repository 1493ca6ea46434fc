"""Ranking, the same way for every stage: rows of many requests offline, of one request online.

Shapes: B requests, n items that were retrieved for them, m of these that a stage scores, F ranking features, D vector
dimensions, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.tables import RankedTable, ScoredItems
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


class RankingInputs:
    """Inputs of the ranking stages for one or more requests.

    Attributes:
        ids: int64 ``[n]``, the items that were retrieved, request by request, best first.
        queries: float32 ``[B, D]``, the users' vectors.
        request: int64 ``[n]``, row of ``queries`` of each item's request, non-decreasing.
        scores: float32 ``[n]`` by stage; NaN for items that the stage did not score.
        ranks: int32 ``[n]`` by stage, counted from 0 among the items of the request that it scored; -1 for the others.
    """

    def __init__(
        self,
        ids: np.ndarray,
        queries: np.ndarray,
        item_vectors: np.ndarray,
        features: Callable[[], np.ndarray],
        request: np.ndarray | None = None,
    ) -> None:
        """Keep the inputs; features are computed when a stage first reads them.

        Args:
            ids: see the attributes.
            queries: see the attributes.
            item_vectors: float32 ``[N, D]``.
            features: returns float32 ``[n, F]``, the ranking features.
            request: see the attributes; None where there is one request.
        """
        self.ids = ids
        self.queries = queries
        self.request = np.zeros(len(ids), dtype=np.int64) if request is None else request
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

    def query(self, rows: np.ndarray) -> np.ndarray:
        """Return the user's vector of each row, float32 ``[m, D]``; of one request the vector itself, ``[D]``."""
        query: np.ndarray = self.queries[0] if len(self.queries) == 1 else self.queries[self.request[rows]]
        return query

    def keep(self, stage: str, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Store a stage's scores for the stages after it.

        Args:
            stage: its name.
            rows: int64 ``[m]``, rows of ``ids`` that it scored.
            scores: float32 ``[m]``.

        Returns:
            int64 ``[m]``, positions in ``rows``, request by request in the order of the scores, best first, ties in
            the order of retrieval.

        Raises:
            DataError: if a score is NaN.
        """
        order = self._order(rows, scores)
        self.scores[stage] = np.full(len(self.ids), np.nan, dtype=np.float32)
        self.scores[stage][rows] = scores
        self.ranks[stage] = np.full(len(self.ids), -1, dtype=np.int32)
        self.ranks[stage][rows[order]] = self._places(rows[order])
        return order

    def first(self, rows: np.ndarray, k: int) -> np.ndarray:
        """Return the first k rows of each request.

        Args:
            rows: int64 ``[m]``, rows of ``ids``, request by request.
            k: rows of a request at most.
        """
        if len(self.queries) == 1:
            return rows[:k]
        first: np.ndarray = rows[self._places(rows) < k]
        return first

    def _order(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(self.queries) == 1:
            return top_k(scores, len(scores), rows)
        if np.isnan(scores).any():
            raise DataError("a score is NaN, allowed are numbers and infinities")
        order: np.ndarray = np.lexsort((rows, -scores, self.request[rows]))
        return order

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Return each row's place among the rows of its request, from 0, int64 ``[m]``."""
        if len(self.queries) == 1:
            return np.arange(len(rows))
        return places_in_rows(np.diff(run_offsets(self.request[rows])))


class StageScorer(Protocol):
    """The scorer of a row of ``stages.contracts.ranking_stages``: it scores items of any number of requests."""

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
