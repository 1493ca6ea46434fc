"""The k best scores in compiled code, chosen as ``stages.contracts.top_k`` chooses them."""

from __future__ import annotations

import numpy as np

from stages.contracts.compiled import in_place


@in_place
def kth_smallest(values: np.ndarray, n: int, k: int) -> float:
    """Return the number that would be ``values[k]`` if the first ``n`` were sorted (Hoare's quickselect).

    It reorders the first ``n``, so that none before place k is larger and none behind it is smaller.

    Args:
        values: integers or floats, no NaN.
        n: how many there are, at least 1.
        k: from 0 to n - 1.
    """
    low, high = 0, n - 1
    while low < high:
        first, second, third = values[low], values[(low + high) // 2], values[high]
        pivot = max(min(first, second), min(max(first, second), third))
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if k <= right:
            high = right
        elif k >= left:
            low = left
        else:
            break
    return values[k]


@in_place
def kth_by_counts(values: np.ndarray, n: int, k: int) -> float:
    """Return the number that would be ``values[k]`` if the first ``n`` were sorted, and leave their order.

    Quicker than ``kth_smallest`` for some hundreds of numbers: it counts those below a number, many at a time.
    """
    low, high, pivot, place = -np.inf, np.inf, values[k], k
    while True:
        less, equal = 0, 0
        for entry in range(n):
            less += values[entry] < pivot
            equal += values[entry] == pivot
        if k < less:
            high = pivot
        elif k < less + equal:
            return pivot
        else:
            low = pivot
        while not low < values[place] < high:
            place = place + 1 if place + 1 < n else 0
        pivot = values[place]


@in_place
def _is_worse(ids: np.ndarray, scores: np.ndarray, one: int, other: int) -> bool:
    return scores[one] < scores[other] or (scores[one] == scores[other] and ids[one] > ids[other])


@in_place
def _sift_down(ids: np.ndarray, scores: np.ndarray, root: int, n: int) -> None:
    while 2 * root + 1 < n:
        child = 2 * root + 1
        if child + 1 < n and _is_worse(ids, scores, child + 1, child):
            child += 1
        if not _is_worse(ids, scores, child, root):
            return
        ids[child], ids[root] = ids[root], ids[child]
        scores[child], scores[root] = scores[root], scores[child]
        root = child


@in_place
def sort_best_first(ids: np.ndarray, scores: np.ndarray, n: int) -> None:
    """Sort the first ``n`` ids and scores, best first, of equal scores the lower id first (heapsort)."""
    for root in range(n // 2 - 1, -1, -1):
        _sift_down(ids, scores, root, n)
    for last in range(n - 1, 0, -1):
        ids[0], ids[last] = ids[last], ids[0]
        scores[0], scores[last] = scores[last], scores[0]
        _sift_down(ids, scores, 0, last)


@in_place
def keep_best(ids: np.ndarray, scores: np.ndarray, n: int, k: int, order: np.ndarray) -> int:
    """Let the first ``k`` ids and scores be the best of the first ``n``, sorted; return how many there are.

    Args:
        ids: int64, distinct.
        scores: float32, no NaN.
        n: how many there are.
        k: how many are wanted.
        order: float64, room for ``n`` numbers.
    """
    if k <= 0:
        return 0
    if n > k:
        for place in range(n):
            order[place] = scores[place]
        least = kth_smallest(order, n, n - k)
        better, tied = 0, 0
        for place in range(n):
            better += scores[place] > least
            if scores[place] == least:
                order[tied] = ids[place]
                tied += 1
        last_tied = kth_smallest(order, tied, k - better - 1) if k > better else -1.0
        kept = 0
        for place in range(n):
            if scores[place] > least or (scores[place] == least and ids[place] <= last_tied):
                ids[kept], scores[kept] = ids[place], scores[place]
                kept += 1
        n = kept
    sort_best_first(ids, scores, n)
    return n
