"""Item-to-item cosine against its definition on dense matrices.

Items are touched by 1, 4 or 16 users, so that every cosine is exact in binary and ties are real.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stages.sufficiency import neighbours
from stages.sufficiency.neighbours import answers, similarities

N_USERS, N_ITEMS = 60, 90


def touches(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = np.zeros((N_USERS, N_ITEMS), dtype=np.float32)
    for item in range(N_ITEMS - 10):  # the last ones nobody touched
        matrix[rng.choice(N_USERS - 1, rng.choice([1, 4, 16], p=[0.3, 0.4, 0.3]), replace=False), item] = 1
    return matrix


def cosines(matrix: np.ndarray, k: int) -> np.ndarray:
    normed = matrix / np.sqrt(np.maximum(matrix.sum(axis=0), 1))
    similar = normed.T @ normed
    np.fill_diagonal(similar, 0)
    for row in similar:
        row[np.argsort(-row, kind="stable")[k:]] = 0
    return similar


@pytest.mark.parametrize("limit", [1 << 23, 100, 1])
@pytest.mark.parametrize("k", [1, 4, 1_000])
def test_neighbours_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, limit: int, k: int) -> None:
    monkeypatch.setattr(neighbours, "_PRODUCTS", limit)
    matrix = touches(seed=0)
    asked = np.flatnonzero(np.random.default_rng(1).random(N_ITEMS) < 0.7)
    assert asked[-1] >= N_ITEMS - 10, "one that nobody touched is among them"
    found = similarities(sparse.csr_array(matrix), asked, k).toarray()
    wanted = cosines(matrix, k)
    assert np.array_equal(found[asked], wanted[asked])
    assert not np.delete(found, asked, axis=0).any()
    if k == 4:
        every = cosines(matrix, N_ITEMS)
        weakest = [row[row > 0].min(initial=2) for row in wanted]
        cut = [(every[row] == least).sum() > (wanted[row] == least).sum() for row, least in enumerate(weakest)]
        assert any(cut), "some neighbours are as strong as one that stays"


@pytest.mark.parametrize("block", [32, 1])
@pytest.mark.parametrize(("neighbours_of_item", "k"), [(3, 10), (1_000, 5), (20, N_ITEMS)])
def test_answers(monkeypatch: pytest.MonkeyPatch, block: int, neighbours_of_item: int, k: int) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    matrix, rng = touches(seed=2), np.random.default_rng(3)
    users = np.append(rng.integers(0, N_USERS, 40), N_USERS - 1)  # the last one touched nothing
    seen = np.maximum(matrix, rng.random(matrix.shape) < 0.2)
    request_id = np.arange(len(users)) * 3
    found = answers(sparse.csr_array(matrix), sparse.csr_array(seen), request_id, users, neighbours_of_item, k)

    popularity = matrix.sum(axis=0)
    tie_break = 1e-6 * popularity / popularity.max()
    values = matrix[users] @ cosines(matrix, neighbours_of_item) + tie_break
    values[seen[users] > 0] = -np.inf
    for place, request in enumerate(request_id):
        rows = found.request_id == request
        best = np.argsort(-values[place], kind="stable")[:k]
        best = best[np.isfinite(values[place][best])]
        assert found.item_index[rows].tolist() == best.tolist()
        assert np.array_equal(found.score[rows], values[place][best])
        assert found.rank[rows].tolist() == list(range(len(best)))


def test_without_any_touch_nothing_is_similar_and_the_first_items_come() -> None:
    nothing = sparse.csr_array((3, 5), dtype=np.float32)
    assert similarities(nothing, np.arange(5), 2).nnz == 0
    found = answers(nothing, nothing, np.array([7]), np.array([1]), 2, 3)
    assert found.item_index.tolist() == [0, 1, 2]
