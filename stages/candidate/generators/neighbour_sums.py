"""Sums the weights of neighbours over the histories of a block of requests, compiled.

Shapes: B requests, E neighbours of all items, H newest items that are read, L history length, N items, m sums.
"""

from __future__ import annotations

import numpy as np

from stages.contracts.best_items import Pools
from stages.contracts.compiled import compiled, frozen
from stages.contracts.ragged import row_offsets

Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]


def summed_neighbours(
    neighbours: Neighbours, history_BL: np.ndarray, lengths_B: np.ndarray, weights_H: np.ndarray
) -> Pools:
    """Return the distinct neighbours of each history, each with the weighted sum of its weights.

    Args:
        neighbours: offsets int64 ``[N + 1]``, items int32 and weights float32 ``[E]``.
        history_BL: int64 items, newest first, padded on the right.
        lengths_B: int64, items of each history.
        weights_H: float64, factor of the neighbours of each of the newest items, newest first.

    Returns:
        Offsets, items and float32 sums, in the order in which the neighbours are first met.
    """
    offsets, items, weights = (frozen(column) for column in neighbours)
    read_B = np.minimum(lengths_B, len(weights_H))
    width = min(history_BL.shape[1], len(weights_H))
    held_BH = np.arange(width) < read_B[:, None]
    newest = history_BL[:, :width][held_BH]
    links = np.zeros(held_BH.shape, dtype=np.int64)
    links[held_BH] = offsets[newest + 1] - offsets[newest]
    ends = row_offsets(links.sum(axis=1))
    ids, sums = np.empty(ends[-1], dtype=np.int64), np.empty(ends[-1], dtype=np.float64)
    pool_offsets = np.zeros(len(history_BL) + 1, dtype=np.int64)
    _summed(offsets, items, weights, history_BL, read_B, weights_H, pool_offsets, ids, sums)
    size = int(pool_offsets[-1])
    return pool_offsets, ids[:size], sums[:size].astype(np.float32)


@compiled
def _summed(
    offsets: np.ndarray,
    items: np.ndarray,
    weights: np.ndarray,
    history_BL: np.ndarray,
    read_B: np.ndarray,
    weights_H: np.ndarray,
    pool_offsets: np.ndarray,
    ids: np.ndarray,
    sums: np.ndarray,
) -> None:
    met_in = np.full(len(offsets), -1, dtype=np.int32)  # the last request that met the item
    place = np.empty(len(offsets), dtype=np.int64)
    size = 0
    for row in range(len(history_BL)):
        for newest in range(read_B[row]):
            factor, item = weights_H[newest], history_BL[row, newest]
            for entry in range(offsets[item], offsets[item + 1]):
                neighbour = items[entry]
                if met_in[neighbour] != row:
                    met_in[neighbour], place[neighbour] = row, size
                    ids[size], sums[size] = neighbour, 0.0
                    size += 1
                sums[place[neighbour]] += weights[entry] * factor
        pool_offsets[row + 1] = size
