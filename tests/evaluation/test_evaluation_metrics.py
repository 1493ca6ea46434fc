import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts.errors import DataError
from stages.contracts.snapshot import Targets
from stages.contracts.tables import RankedTable
from stages.evaluation.measure import measure
from stages.evaluation.metrics import (
    HeldOut,
    coverage,
    hit_rate_at,
    judge,
    mrr_at,
    ndcg_at,
    popular_head,
    popularity_share,
    precision_at,
    recall_at,
    shown_items,
)

N_ITEMS = 8


def targets_of(wanted: dict[int, dict[int, float]]) -> Targets:
    rows = sorted((request, item, value) for request, items in wanted.items() for item, value in items.items())
    return Targets(
        request_id=np.array([row[0] for row in rows], dtype=np.int64),
        item_index=np.array([row[1] for row in rows], dtype=np.int64),
        relevance=np.array([row[2] for row in rows], dtype=np.float32),
        labels=np.ones((len(rows), 1), dtype=np.float32),
    )


def ranked_of(answers: dict[int, list[int]]) -> RankedTable:
    rows = [(request, item, rank) for request, items in answers.items() for rank, item in enumerate(items)]
    return RankedTable(
        request_id=np.array([row[0] for row in rows], dtype=np.int64),
        item_index=np.array([row[1] for row in rows], dtype=np.int64),
        score=np.array([-row[2] for row in rows], dtype=np.float32),
        rank=np.array([row[2] for row in rows], dtype=np.int32),
    )


def held_of(wanted: dict[int, dict[int, float]]) -> HeldOut:
    return HeldOut.make(np.array(sorted(wanted), dtype=np.int64), targets_of(wanted), N_ITEMS)


class Naive:
    """The definitions, request by request, from Python lists alone."""

    def __init__(self, answer: list[int], wanted: dict[int, float], k: int) -> None:
        self.top, self.wanted, self.k = answer[:k], wanted, k
        self.hits = [rank for rank, item in enumerate(self.top) if item in wanted]

    def recall(self) -> float:
        return len(self.hits) / len(self.wanted)

    def precision(self) -> float:
        return len(self.hits) / self.k

    def mrr(self) -> float:
        return 1 / (self.hits[0] + 1) if self.hits else 0.0

    def hit_rate(self) -> float:
        return float(bool(self.hits))

    def ndcg(self, graded: bool) -> float:
        gains = {item: value if graded else 1.0 for item, value in self.wanted.items()}
        found = sum(gains[self.top[rank]] / math.log2(rank + 2) for rank in self.hits)
        best = sorted(gains.values(), reverse=True)[: self.k]
        return found / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))


