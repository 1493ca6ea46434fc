"""Full-ranking metrics, one value per request.

Every metric is computed over the whole catalogue: an item that a stage did not rank counts as
missed, and nothing is sampled. Legend: Q requests, N items, R ranked rows, T targets, K cut-off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ndcg import dcg, ideal_dcg
from stages.contracts.ragged import ranges, run_offsets
from stages.contracts.snapshot import Targets
from stages.contracts.tables import CandidateTable, RankedTable
from stages.contracts.top_k import top_k


@dataclass(frozen=True)
class HeldOut:
    """Held-out requests and their targets.

    Attributes:
        request_id: int64 ``[Q]``, strictly increasing; each has at least one target.
        position: int64 ``[T]``, row of ``request_id`` that a target belongs to, non-decreasing.
        item_index: int64 ``[T]``, unique within a request.
        relevance: float64 ``[T]``, above zero.
        n_items: size N of the catalogue.
    """

    request_id: np.ndarray
    position: np.ndarray
    item_index: np.ndarray
    relevance: np.ndarray
    n_items: int

    @classmethod
    def make(cls, request_id: np.ndarray, targets: Targets, n_items: int) -> HeldOut:
        """Select the targets of ``request_id`` (int64 ``[Q]``, strictly increasing).

        Raises:
            DataError: if a request has no target, or a target no positive relevance.
        """
        position = np.searchsorted(request_id, targets.request_id)
        ours = position < len(request_id)
        ours[ours] = request_id[position[ours]] == targets.request_id[ours]
        rows = np.flatnonzero(ours)[np.argsort(position[ours], kind="stable")]
        held = cls(
            request_id=request_id,
            position=position[rows],
            item_index=targets.item_index[rows],
            relevance=targets.relevance[rows].astype(np.float64),
            n_items=n_items,
        )
        empty = np.flatnonzero(held.counts == 0)
        if len(empty):
            raise DataError(f"request_id {request_id[empty[0]]}: no target, so no metric; {len(empty)} such requests")
        if not (held.relevance > 0).all():
            raise DataError(f"targets.relevance: found {held.relevance.min()}, allowed are values above 0")
        return held

    def __len__(self) -> int:
        return len(self.request_id)

    @property
    def counts(self) -> np.ndarray:
        """Targets of each request, int64 ``[Q]``."""
        return np.bincount(self.position, minlength=len(self.request_id))

    def take(self, requests: np.ndarray) -> HeldOut:
        """Return some requests with their targets.

        Args:
            requests: int64, rows of ``request_id``, strictly increasing.
        """
        return self.of_targets(self.targets_of(requests))

    def targets_of(self, requests: np.ndarray) -> np.ndarray:
        """Return int64, the targets of some requests, by ``requests``' order; they are as in ``take``."""
        starts, ends = (np.searchsorted(self.position, requests, side=side) for side in ("left", "right"))
        return ranges(starts, ends - starts)

    def of_targets(self, targets: np.ndarray) -> HeldOut:
        """Return some targets and the requests that have one of them.

        Args:
            targets: int64 ``[T]``, rows of ``item_index``, strictly increasing.
        """
        requests, position = np.unique(self.position[targets], return_inverse=True)
        return HeldOut(
            request_id=self.request_id[requests],
            position=position.astype(np.int64),
            item_index=self.item_index[targets],
            relevance=self.relevance[targets],
            n_items=self.n_items,
        )

    def rows(self, request_id: np.ndarray) -> np.ndarray:
        """Return the row of each of int64 ``[R]`` request ids, int64 ``[R]``; -1 for one that is not held out."""
        offsets = run_offsets(request_id)
        ids = request_id[offsets[:-1]]
        row = np.searchsorted(self.request_id, ids)
        known = row < len(self)
        known[known] = self.request_id[row[known]] == ids[known]
        return np.repeat(np.where(known, row, -1), np.diff(offsets))


