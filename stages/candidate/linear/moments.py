"""What a closed form sums over the users' histories, without a matrix of items by items.

``weighted_moments`` are those of EASE: a pair of items of a user counts the product of its two values. The right side
of an item is its row of X'X.

``directed_moments`` are those of the directed ridge, whose rows are the histories before each event. A pair of items of
a user counts sum over s of w(s) w(s + d): d is how far they are apart, and the sum runs over the events after both.
That depends on two small numbers only, and is looked up in a table. The right side of an item are the weights that
other items have in the histories before its events.

Items are numbered anew, those that most cells hold first.

Legend: U users, N items, E cells (a user's items, or events), K places back that count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from stages.candidate.linear.history_weights import power_weights
from stages.contracts.compiled import frozen
from stages.contracts.ragged import places_in_rows, row_offsets, run_offsets


class Cells(NamedTuple):
    """Cells of all users as compiled code reads them: by user in their order, and by item.

    Attributes:
        user_offsets: int64 ``[U + 1]``, where the cells of each user begin and end.
        items: int32 ``[E]``, by user.
        values: float64 ``[E]``, by user; empty in directed moments.
        item_offsets: int64 ``[N + 1]``, where the cells of each item begin and end.
        users: int32 ``[E]``, by item.
        item_values: float64 ``[E]``, by item; empty in directed moments.
        item_places: int32 ``[E]``, by item: the cell's place in its user's history, from 0; empty in weighted moments.
        weights: float64 ``[K]``, weight of the item k + 1 places back; empty in weighted moments.
        pairs: float64 ``[K, K + 1]``: sum of w(s) w(s + d) for s from 1 to m; empty in weighted moments.
    """

    user_offsets: np.ndarray
    items: np.ndarray
    values: np.ndarray
    item_offsets: np.ndarray
    users: np.ndarray
    item_values: np.ndarray
    item_places: np.ndarray
    weights: np.ndarray
    pairs: np.ndarray


class Moments(NamedTuple):
    """Cells, and the numbers of their items.

    Attributes:
        cells: with items numbered anew.
        given: int64 ``[N]``, the number that was given of each item in its new order.
        directed: whether these are directed moments.
    """

    cells: Cells
    given: np.ndarray
    directed: bool


def moments_gigabytes(users: int, items: int, cells: int, latest: int = 0) -> float:
    """Return the 10^9 bytes that making either kind of moments takes, beside what they are made of.

    Args:
        users: U.
        items: N.
        cells: E.
        latest: K, 0 for weighted moments.
    """
    return (64 * cells + 24 * users + 64 * items + 32 * latest * (latest + 1)) / 1e9


def weighted_moments(history_UN: sparse.csr_matrix) -> Moments:
    """Return the moments X'X of what users did."""
    return _moments(
        history_UN.indptr.astype(np.int64),
        history_UN.indices,
        history_UN.shape[1],
        values=np.asarray(history_UN.data, dtype=np.float64),
    )


def directed_moments(user_R: np.ndarray, item_R: np.ndarray, items: int, power: float, latest: int) -> Moments:
    """Return the moments of the histories before each event, in which the item k places back weighs k ** -power.

    Args:
        user_R: int64, users one after the other.
        item_R: int64, each user's items, oldest first.
        items: N.
        power: see ``power_weights``.
        latest: items of a history that count, the newest ones.
    """
    offsets = run_offsets(user_R)
    longest = int(np.diff(offsets).max(initial=1))
    weights_K = power_weights(np.arange(1, min(latest, max(longest - 1, 1)) + 1), power, latest)
    return _moments(offsets, item_R, items, weights_K=weights_K)


def _moments(
    offsets: np.ndarray,
    item_E: np.ndarray,
    items: int,
    values: np.ndarray | None = None,
    weights_K: np.ndarray | None = None,
) -> Moments:
    counts_N = np.bincount(item_E, minlength=items)
    item_N = np.argsort(-counts_N, kind="stable")
    number_N = np.empty(items, dtype=np.int32)
    number_N[item_N] = np.arange(items)
    numbered_E = number_N[item_E]
    by_item = np.argsort(numbered_E, kind="stable")
    lengths_U = np.diff(offsets)
    users = np.repeat(np.arange(len(lengths_U), dtype=np.int32), lengths_U)[by_item]
    nothing, no_places = np.zeros(0), np.zeros(0, dtype=np.int32)
    directed = weights_K is not None
    places = places_in_rows(lengths_U).astype(np.int32)[by_item] if directed else no_places
    cells = Cells(
        user_offsets=frozen(offsets),
        items=frozen(numbered_E),
        values=frozen(nothing if values is None else values),
        item_offsets=frozen(row_offsets(counts_N[item_N])),
        users=frozen(users),
        item_values=frozen(nothing if values is None else values[by_item]),
        item_places=frozen(places),
        weights=frozen(nothing if weights_K is None else weights_K),
        pairs=frozen(np.zeros((0, 0)) if weights_K is None else pair_sums(weights_K)),
    )
    return Moments(cells, item_N, directed)


def pair_sums(weights_K: np.ndarray) -> np.ndarray:
    """Return float64 ``[K, K + 1]``: for items d places apart, the sum of w(s) w(s + d) over s from 1 to m."""
    latest = len(weights_K)
    padded = np.concatenate([weights_K, np.zeros(latest)])
    sums_KK = np.zeros((latest, latest + 1))
    for apart in range(latest):
        np.cumsum(weights_K * padded[apart : apart + latest], out=sums_KK[apart, 1:])
    return sums_KK
