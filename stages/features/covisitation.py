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

from stages.contracts.ragged import row_offsets
from stages.features.link_kernels import (
    link_items,
    links_gather,
    links_gather_all,
    links_have_room,
    links_sum_and_max,
    table_places,
)
from stages.features.state_arrays import LINK, LINKS_FREE, LINKS_KEPT, LINKS_LARGEST, LINKS_USED, LINKS_WINDOW, Links

COLUMNS: dict[str, np.dtype] = {"items": np.dtype(np.int32), "weights": np.dtype(np.float64)}

LinkedItems = tuple[np.ndarray, np.ndarray]
_TABLES = 48


class Covisitation:
    """Links between items: a read-only CSR base, plus the rows of items that changed since, as hash tables.

    A row is cut to its strongest ``neighbours`` links (ties by item index) as soon as it holds more
    than twice as many. So new links get time to grow, and cutting costs little for each event. A row takes at most 16
    bytes for each of ``1.25 * (2 * neighbours + window)`` places, rounded up to a power of two.

    Args:
        arrays: ``neighbours_offsets`` int64 ``[N + 1]`` (or ``[1]``, no links), ``neighbours_items``
            int32 and ``neighbours_weights`` float64.
        n_items: N.
        neighbours: number of links that an item keeps when its row is cut.
        window: number of items that a new one is linked with, at most.

    Attributes:
        arrays: for compiled functions; another tuple after ``make_room``.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], n_items: int, neighbours: int, window: int = 0) -> None:
        offsets = np.asarray(arrays["neighbours_offsets"])
        if len(offsets) <= n_items:
            offsets = np.concatenate([offsets, np.full(n_items + 1 - len(offsets), offsets[-1])])
        counts = np.diff(offsets)
        most = max(2 * neighbours + window, int(counts.max(initial=0))) + 1
        numbers = np.full(LINKS_FREE + _TABLES, -1, dtype=np.int64)
        numbers[LINKS_USED], numbers[LINKS_KEPT], numbers[LINKS_WINDOW] = 0, neighbours, window
        numbers[LINKS_LARGEST] = table_places(most + 1)
        self.arrays = Links(
            start=offsets[:-1].copy(),
            sizes=counts,
            capacity=np.zeros(n_items, dtype=np.int64),
            base_items=np.asarray(arrays["neighbours_items"]),
            base_weights=np.asarray(arrays["neighbours_weights"]),
            table=np.zeros(0, dtype=LINK),
            # Position of each candidate of the current request, -1 for other items; allocated once.
            position=np.full(n_items, -1, dtype=np.int32),
            scratch_items=np.zeros(most + 1, dtype=np.int32),
            scratch_weights=np.zeros(most + 1),
            scratch_order=np.zeros(most + 1),
            numbers=numbers,
        )

    def make_room(self, rows: int) -> None:
        """Let so many rows grow."""
        links = self.arrays
        while not links_have_room(links, rows):
            more = max(len(links.table), rows * int(links.numbers[LINKS_LARGEST]))
            links = links._replace(table=np.concatenate([links.table, np.zeros(more, dtype=LINK)]))
        self.arrays = links

    def link(self, item: int, previous: Iterable[int]) -> None:
        """Link a newly touched item with the user's ``previous`` items, newest first."""
        oldest_first = np.array(list(previous)[::-1], dtype=np.int64)
        self.arrays.numbers[LINKS_WINDOW] = max(self.arrays.numbers[LINKS_WINDOW], len(oldest_first))
        most = 2 * int(self.arrays.numbers[LINKS_KEPT]) + len(oldest_first) + 1
        if len(self.arrays.scratch_items) < most:
            self.arrays.numbers[LINKS_LARGEST] = table_places(most + 1)
            self.arrays = self.arrays._replace(
                scratch_items=np.zeros(most + 1, dtype=np.int32),
                scratch_weights=np.zeros(most + 1),
                scratch_order=np.zeros(most + 1),
            )
        self.make_room(len(oldest_first) + 1)
        link_items(self.arrays, item, oldest_first, 0, len(oldest_first))

    def neighbours(self, item: int) -> LinkedItems:
        """Return the linked items int32 ``[M]``, ascending, and raw weights float64 ``[M]`` of an item."""
        count = int(self.arrays.sizes[item])
        items, weights = np.empty(count, dtype=np.int32), np.empty(count)
        links_gather(self.arrays, item, items, weights, 0)
        return items, weights

    def scores(self, newest: np.ndarray, candidates: np.ndarray, popularity: np.ndarray) -> LinkedItems:
        """Return sum and maximum of the normalised links between each candidate and a user's newest items.

        Args:
            newest: int64 ``[H]`` items.
            candidates: int64 ``[n]`` distinct items.
            popularity: int64 ``[N]`` first touches of every item; positive for linked items.

        Returns:
            Two float64 ``[n]``, 0 for a candidate without a link.
        """
        total, best = np.zeros(len(candidates)), np.zeros(len(candidates))
        links_sum_and_max(self.arrays, newest, candidates, popularity, total, best)
        return total, best

    def save(self, directory: Path) -> None:
        """Write ``neighbours_offsets.npy``, ``neighbours_items.npy`` and ``neighbours_weights.npy``."""
        offsets = row_offsets(self.arrays.sizes)
        items, weights = np.empty(offsets[-1], dtype=np.int32), np.empty(offsets[-1])
        links_gather_all(self.arrays, items, weights)
        np.save(directory / "neighbours_offsets.npy", offsets)
        np.save(directory / "neighbours_items.npy", items)
        np.save(directory / "neighbours_weights.npy", weights)
