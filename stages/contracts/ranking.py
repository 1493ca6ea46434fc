"""Sorting scored rows into rankings, the same way for every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.tables import CandidateTable, RankedTable, ScoredItems

BASELINES_FILE = "baselines.json"
"""Of the step ``rank_baselines``: ``rows``, names of its rankings, each in ``<name>.parquet`` (RankedTable),
and ``left_out``, why others have none, by name."""

SOURCE_TOWER, SOURCE_POPULAR = 0, 1
"""Codes of ``CandidateTable.source``: the two-tower index, or the popular list that answers a
request without history. Rankers leave requests of the popular list in their order."""


def ranked_table(request_id: Sequence[int] | np.ndarray, answers: Sequence[ScoredItems]) -> RankedTable:
    """Return answers as rows.

    Args:
        request_id: int ``[Q]``, increasing.
        answers: one a request.
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
