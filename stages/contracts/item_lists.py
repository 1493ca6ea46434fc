"""Lists of scored items of many requests, one after the other in flat arrays.

Shapes: B requests, m items of all lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.tables import ScoredItems


@dataclass(frozen=True)
class ItemLists:
    """Scored items of B requests, each list best first and without duplicates.

    Attributes:
        offsets: int64 ``[B + 1]``; list b is ``ids[offsets[b]:offsets[b + 1]]``.
        ids: int64 ``[m]`` item indices.
        scores: float32 ``[m]``, non-increasing within a list.
    """

    offsets: np.ndarray
    ids: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        ends = (int(self.offsets[0]), int(self.offsets[-1])) if len(self.offsets) else (-1, -1)
        if ends != (0, len(self.ids)) or self.ids.shape != self.scores.shape:
            raise DataError(
                f"ItemLists: offsets from {ends[0]} to {ends[1]}, {len(self.ids)} ids and {len(self.scores)} scores "
                "do not belong together"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Items of each list, int64 ``[B]``."""
        return np.diff(self.offsets)

    def row(self, number: int) -> ScoredItems:
        """Return the list of one request."""
        of_row = slice(self.offsets[number], self.offsets[number + 1])
        return ScoredItems(self.ids[of_row], self.scores[of_row])

    def take(self, rows: np.ndarray) -> ItemLists:
        """Return the lists of some requests, int ``[n]``, in that order."""
        lengths = self.lengths[rows]
        entries = ranges(self.offsets[rows], lengths)
        return ItemLists(row_offsets(lengths), self.ids[entries], self.scores[entries])

    def first(self, k: int) -> ItemLists:
        """Return the first ``k`` items of each list."""
        lengths = np.minimum(self.lengths, k)
        entries = ranges(self.offsets[:-1], lengths)
        return ItemLists(row_offsets(lengths), self.ids[entries], self.scores[entries])

    @classmethod
    def join(cls, lists: Sequence[ScoredItems]) -> ItemLists:
        """Return the lists one after the other."""
        ids = [np.zeros(0, dtype=np.int64), *(items.ids for items in lists)]
        scores = [np.zeros(0, dtype=np.float32), *(items.scores for items in lists)]
        return cls(row_offsets([len(items) for items in lists]), np.concatenate(ids), np.concatenate(scores))
