"""Decides whether a learned mixture is used: on later requests it must gain on quotas and on every single generator.

Shapes: B requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stages.candidate.retrieval.listed_requests import ListedRequests
from stages.contracts.item_lists import ItemLists
from stages.contracts.ndcg import dcg, ideal_dcg
from stages.contracts.ragged import places_in_rows


@dataclass(frozen=True)
class Measured:
    """How well lists of at most ``candidate_k`` items hold the targets of B requests.

    Attributes:
        recall: float64 ``[B]``, share of a request's targets.
        ndcg: float64 ``[B]``, by the order of the list, with the same cut-off.
    """

    recall: np.ndarray
    ndcg: np.ndarray

    @classmethod
    def of(cls, requests: ListedRequests, lists: ItemLists, k: int) -> Measured:
        """Measure the first ``k`` items of each list."""
        lists, n = lists.first(k), len(requests)
        gains, row = requests.gains(lists.offsets, lists.ids), np.repeat(np.arange(n), lists.lengths)
        hits = (gains > 0).astype(np.float64)
        wanted = np.repeat(np.arange(n), requests.n_targets)
        ideal = ideal_dcg(wanted, np.ones(len(wanted)), k, n)
        found = dcg(row, hits, places_in_rows(lists.lengths), k, n)
        return cls(np.bincount(row, gains, minlength=n), found / ideal)


@dataclass(frozen=True)
class Choice:
    """Whether the mixture is used, and why."""

    is_used: bool
    reason: str


def choose(mixture: Measured, others: Mapping[str, Measured], k: int) -> Choice:
    """Use the mixture where it loses no recall, and gains recall or NDCG, against the best of the others by recall.

    A difference counts if it is above its standard error over the requests, which is paired, as in ``learn_quotas``.

    Args:
        mixture: on the validation requests.
        others: the same requests, by name; of equal recall the one with the larger NDCG is the best.
        k: ``candidate_k``, for the reason.
    """
    best = max(others, key=lambda name: (others[name].recall.mean(), others[name].ndcg.mean()))
    recall, ndcg = mixture.recall - others[best].recall, mixture.ndcg - others[best].ndcg
    compared = (
        f"recall@{k} {mixture.recall.mean():.4f} and NDCG@{k} {mixture.ndcg.mean():.4f} on {len(recall):,} validation "
        f"requests, {best} has {others[best].recall.mean():.4f} and {others[best].ndcg.mean():.4f}"
    )
    if _gains(-recall):
        return Choice(False, f"it loses recall: {compared}")
    if not _gains(recall) and not _gains(ndcg):
        return Choice(False, f"it gains nothing beyond chance: {compared}")
    return Choice(True, f"it gains {'recall' if _gains(recall) else 'NDCG'}: {compared}")


def _gains(differences: np.ndarray) -> bool:
    return bool(differences.mean() > differences.std() / np.sqrt(len(differences)))
