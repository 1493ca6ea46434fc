"""Measure one row of the ledger from tables that may come in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ragged import run_offsets
from stages.contracts.tables import CandidateTable, RankedTable
from stages.evaluation.metrics import (
    HeldOut,
    JudgedRanking,
    coverage,
    hit_rate_at,
    judge,
    mrr_at,
    ndcg_at,
    popularity_share,
    precision_at,
    recall_at,
    shown_items,
)

NOT_RANKED = np.iinfo(np.int32).max
"""Rank of a target that is not among the answers."""


@dataclass(frozen=True)
class RowMeasures:
    """The metrics of one row.

    Attributes:
        per_request: float64 ``[Q]`` by metric name, such as ``ndcg@10``.
        overall: metrics of all answers together, such as ``coverage@10``.
        answered: number of requests that got at least one answer.
        target_rank: int32 ``[T]``, rank of each target in its request's answers, ``NOT_RANKED`` where it is none.
    """

    per_request: dict[str, np.ndarray]
    overall: dict[str, float]
    answered: int
    target_rank: np.ndarray

    def means(self, rows: np.ndarray | None = None) -> dict[str, float]:
        """Return the mean of each per-request metric over all requests, or over ``rows`` (bool ``[Q]``)."""
        chosen = slice(None) if rows is None else rows
        return {name: float(values[chosen].mean()) for name, values in self.per_request.items()}


def measure(
    tables: Iterable[RankedTable | CandidateTable],
    held: HeldOut,
    ks: tuple[int, ...],
    candidate_k: int,
    head: np.ndarray,
) -> RowMeasures:
    """Measure a stage's answers.

    Each piece is measured against its own requests' targets, so that many small pieces cost no more than one.

    Args:
        tables: pieces of one ranking; each request's rows lie in one piece. A request without
            rows counts as missed in every metric.
        held: the requests and their targets.
        ks: cut-offs of all metrics.
        candidate_k: one more, deeper cut-off for recall alone.
        head: bool ``[N]``, the popular head.

    Raises:
        DataError: if a request's rows lie in two pieces, or a piece is malformed, see ``judge``.
    """
    per_request: dict[str, np.ndarray] = {}
    shown = {k: np.zeros(held.n_items, dtype=np.int64) for k in ks}
    answered = np.zeros(len(held), dtype=bool)
    target_rank = np.full(len(held.item_index), NOT_RANKED, dtype=np.int32)
    for table in tables:
        rows = held.rows(table.request_id[run_offsets(table.request_id)[:-1]])
        requests = np.unique(rows[rows >= 0])
        if answered[requests].any():
            again = int(held.request_id[requests[answered[requests]][0]])
            raise DataError(f"request {again}: its answers lie in two pieces of a ranking, allowed is one")
        answered[requests] = True
        judged = judge(table, held.take(requests))
        hits = judged.hits()
        target_rank[held.targets_of(requests)[hits.target]] = hits.rank
        for name, values in _per_request(hits, ks, candidate_k).items():
            per_request.setdefault(name, np.zeros(len(held)))[requests] = values
        for k in ks:
            shown[k] += shown_items(judged, k)
    overall = {f"coverage@{k}": coverage(shown[k]) for k in ks}
    overall |= {f"popularity_share@{k}": popularity_share(shown[k], head) for k in ks}
    return RowMeasures(per_request=per_request, overall=overall, answered=int(answered.sum()), target_rank=target_rank)


def _per_request(judged: JudgedRanking, ks: tuple[int, ...], candidate_k: int) -> dict[str, np.ndarray]:
    values = {}
    for k in ks:
        values[f"ndcg@{k}"] = ndcg_at(judged, k)
        values[f"graded_ndcg@{k}"] = ndcg_at(judged, k, graded=True)
        values[f"recall@{k}"] = recall_at(judged, k)
        values[f"precision@{k}"] = precision_at(judged, k)
        values[f"mrr@{k}"] = mrr_at(judged, k)
        values[f"hit_rate@{k}"] = hit_rate_at(judged, k)
    values[f"recall@{candidate_k}"] = recall_at(judged, candidate_k)
    return values
