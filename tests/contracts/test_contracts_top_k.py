from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.tables import ScoredItems
from stages.contracts.top_k import top_k

# Few values, so that most lists have ties at the border.
SCORES = st.lists(st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.25, 1.5, np.inf]), max_size=30)


def naive(scores: list[float], k: int, ids: list[int]) -> list[int]:
    """Take the best that is left, k times."""
    left, best = set(range(len(scores))), []
    while left and len(best) < k:
        place = min(left, key=lambda at: (-scores[at], ids[at]))
        best.append(place)
        left.remove(place)
    return best


@given(SCORES, st.integers(0, 35), st.sampled_from([np.float32, np.float64]))
def test_ties_go_to_the_lower_position(scores: list[float], k: int, dtype: Any) -> None:
    found = top_k(np.array(scores, dtype=dtype), k)
    assert found.dtype == np.int64
    assert found.tolist() == naive(scores, k, list(range(len(scores))))


@given(SCORES, st.integers(0, 35), st.randoms(use_true_random=False))
def test_ties_go_to_the_lower_id(scores: list[float], k: int, random: Any) -> None:
    ids = random.sample(range(100), len(scores))
    assert top_k(np.array(scores), k, np.array(ids, dtype=np.int64)).tolist() == naive(scores, k, ids)


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35))
def test_counts_are_scores_too(counts: list[int], k: int) -> None:
    assert top_k(np.array(counts, dtype=np.int64), k).tolist() == naive(counts, k, list(range(len(counts))))


@given(SCORES.filter(bool), st.integers(1, 35), st.data())
def test_nan_is_refused_wherever_it_stands(scores: list[float], k: int, data: st.DataObject) -> None:
    scores[data.draw(st.integers(0, len(scores) - 1))] = np.nan
    with pytest.raises(DataError, match="a score is NaN"):
        top_k(np.array(scores), k)


def test_a_negative_k_is_refused() -> None:
    with pytest.raises(DataError, match="k = -1, allowed is 0 or more"):
        top_k(np.zeros(3), -1)


@given(SCORES.map(lambda scores: [value for value in scores if np.isfinite(value)]), st.none() | st.integers(0, 35))
def test_scored_items_are_a_stable_sort(scores: list[float], k: int | None) -> None:
    ids = np.arange(len(scores))[::-1] + 10  # ties keep the order that they came in, whatever the ids
    found = ScoredItems.sort(ids, np.array(scores), k)
    order = np.argsort(-np.array(scores), kind="stable")[:k]
    assert found.ids.tolist() == ids[order].tolist()
    assert found.scores.tolist() == np.array(scores, dtype=np.float32)[order].tolist()
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)
