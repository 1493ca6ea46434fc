"""The pool of a request, which is every item of its generators' lists, and what a learned mixture reads of each item.

Training, the server and the steps of a run compute it with the one compiled function of this module, a request at a
time, so that its numbers do not depend on the other requests of a block.

Shapes: B requests, S generators, E items of all pools, F = 5 S + 1 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.candidate.generators.mixing import RRF_K, Columns
from stages.contracts.compiled import compiled
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets

SMALL_SHARE = 1e-5
"""A share is read as log(1 + share / this) / 4, 0 without a share: shares far below this one look alike."""

ITEM_FEATURES = ("listed", "standardised_score", "share", "reciprocal_rank")
"""What is read of an item in each generator's list; all are 0 where the list does not hold the item."""


def mixture_features(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the F features: those of each generator's list in turn, then those of the request.

    Args:
        names: S generators.
    """
    of_items = [f"{name}_{feature}" for name in names for feature in ITEM_FEATURES]
    return (*of_items, "history_length", *(f"{name}_length" for name in names))


@dataclass(frozen=True)
class Pools:
    """The pools of B requests.

    Attributes:
        offsets: int64 ``[B + 1]``; the pool of request b is ``ids[offsets[b]:offsets[b + 1]]``.
        ids: int64 ``[E]``, items of each pool, ascending.
        features: float32 ``[E, F]``, see ``mixture_features``.
        scores: float32 ``[E, S]``, the generator's own score; NaN where its list does not hold the item.
        ranks: int32 ``[E, S]``, 0-based position in the generator's list; -1 where it does not hold the item.
    """

    offsets: np.ndarray
    ids: np.ndarray
    features: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, lists: Sequence[ItemLists], history_lengths: np.ndarray) -> Pools:
        """Join the lists of each request.

        Args:
            lists: of S generators, one or more.
            history_lengths: int ``[B]``, items of each request's history.
        """
        columns, n_sources = Columns.of(lists), len(lists)
        offsets, size = row_offsets(np.zeros(len(history_lengths))), len(columns.ids)
        ids = np.empty(size, dtype=np.int64)
        features = np.empty((size, len(ITEM_FEATURES) * n_sources + 1 + n_sources), dtype=np.float32)
        scores, ranks = np.empty((size, n_sources), dtype=np.float32), np.empty((size, n_sources), dtype=np.int32)
        given = columns.offsets, columns.ids, columns.scores, history_lengths.astype(np.int64)
        _pool(*given, offsets, ids, features, scores, ranks)
        used = slice(int(offsets[-1]))
        return cls(offsets, ids[used], features[used], scores[used], ranks[used])


@compiled
def _moments(scores: np.ndarray) -> tuple[float, float, float]:
    """Return mean and standard deviation of the scores of a list, and the sum of those above 0."""
    total, positive = 0.0, 0.0
    for score in scores:
        total += score
        positive += max(float(score), 0.0)
    mean = total / max(len(scores), 1)
    squares = 0.0
    for score in scores:
        squares += (score - mean) ** 2
    return mean, np.sqrt(squares / max(len(scores), 1)), positive


@compiled
def _sorted_keys(row: int, offsets_SB: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Return ``item * n + place`` of the n entries of a request, ascending; places count through its lists."""
    n = 0
    for column in range(len(offsets_SB)):
        n += offsets_SB[column, row + 1] - offsets_SB[column, row]
    keys = np.empty(n, dtype=np.int64)
    place = 0
    for column in range(len(offsets_SB)):
        for entry in range(offsets_SB[column, row], offsets_SB[column, row + 1]):
            keys[place] = listed[entry] * n + place
            place += 1
    keys.sort()
    return keys


@compiled
def _pool(
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    listed_scores: np.ndarray,
    history_lengths: np.ndarray,
    offsets: np.ndarray,
    ids: np.ndarray,
    features: np.ndarray,
    scores: np.ndarray,
    ranks: np.ndarray,
) -> None:
    n_sources = len(offsets_SB)
    of_request = np.empty(1 + n_sources, dtype=np.float32)
    moments = np.empty((n_sources, 3))
    for row in range(len(offsets) - 1):
        of_request[0] = np.log1p(float(history_lengths[row])) / 4
        for column in range(n_sources):
            own = listed_scores[offsets_SB[column, row] : offsets_SB[column, row + 1]]
            of_request[1 + column] = np.log1p(float(len(own))) / 4
            moments[column] = _moments(own)
        keys, size, last = _sorted_keys(row, offsets_SB, listed), offsets[row], -1
        for key in keys:
            item, place = key // len(keys), key % len(keys)
            if item != last:
                last, ids[size] = item, item
                features[size, : 4 * n_sources], features[size, 4 * n_sources :] = 0.0, of_request
                scores[size], ranks[size] = np.nan, -1
                size += 1
            column = 0
            while place >= offsets_SB[column, row + 1] - offsets_SB[column, row]:
                place -= offsets_SB[column, row + 1] - offsets_SB[column, row]
                column += 1
            score = listed_scores[offsets_SB[column, row] + place]
            mean, deviation, positive = moments[column]
            scores[size - 1, column], ranks[size - 1, column] = score, place
            features[size - 1, 4 * column] = 1.0
            if deviation > 0:
                features[size - 1, 4 * column + 1] = (score - mean) / deviation
            if score > 0:
                features[size - 1, 4 * column + 2] = np.log1p(score / positive / SMALL_SHARE) / 4
            features[size - 1, 4 * column + 3] = (RRF_K + 1.0) / (RRF_K + 1.0 + place)
        offsets[row + 1] = size