@dataclass(frozen=True)
class JudgedRanking:
    """A stage's answers to the held-out requests, each row marked with its target's relevance.

    Attributes:
        held: the requests and their targets.
        position: int64 ``[R]``, row of ``held.request_id``.
        item_index: int64 ``[R]``.
        rank: int32 ``[R]``, 0-based.
        relevance: float64 ``[R]``, 0 where the item is no target of the request.
        target: int64 ``[R]``, row of ``held.item_index``, -1 where the item is no target of the request.
    """

    held: HeldOut
    position: np.ndarray
    item_index: np.ndarray
    rank: np.ndarray
    relevance: np.ndarray
    target: np.ndarray

    def per_request(self, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the sum of ``weights`` ``[R]`` over the selected ``rows``, float64 ``[Q]``."""
        return np.bincount(self.position[rows], weights=weights[rows], minlength=len(self.held))

    def hits(self) -> JudgedRanking:
        """Return the rows that are targets; every metric of single requests is the same on them."""
        rows = np.flatnonzero(self.relevance > 0)
        columns = (self.position, self.item_index, self.rank, self.relevance, self.target)
        return JudgedRanking(self.held, *(column[rows] for column in columns))


def judge(ranked: RankedTable | CandidateTable, held: HeldOut) -> JudgedRanking:
    """Match ranked rows with targets; rows of requests that are not held out are ignored.

    Raises:
        DataError: if an item is outside the catalogue or answered twice in one request, or two
            items share a rank.
    """
    position = held.rows(ranked.request_id)
    ours = position >= 0
    position, item_index, rank = position[ours], ranked.item_index[ours], ranked.rank[ours]
    if len(item_index) and (item_index.min() < 0 or item_index.max() >= held.n_items):
        found = item_index.min() if item_index.min() < 0 else item_index.max()
        raise DataError(f"ranked item_index {found}: allowed are 0 to {held.n_items - 1}")
    keys = position * held.n_items + item_index
    _refuse_repeats(held, keys, position, "an item is answered twice")
    depth = int(rank.max(initial=0)) + 1
    _refuse_repeats(held, position * depth + rank, position, "two items share a rank")
    relevance, target = np.zeros(len(keys), dtype=np.float64), np.full(len(keys), -1)
    is_target = np.zeros(held.n_items, dtype=bool)
    is_target[held.item_index] = True
    asked = np.flatnonzero(is_target[item_index])  # a target of some request: few rows are
    wanted = held.position * held.n_items + held.item_index
    order = np.argsort(wanted, kind="stable")
    spot = np.searchsorted(wanted, keys[asked], sorter=order)
    asked, spot = asked[spot < len(wanted)], spot[spot < len(wanted)]
    rows = order[spot]
    found_rows = wanted[rows] == keys[asked]
    target[asked[found_rows]] = rows[found_rows]
    relevance[asked[found_rows]] = held.relevance[rows[found_rows]]
    return JudgedRanking(held, position, item_index, rank, relevance, target)


def _refuse_repeats(held: HeldOut, keys: np.ndarray, position: np.ndarray, what: str) -> None:
    if (np.diff(keys) > 0).all() or (np.diff(np.sort(keys, kind="stable")) > 0).all():
        return
    order = np.argsort(keys, kind="stable")
    repeats = order[1:][np.diff(keys[order]) == 0]
    raise DataError(f"ranking of request_id {held.request_id[position[repeats[0]]]}: {what}")


def recall_at(judged: JudgedRanking, k: int) -> np.ndarray:
    """Share of a request's targets among its first ``k`` answers, float64 ``[Q]``."""
    hits = (judged.relevance > 0).astype(np.float64)
    return np.asarray(judged.per_request(hits, judged.rank < k) / judged.held.counts)


def precision_at(judged: JudgedRanking, k: int) -> np.ndarray:
    """Targets among the first ``k`` answers over ``k``, float64 ``[Q]``; missing answers count as misses."""
    hits = (judged.relevance > 0).astype(np.float64)
    return judged.per_request(hits, judged.rank < k) / k


def hit_rate_at(judged: JudgedRanking, k: int) -> np.ndarray:
    """1 where any target is among the first ``k`` answers, else 0, float64 ``[Q]``."""
    return (recall_at(judged, k) > 0).astype(np.float64)


def mrr_at(judged: JudgedRanking, k: int) -> np.ndarray:
    """One over the 1-based rank of the first target, 0 if there is none in ``k``, float64 ``[Q]``."""
    rows = (judged.relevance > 0) & (judged.rank < k)
    best = np.zeros(len(judged.held))
    np.maximum.at(best, judged.position[rows], 1.0 / (judged.rank[rows] + 1.0))
    return best


def ndcg_at(judged: JudgedRanking, k: int, graded: bool = False) -> np.ndarray:
    """Normalised discounted cumulative gain, float64 ``[Q]`` in [0, 1].

    The gain of a target is 1, or its relevance if ``graded``; the ideal ranking has the request's best ``k``
    targets first. See ``stages.contracts.ndcg``.
    """
    held = judged.held
    gain, best = (judged.relevance, held.relevance) if graded else (judged.relevance > 0, np.ones(len(held.relevance)))
    found = dcg(judged.position, gain, judged.rank, k, len(held))
    return np.asarray(found / ideal_dcg(held.position, best, k, len(held)))


def shown_items(judged: JudgedRanking, k: int) -> np.ndarray:
    """How often each item is among the first ``k`` answers of a request, int64 ``[N]``."""
    return np.bincount(judged.item_index[judged.rank < k], minlength=judged.held.n_items)


def coverage(shown: np.ndarray) -> float:
    """Share of the catalogue that is answered at least once; ``shown`` is int ``[N]``.

    "Catalog coverage" in Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy", RecSys 2010.
    """
    return float((shown > 0).mean())


def popularity_share(shown: np.ndarray, head: np.ndarray) -> float:
    """Share of the answered slots that hold an item of the head; 0 if nothing is answered.

    The short head against the long tail is how popularity bias is measured since Abdollahpouri,
    Burke and Mobasher, "Controlling popularity bias in learning-to-rank recommendation", RecSys 2017.

    Args:
        shown: int ``[N]``, see ``shown_items``.
        head: bool ``[N]``, see ``popular_head``.
    """
    slots = int(shown.sum())
    return float(shown[head].sum() / slots) if slots else 0.0


def popular_head(counts: np.ndarray, share: float = 0.01) -> np.ndarray:
    """Mark the most popular ``share`` of the catalogue, at least one item, bool ``[N]``.

    The default is 1%, not the 20% of the paper that ``popularity_share`` cites: in catalogues of thousands to millions
    of items any ranker's lists of ten lie in the top fifth, and the share would always be near 1. Ties go to the lower
    item index.

    Args:
        counts: int ``[N]``, first touches of each item in the training periods.
        share: share of N, in (0, 1].
    """
    size = max(1, int(np.ceil(len(counts) * share)))
    head = np.zeros(len(counts), dtype=bool)
    head[top_k(counts, size)] = True
    return head
