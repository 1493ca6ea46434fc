"""Judges full rankings: every item that the user has not seen is scored, and nothing is sampled.

Legend: B users of a block, N items, k answers, J judged users.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from benchmarks.retrieval.data import Split
from stages.contracts.errors import DataError
from stages.contracts.ndcg import discounts
from stages.contracts.top_k import top_k

Scorer = Callable[[np.ndarray], np.ndarray]
"""Users int64 ``[B]`` to scores float ``[B, N]`` of the whole catalogue; ``-inf`` is never answered."""

CELLS = 16_000_000
"""Most scores in a block."""
_CELL_BYTES = 32
"""Memory of a score while its block is judged."""
METRICS = ("ndcg", "recall", "precision", "hit_rate")


def top_k_of_rows(scores_BN: np.ndarray, k: int) -> np.ndarray:
    """Return the k best columns of each row, int64 ``[B, k]``, best first; of equal scores the lower column is first.

    Where fewer than k scores are above ``-inf``, the rest is -1.

    Raises:
        DataError: if a score is NaN.
    """
    if np.isnan(scores_BN).any():
        raise DataError("scores hold NaN; allowed are numbers, and -inf for what is not answered")
    best_Bk = np.full((len(scores_BN), k), -1, dtype=np.int64)
    for best_k, scores_N in zip(best_Bk, scores_BN, strict=True):
        found = top_k(scores_N, k)
        found = found[scores_N[found] > -np.inf]
        best_k[: len(found)] = found
    return best_Bk


def rank_metrics(hits_Jk: np.ndarray, wanted_J: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics of each user, float64 ``[J]``, under the names of ``METRICS``.

    NDCG is binary: the gain of a hit at place p, from 1, is 1 / log2(p + 1), and the ideal ranking has
    min(k, wanted) hits at the top. Recall divides by all wanted items, even if they are more than k. The recommenders
    team's recall, and ``Recall(k=20)`` of RecZoo and BARS, do the same.

    Args:
        hits_Jk: bool, which of a user's answers are wanted.
        wanted_J: how many items are wanted, at least 1 each.
    """
    k = hits_Jk.shape[1]
    gains_k = discounts(np.arange(k), k)
    ideal = np.cumsum(gains_k)[np.minimum(wanted_J, k) - 1]
    found = hits_Jk.sum(axis=1)
    return {
        "ndcg": hits_Jk @ gains_k / ideal,
        "recall": found / wanted_J,
        "precision": found / k,
        "hit_rate": (found > 0).astype(np.float64),
    }


def judging_gigabytes(users: int, items: int) -> float:
    """Return the 10^9 bytes that ``judge`` takes at most beside the scorer."""
    return _CELL_BYTES * min(CELLS, users * items) / 1e9


def judge(scorer: Scorer, split: Split, k: int) -> dict[str, np.ndarray]:
    """Return the metrics at k of every user with held-out items, float64 ``[J]``, users ascending.

    Raises:
        DataError: if no user has a held-out item, or scores have the wrong shape or hold NaN.
    """
    seen, wanted = split.train.matrix, split.test.matrix
    wanted_U = np.diff(wanted.indptr)
    users = np.flatnonzero(wanted_U)
    if not len(users):
        raise DataError("no user has a held-out item to be judged on; allowed is one or more")
    block = max(1, CELLS // split.train.items)
    hits = []
    for start in range(0, len(users), block):
        asked = users[start : start + block]
        scores_BN = np.array(scorer(asked), dtype=np.float32)
        if scores_BN.shape != (len(asked), split.train.items):
            raise DataError(f"scores of {len(asked)} users are {list(scores_BN.shape)}, not [B, {split.train.items}]")
        scores_BN[seen[asked].nonzero()] = -np.inf
        hits.append(_among(wanted, asked, top_k_of_rows(scores_BN, k)))
    return rank_metrics(np.concatenate(hits), wanted_U[users])


def _among(wanted: sparse.csr_matrix, users: np.ndarray, answers_Bk: np.ndarray) -> np.ndarray:
    """Return bool ``[B, k]``: which answers are held-out items of their user."""
    flags_BN = wanted[users].toarray() > 0
    found: np.ndarray = np.take_along_axis(flags_BN, np.maximum(answers_Bk, 0), axis=1) & (answers_Bk >= 0)
    return found
