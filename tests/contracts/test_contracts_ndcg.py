from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.ndcg import dcg, discounts, ideal_dcg

# Gains of each request's rows; a request may have none.
REQUESTS = st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0, 3.0]), max_size=6), max_size=6)


def test_discounts_end_at_the_cut_off() -> None:
    found = discounts(np.array([0, 1, 2, 3], dtype=np.int32), 3)
    assert found.tolist() == [1.0, 1 / math.log2(3), 0.5, 0.0]
    assert found.dtype == np.float64


@given(REQUESTS, st.integers(1, 7))
def test_sums_are_those_of_the_definition(requests: list[list[float]], k: int) -> None:
    request = np.array([number for number, rows in enumerate(requests) for _ in rows], dtype=np.int64)
    rank = np.array([place for rows in requests for place in range(len(rows))], dtype=np.int64)
    gain = np.array([value for rows in requests for value in rows])

    def naive(rows: list[float]) -> float:
        return sum(value / math.log2(place + 2) for place, value in enumerate(rows[:k]))

    n = len(requests)
    assert dcg(request, gain, rank, k, n).tolist() == pytest.approx([naive(rows) for rows in requests])
    best = [naive(sorted(rows, reverse=True)) for rows in requests]
    assert ideal_dcg(request, gain, k, n).tolist() == pytest.approx(best)
