"""Generators that keep the nearest items of each item, as rows of a sparse matrix.

Shapes: B requests of a block, N items, E neighbours of all items.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import numpy as np

from stages.candidate.generators.generator import (
    Arrays,
    CandidateGenerator,
    CandidateRequest,
    Pool,
    RequestBlock,
    place_weights,
    summed_links,
)
from stages.candidate.generators.settings import GeneratorSettings
from stages.contracts.errors import ReleaseError
from stages.contracts.item_lists import ItemLists
from stages.contracts.snapshot import ItemTable
from stages.features.state import FunnelState


class NeighbourGenerator(CandidateGenerator, ABC):
    """The neighbours of the user's newest items, their weights summed.

    Items weigh by their place in the history, see ``history_weights``. The arrays are ``offsets`` ``[N + 1]``, and
    ``items`` and ``weights`` ``[E]``: the neighbours of item i are at ``offsets[i]:offsets[i + 1]``, best first, with
    weights above 0.
    """

    arrays: ClassVar = {
        "offsets": np.dtype(np.int64),
        "items": np.dtype(np.int32),
        "weights": np.dtype(np.float32),
    }

    def __init__(self, settings: GeneratorSettings, arrays: Arrays) -> None:
        self._weights_H = self.history_weights(settings)
        self._offsets, self._items, self._weights = (arrays[name] for name in self.arrays)

    @classmethod
    def history_weights(cls, settings: GeneratorSettings) -> np.ndarray:
        """Return the weight of each of a history's newest items that are read, float64 ``[H]``, newest first."""
        return place_weights(settings)

    @classmethod
    def load(cls, settings: GeneratorSettings, arrays: Arrays, n_items: int) -> NeighbourGenerator:
        """Check the neighbours and return the generator.

        Raises:
            ReleaseError: if the arrays do not fit together, or name items that do not exist.
        """
        offsets, items, weights = (arrays[name] for name in cls.arrays)
        for name, values in arrays.items():
            if values.ndim != 1:
                raise ReleaseError(f"{cls.name}_{name}.npy: shape {list(values.shape)}, expected one dimension")
        ends = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (-1, -1)
        if len(offsets) != n_items + 1 or ends != (0, len(items)) or (np.diff(offsets) < 0).any():
            raise ReleaseError(
                f"{cls.name}_offsets.npy: {len(offsets)} offsets from {ends[0]} to {ends[1]}, expected "
                f"{n_items + 1} ascending ones from 0 to {len(items)}"
            )
        if len(items) != len(weights) or (len(items) and not 0 <= items.min() <= items.max() < n_items):
            raise ReleaseError(f"{cls.name}_items.npy: allowed are {len(weights)} items below {n_items}")
        return cls(settings, arrays)

    @classmethod
    def refresh(cls, settings: GeneratorSettings, arrays: Arrays, items: ItemTable) -> Arrays:
        """Keep the neighbours that were fitted; new items have none."""
        offsets = arrays["offsets"]
        missing = len(items) + 1 - len(offsets)
        return {**arrays, "offsets": np.concatenate([offsets, np.full(missing, offsets[-1], dtype=np.int64)])}

    def candidates(self, request: CandidateRequest, state: FunnelState) -> Pool:
        """Return every neighbour of the newest items."""
        history = request.history[: len(self._weights_H)]
        weights = self._weights_H[: len(history)]
        rows = [slice(self._offsets[item], self._offsets[item + 1]) for item in history.tolist()]
        return summed_links([self._items[row] for row in rows], [self._weights[row] for row in rows], weights)

    def lists(self, block: RequestBlock, state: FunnelState, k: int) -> ItemLists:
        """Return the best ``k`` neighbours of each request's newest items; ``state`` is not read."""
        from stages.candidate.generators.neighbour_sums import summed_neighbours
        from stages.contracts.best_items import allowed_entries, best_entries

        arrays = self._offsets, self._items, self._weights
        pools = summed_neighbours(arrays, block.history, block.lengths, self._weights_H)
        return best_entries(allowed_entries(pools, block.exclusions, positive=True), k)