relevances = st.sampled_from([0.25, 0.5, 1.0, 3.0])
worlds = st.dictionaries(
    st.integers(0, 50),
    st.tuples(
        st.dictionaries(st.integers(0, N_ITEMS - 1), relevances, min_size=1),
        st.lists(st.integers(0, N_ITEMS - 1), unique=True),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(worlds, st.integers(1, N_ITEMS + 2), st.randoms())
def test_metrics_equal_the_naive_definitions(world, k, random):
    wanted = {request: pair[0] for request, pair in world.items()}
    answers = {request: pair[1] for request, pair in world.items()} | {99: [1, 2]}  # 99 is not held out
    ranked = ranked_of(answers)
    shuffled = list(range(len(ranked)))
    random.shuffle(shuffled)
    judged = judge(ranked.take(np.array(shuffled, dtype=np.int64)), held_of(wanted))
    naive = [Naive(answers[request], wanted[request], k) for request in sorted(wanted)]
    np.testing.assert_allclose(recall_at(judged, k), [one.recall() for one in naive])
    np.testing.assert_allclose(precision_at(judged, k), [one.precision() for one in naive])
    np.testing.assert_allclose(mrr_at(judged, k), [one.mrr() for one in naive])
    np.testing.assert_allclose(hit_rate_at(judged, k), [one.hit_rate() for one in naive])
    np.testing.assert_allclose(ndcg_at(judged, k), [one.ndcg(False) for one in naive])
    np.testing.assert_allclose(ndcg_at(judged, k, graded=True), [one.ndcg(True) for one in naive], rtol=1e-6)
    shown = [item for one in naive for item in one.top]
    assert coverage(shown_items(judged, k)) == len(set(shown)) / N_ITEMS
    head = np.arange(N_ITEMS) < 2
    share = sum(item < 2 for item in shown) / len(shown) if shown else 0.0
    assert popularity_share(shown_items(judged, k), head) == pytest.approx(share)


@settings(max_examples=30, deadline=None)
@given(worlds)
def test_a_ranking_in_pieces_measures_like_the_whole(world):
    held = held_of({request: pair[0] for request, pair in world.items()})
    answers = {request: pair[1] for request, pair in world.items()}
    head = np.arange(N_ITEMS) < 1
    whole = measure([ranked_of(answers)], held, (1, 3), 5, head)
    pieces = measure([ranked_of({request: items}) for request, items in answers.items()], held, (1, 3), 5, head)
    assert whole.overall == pieces.overall
    assert whole.answered == pieces.answered == sum(bool(items) for items in answers.values())
    assert whole.means() == pytest.approx(pieces.means())


def test_an_item_not_ranked_counts_as_missed_and_an_empty_answer_as_zero():
    held = held_of({3: {0: 1.0, 5: 1.0}, 7: {1: 1.0}})
    judged = judge(ranked_of({3: [5, 4]}), held)
    assert recall_at(judged, 10).tolist() == [0.5, 0.0]
    assert ndcg_at(judged, 10)[0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert ndcg_at(judged, 10)[1] == 0.0


def test_graded_ndcg_prefers_the_more_relevant_target_first():
    held = held_of({0: {1: 3.0, 2: 1.0}})
    good, bad = judge(ranked_of({0: [1, 2]}), held), judge(ranked_of({0: [2, 1]}), held)
    assert ndcg_at(good, 5)[0] == ndcg_at(bad, 5)[0] == pytest.approx(1.0)
    assert ndcg_at(good, 5, graded=True)[0] == pytest.approx(1.0)
    assert ndcg_at(bad, 5, graded=True)[0] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_targets_may_come_in_any_order():
    wanted = {0: {1: 3.0, 2: 1.0}, 4: {5: 1.0}}
    targets = targets_of(wanted)
    turned = Targets(*(getattr(targets, name)[::-1] for name in ("request_id", "item_index", "relevance", "labels")))
    held = HeldOut.make(np.array([0, 4], dtype=np.int64), turned, N_ITEMS)
    ranked = ranked_of({0: [2, 7, 1], 4: [5]})
    np.testing.assert_allclose(
        ndcg_at(judge(ranked, held), 3, graded=True), ndcg_at(judge(ranked, held_of(wanted)), 3, graded=True)
    )


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({0: [1, 2, 1]}, "request_id 0: an item is answered twice"),
        ({0: [1, N_ITEMS]}, "item_index 8: allowed are 0 to 7"),
        ({0: [-1]}, "item_index -1: allowed are 0 to 7"),
    ],
)
def test_a_malformed_ranking_is_refused(answers, message):
    with pytest.raises(DataError, match=message):
        judge(ranked_of(answers), held_of({0: {1: 1.0}}))


def test_two_items_with_one_rank_are_refused():
    ranked = ranked_of({0: [1, 2]})
    ranked.rank[:] = 0
    with pytest.raises(DataError, match="two items share a rank"):
        judge(ranked, held_of({0: {1: 1.0}}))


def test_requests_without_targets_are_refused():
    with pytest.raises(DataError, match="request_id 1: no target"):
        HeldOut.make(np.array([0, 1], dtype=np.int64), targets_of({0: {1: 1.0}}), N_ITEMS)


def test_the_head_is_one_per_cent_and_at_least_one_item():
    assert np.flatnonzero(popular_head(np.array([1, 5, 5, 0]))).tolist() == [1]
    assert popular_head(np.arange(500)).sum() == 5
    assert popular_head(np.arange(501)).sum() == 6
