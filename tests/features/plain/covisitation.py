"""Item-to-item co-visitation: items that the same users touch shortly after one another.

A user's first touch of an item links the item with each of the user's previous ``window`` distinct items, in
both directions, with weight 1 / distance (1 for the item just before). On reading, a link is divided by the
square root of both items' popularity (cosine normalisation, as in Linden, Smith and York, "Amazon.com
Recommendations: Item-to-Item Collaborative Filtering", 2003).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tests.features.plain.keyed_rows import save_offsets

COLUMNS: dict[str, np.dtype] = {"items": np.dtype(np.int32), "weights": np.dtype(np.float64)}

Links = tuple[np.ndarray, np.ndarray]


class Covisitation:
    """Links between items: a read-only CSR base, plus the rows of items that changed since.

    A row is cut to its strongest ``neighbours`` links (ties by item index) as soon as it holds more
    than twice as many. So new links get time to grow, and cutting costs little for each event.

    Args:
        arrays: ``neighbours_offsets`` int64 ``[N + 1]`` (or ``[1]``, no links), ``neighbours_items``
            int32 and ``neighbours_weights`` float64.
        n_items: N.
        neighbours: number of links that an item keeps when its row is cut.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], n_items: int, neighbours: int) -> None:
        self._offsets = arrays["neighbours_offsets"]
        self._items, self._weights = arrays["neighbours_items"], arrays["neighbours_weights"]
        self._neighbours = neighbours
        self._changed: dict[int, dict[int, float]] = {}
        self._as_arrays: dict[int, Links] = {}  # changed rows that were read after their last change
        # Position of each candidate of the current request, -1 for other items; allocated once.
        self._position = np.full(n_items, -1, dtype=np.int32)

    def link(self, item: int, previous: Iterable[int]) -> None:
        """Link a newly touched item with the user's ``previous`` items, newest first."""
        own = self._open(item)
        limit = 2 * self._neighbours
        for distance, other in enumerate(previous, start=1):
            weight = 1.0 / distance
            own[other] = own.get(other, 0.0) + weight
            theirs = self._open(other)
            theirs[item] = theirs.get(item, 0.0) + weight
            if len(theirs) > limit:
                self._cut(other)
        if len(own) > limit:
            self._cut(item)

    def neighbours(self, item: int) -> Links:
        """Return the linked items int32 ``[M]`` and raw weights float64 ``[M]`` of an item."""
        row = self._changed.get(item)
        if row is None:
            return self._base(item)
        links = self._as_arrays.get(item)
        if links is None:
            items = np.fromiter(row.keys(), dtype=np.int32, count=len(row))
            links = self._as_arrays[item] = (items, np.fromiter(row.values(), dtype=np.float64, count=len(row)))
        return links

    def scores(self, newest: np.ndarray, candidates: np.ndarray, popularity: np.ndarray) -> Links:
        """Return sum and maximum of the normalised links between each candidate and a user's newest items.

        Args:
            newest: int64 ``[H]`` items.
            candidates: int64 ``[n]`` distinct items.
            popularity: int64 ``[N]`` first touches of every item; positive for linked items.

        Returns:
            Two float64 ``[n]``, 0 for a candidate without a link.
        """
        total, best = np.zeros(len(candidates)), np.zeros(len(candidates))
        if not len(newest):
            return total, best
        rows = [self.neighbours(item) for item in newest.tolist()]
        popular = np.repeat(np.maximum(popularity[newest], 1), [len(items) for items, _ in rows])
        links = np.concatenate([weights for _, weights in rows]) / np.sqrt(popular)
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
        """Write ``neighbours_offsets.npy``, ``neighbours_items.npy`` and ``neighbours_weights.npy``."""
        rows = [self.neighbours(item) for item in range(len(self._position))]
        save_offsets(directory / "neighbours_offsets.npy", (len(items) for items, _ in rows), len(rows))
        for number, (column, dtype) in enumerate(COLUMNS.items()):
            pieces = [np.empty(0, dtype=dtype), *(row[number] for row in rows)]
            np.save(directory / f"neighbours_{column}.npy", np.concatenate(pieces))

    def _base(self, item: int) -> Links:
        if item >= len(self._offsets) - 1:
            return self._items[:0], self._weights[:0]
        row = slice(self._offsets[item], self._offsets[item + 1])
        return self._items[row], self._weights[row]

    def _open(self, item: int) -> dict[int, float]:
        row = self._changed.get(item)
        if row is None:
            items, weights = self._base(item)
            row = self._changed[item] = dict(zip(items.tolist(), weights.tolist(), strict=True))
        self._as_arrays.pop(item, None)
        return row

    def _cut(self, item: int) -> None:
        row = self._changed[item]
        weakest = sorted(row.values(), reverse=True)[self._neighbours - 1]
        kept = {other: weight for other, weight in row.items() if weight > weakest}
        tied = sorted(other for other, weight in row.items() if weight == weakest)
        kept.update(dict.fromkeys(tied[: self._neighbours - len(kept)], weakest))
        self._changed[item] = kept
