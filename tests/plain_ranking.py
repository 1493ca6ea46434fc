"""The ranking of candidate rows in one sort, to compare the stages' with."""

from __future__ import annotations

import numpy as np

from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.tables import CandidateTable, RankedTable


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
