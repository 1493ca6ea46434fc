"""The rows that the light ranker passes on, as whole requests, from sampled rows.

Shapes: R example rows, Q requests, M chosen rows, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.examples import ExampleRows
from stages.contracts.ragged import run_offsets
from stages.contracts.ranking import SOURCE_POPULAR


@dataclass(frozen=True)
class Lists:
    """The best sampled rows of each request by light score, best first; their features stay in the file.

    Attributes:
        rows: int64 ``[M]`` positions in the examples.
        starts: int64 ``[Q + 1]``; request q has ``rows[starts[q]:starts[q + 1]]``, at least one.
        request_id: int64 ``[Q]``, increasing.
        window: int16 ``[Q]``, see ``ExampleRows``.
        item_index: int64 ``[M]``.
        light_scores: float32 ``[M]``.
        light_ranks: float32 ``[M]``, estimated 0-based position in the light ranker's order of all candidates.
        weight: float32 ``[M]``, see ``ExampleRows``.
        relevance: float32 ``[M]``.
        labels: float32 ``[M, T]`` 0/1.
    """

    rows: np.ndarray
    starts: np.ndarray
    request_id: np.ndarray
    window: np.ndarray
    item_index: np.ndarray
    light_scores: np.ndarray
    light_ranks: np.ndarray
    weight: np.ndarray
    relevance: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.request_id)

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each request, int64 ``[Q]``."""
        return np.diff(self.starts)

    @property
    def positive(self) -> np.ndarray:
        """Whether each request has a row with relevance above 0, bool ``[Q]``."""
        return np.bincount(np.repeat(np.arange(len(self)), self.lengths), self.relevance > 0, len(self)) > 0


def light_lists(examples: ExampleRows, light_scores: np.ndarray, keep: int) -> Lists:
    """Keep the rows that the light ranker would pass on among all candidates of their request.

    Only a sample of the candidates is known. The weights of the sampled rows with a better light score add up to an
    unbiased estimate of the number of candidates before a row (Horvitz and Thompson, 1952). Requests that the popular
    list answered are left out.

    Args:
        examples: R rows; features are not read.
        light_scores: float ``[R]``.
        keep: a row is kept if its estimated rank is below this. The order is that of the light scores, ties by
            retrieval rank.
    """
    chosen = np.flatnonzero(examples.source != SOURCE_POPULAR)
    order = np.lexsort((examples.rank[chosen], -light_scores[chosen], examples.request_id[chosen]))
    rows = chosen[order]
    starts = run_offsets(examples.request_id[rows])
    before = np.cumsum(examples.weight[rows], dtype=np.float64) - examples.weight[rows]
    ranks = before - np.repeat(before[starts[:-1]], np.diff(starts))
    kept = ranks < keep
    rows = rows[kept]
    starts = run_offsets(examples.request_id[rows])
    return Lists(
        rows=rows,
        starts=starts,
        request_id=examples.request_id[rows[starts[:-1]]],
        window=examples.window[rows[starts[:-1]]],
        item_index=examples.item_index[rows],
        light_scores=light_scores[rows].astype(np.float32),
        light_ranks=ranks[kept].astype(np.float32),
        weight=examples.weight[rows],
        relevance=examples.relevance[rows],
        labels=examples.labels[rows],
    )
