"""Item-to-item co-visitation: items that the same users touch near one another.

A user's first touch of an item links it with each of the previous ``window`` distinct items, both
ways, with weight 1 / distance (1 for the item just before). On reading, a link is divided by the
square root of both items' popularity (cosine normalisation, as in Linden, Smith and York, "Amazon.com
Recommendations: Item-to-Item Collaborative Filtering", 2003).
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from stages.features.keyed_rows import KeyedRows, Row

COLUMNS: dict[str, np.dtype] = {"items": np.dtype(np.int32), "weights": np.dtype(np.float64)}


class Covisitation:
    """Links between items, at most ``2 * neighbours`` an item."""

    def __init__(self, rows: KeyedRows, n_items: int, neighbours: int) -> None:
        self._rows = rows
        self._neighbours = neighbours
        # Position of each candidate of the request being answered, -1 elsewhere: allocated once.
        self._position = np.full(n_items, -1, dtype=np.int32)

    def link(self, item: int, previous: np.ndarray | array) -> None:
        """Link a newly touched item with the user's ``previous`` items, newest first."""
        own = self._rows.open(item)
        for distance, other in enumerate(previous, start=1):
            weight = 1.0 / distance
            _strengthen(own, int(other), weight)
            theirs = self._rows.open(int(other))
            _strengthen(theirs, item, weight)
            self._prune(theirs)
        self._prune(own)

    def neighbours(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the linked items int32 ``[M]`` and raw weights float64 ``[M]`` of an item."""
        return self._rows.read(item, 0), self._rows.read(item, 1)

    def scores(
        self, history: np.ndarray, candidates: np.ndarray, popularity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return sum and maximum of the normalised links between each candidate and a history.

        Args:
            history: int64 ``[H]`` items.
            candidates: int64 ``[n]`` distinct items.
            popularity: int64 ``[N]`` first touches of every item; positive for linked items.

        Returns:
            Two float64 ``[n]``, 0 where a candidate has no link.
        """
        total, best = np.zeros(len(candidates)), np.zeros(len(candidates))
        if not len(history):
            return total, best
        rows = [self.neighbours(int(item)) for item in history]
        lengths = [len(items) for items, _ in rows]
        links = np.concatenate([weights for _, weights in rows]) / np.sqrt(
            np.repeat(np.maximum(popularity[history], 1), lengths)
        )
        self._position[candidates] = np.arange(len(candidates), dtype=np.int32)
        position = self._position[np.concatenate([items for items, _ in rows])]
        self._position[candidates] = -1
        found = position >= 0
        position, links = position[found], links[found]
        total += np.bincount(position, links, minlength=len(candidates))
        np.maximum.at(best, position, links)
        norm = np.sqrt(np.maximum(popularity[candidates], 1))
        return total / norm, best / norm

    def save(self, directory: Path) -> None:
        """Write ``neighbours_*.npy``."""
        self._rows.save(directory, len(self._position))

    def _prune(self, row: Row) -> None:
        """Keep the strongest links of an overfull row, ties by item index, in their old order."""
        if len(row.slots) <= 2 * self._neighbours:
            return
        items, weights = (np.array(column) for column in row.columns)
        kept = np.sort(np.lexsort((items, -weights))[: self._neighbours])
        row.keep(kept)


def _strengthen(row: Row, item: int, weight: float) -> None:
    slot = row.slots.get(item)
    if slot is None:
        row.append(item, weight)
    else:
        row.columns[1][slot] += weight
