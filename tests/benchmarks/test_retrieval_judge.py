"""Rankings and their metrics, against stable sorts of whole rows and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.static.judge import judge, rank_metrics, top_k_of_rows
from stages.contracts.errors import DataError


def pairs(users: int, items: int, *rows: tuple[int, int]) -> Interactions:
    user, item = np.array(rows, dtype=np.int64).reshape(-1, 2).T
    return Interactions(user, item, None, users, items)


@pytest.mark.parametrize("k", [1, 3, 7, 9])
def test_top_k_is_a_stable_sort(k: int) -> None:
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 4, (200, 7)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    scores[0], scores[1] = 0, -np.inf
    for row, best in zip(scores, top_k_of_rows(scores, k), strict=True):
        wanted = [item for item in np.argsort(-row, kind="stable") if row[item] > -np.inf][:k]
        assert best.tolist() == wanted + [-1] * (k - len(wanted))


def test_top_k_refuses_nan() -> None:
    with pytest.raises(DataError, match="NaN"):
        top_k_of_rows(np.array([[1.0, np.nan]]), 1)


def slow_metrics(answers: list[int], wanted: set[int], k: int) -> dict[str, float]:
    """Written from the definitions, an answer at a time."""
    hits = [place for place, item in enumerate(answers[:k], start=1) if item in wanted]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(wanted)) + 1))
    return {
        "ndcg": sum(1 / math.log2(place + 1) for place in hits) / ideal,
        "recall": len(hits) / len(wanted),
        "precision": len(hits) / k,
        "hit_rate": float(bool(hits)),
    }


def test_judge_against_loops() -> None:
    rng = np.random.default_rng(5)
    users, items, k = 30, 12, 4
    dealt = rng.choice([0, 1, 2], size=(users, items), p=[0.6, 0.2, 0.2])
    dealt[3, dealt[3] == 2] = 0  # nothing is held out of this user's
    dealt[4] = 1
    dealt[4, :6] = 2  # more wanted than answered, and few left to answer
    train, test = (pairs(users, items, *np.argwhere(dealt == part).tolist()) for part in (1, 2))
    scores = rng.integers(0, 3, (users, items)).astype(float)
    found = judge(lambda asked: scores[asked], Split(train, test), k)
    wanted = []
    for user in range(users):
        held = set(np.flatnonzero(dealt[user] == 2).tolist())
        ranking = [item for item in np.argsort(-scores[user], kind="stable") if dealt[user, item] != 1]
        if held:
            wanted.append(slow_metrics(ranking, held, k))
    assert len(wanted) < users
    for metric, values in found.items():
        np.testing.assert_allclose(values, [row[metric] for row in wanted], err_msg=metric)


def test_recall_divides_by_all_that_is_wanted() -> None:
    found = rank_metrics(np.array([[True, False]]), np.array([5]))
    assert found["recall"] == 1 / 5
    assert found["precision"] == 1 / 2
    assert found["ndcg"] == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_judge_refuses_scores_of_another_shape() -> None:
    split = Split(pairs(2, 3, (0, 1)), pairs(2, 3, (0, 2)))
    with pytest.raises(DataError, match=r"scores of 1 users are \[1, 2\]"):
        judge(lambda asked: np.zeros((len(asked), 2)), split, 1)
