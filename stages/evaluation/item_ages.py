"""The ledger by the age of the items that are looked for: how long after its first sign an item is found.

The age of a target is the time from its item's creation to the request. An item is created at its publication time or
at its first event, whichever is earlier (``stages.dataset.ids``).

Shapes: Q requests, T targets, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stages.contracts.tables import DAY_MS
from stages.evaluation.measure import NOT_RANKED, RowMeasures
from stages.evaluation.metrics import HeldOut, JudgedRanking, ndcg_at, recall_at

HOUR_MS = DAY_MS // 24
NOT_YET = "item not yet there"
"""The slice of targets whose item is created between the request and its touch: no answer can hold them."""
SLICES = (
    ("item under 1 h", HOUR_MS),
    ("item 1-6 h", 6 * HOUR_MS),
    ("item 6-24 h", DAY_MS),
    ("item 1-7 days", 7 * DAY_MS),
    ("item older", None),
)
"""Name and upper border of each slice; an age at the border is in the next one."""


def age_slices(age_ms: np.ndarray) -> dict[str, np.ndarray]:
    """Return a mask of targets, bool ``[T]``, for each slice of ages, by the ledger's slice names.

    Args:
        age_ms: int64 ``[T]``, negative where the item is created after the request.
    """
    slices, low = {NOT_YET: age_ms < 0}, 0
    for name, border in SLICES:
        high = np.iinfo(np.int64).max if border is None else border
        slices[name] = (age_ms >= low) & (age_ms < high)
        low = high
    return slices


def by_item_age(
    rows: Mapping[str, RowMeasures],
    held: HeldOut,
    request_time_ms: np.ndarray,
    created_at_ms: np.ndarray,
    ks: tuple[int, ...],
    candidate_k: int,
) -> list[dict[str, Any]]:
    """Return each row's metrics by the age of the targets.

    In a slice only its targets are looked for, in the requests that have one: the others count as any other item.
    Means are over these requests. ``ndcg_share@k`` is the part of the row's NDCG over all requests that the slice's
    targets bring in; those of all slices add up to 1, or are 0 where that NDCG is.

    Args:
        rows: of the ledger.
        held: the requests and their targets.
        request_time_ms: int64 ``[Q]``.
        created_at_ms: int64 ``[N]``.
        ks: cut-offs.
        candidate_k: one more cut-off, for recall alone.
    """
    age_ms = request_time_ms[held.position] - created_at_ms[held.item_index]
    return [
        {
            "name": name,
            "requests": len(np.unique(held.position[mask])),
            "targets": int(mask.sum()),
            "target_share": float(mask.mean()),
            "rows": {
                row: _metrics(measures.target_rank, held, np.flatnonzero(mask), ks, candidate_k)
                for row, measures in rows.items()
            }
            if mask.any()
            else {},
        }
        for name, mask in age_slices(age_ms).items()
    ]


def _metrics(
    rank: np.ndarray, held: HeldOut, targets: np.ndarray, ks: tuple[int, ...], candidate_k: int
) -> dict[str, float]:
    judged = _judged(held.of_targets(targets), rank[targets])
    found = {f"ndcg@{k}": float(ndcg_at(judged, k).mean()) for k in ks}
    found |= {f"recall@{k}": float(recall_at(judged, k).mean()) for k in (*ks, candidate_k)}
    return found | {f"ndcg_share@{k}": _share(held, rank, targets, k) for k in ks}


def _share(held: HeldOut, rank: np.ndarray, targets: np.ndarray, k: int) -> float:
    of_slice = np.full_like(rank, NOT_RANKED)
    of_slice[targets] = rank[targets]
    own, whole = (float(ndcg_at(_judged(held, ranks), k).sum()) for ranks in (of_slice, rank))
    return own / whole if whole else 0.0


def _judged(held: HeldOut, rank: np.ndarray) -> JudgedRanking:
    """Return the targets that are ranked, int32 ``[T]``, as a ranking; all metrics here are the same on it."""
    rows = np.flatnonzero(rank < NOT_RANKED)
    return JudgedRanking(
        held, held.position[rows], held.item_index[rows], rank[rows].astype(np.int64), held.relevance[rows], rows
    )
