"""Selection in compiled code against a sort."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.top_k import top_k
from stages.contracts.top_k_kernels import keep_best, kth_by_counts, kth_smallest

NUMBERS = st.lists(st.integers(0, 9) | st.floats(-5, 5), min_size=1, max_size=60)


@given(NUMBERS, st.data())
def test_the_kth_number_is_that_of_a_sort_whatever_comes_after(numbers: list[float], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(numbers)))
    k = data.draw(st.integers(0, n - 1))
    wanted = sorted(float(number) for number in numbers[:n])[k]
    values = np.array(numbers, dtype=np.float64)
    assert kth_by_counts(values, n, k) == wanted
    assert values.tolist() == [float(number) for number in numbers], "the order stays"
    assert kth_smallest(values, n, k) == wanted
    assert sorted(values[:n].tolist()) == sorted(float(number) for number in numbers[:n])
    assert values[n:].tolist() == [float(number) for number in numbers[n:]]


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=60), st.data())
def test_large_integers_are_selected_exactly_with_the_lower_ones_before(keys: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(keys) - 1))
    values = np.array(keys, dtype=np.int64)
    assert kth_smallest(values, len(keys), k) == sorted(keys)[k]
    assert sorted(values[: k + 1].tolist()) == sorted(keys)[: k + 1]


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 45), st.randoms())
def test_the_best_are_those_of_top_k(scores: list[int], k: int, random) -> None:
    ids = list(range(0, 3 * len(scores), 3))
    random.shuffle(ids)
    found_ids, found = np.array(ids, dtype=np.int64), np.array(scores, dtype=np.float32)
    best = top_k(found.copy(), k, found_ids.copy())
    wanted = list(zip(found_ids[best].tolist(), found[best].tolist(), strict=True))
    n = keep_best(found_ids, found, len(ids), k, np.zeros(len(ids)))
    assert list(zip(found_ids[:n].tolist(), found[:n].tolist(), strict=True)) == wanted
