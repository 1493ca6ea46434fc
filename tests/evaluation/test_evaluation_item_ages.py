"""Items' ages, for requests with several targets."""

import numpy as np
import pytest

from stages.contracts.tables import RankedTable
from stages.evaluation.item_ages import NOT_YET, age_slices, by_item_age
from stages.evaluation.measure import NOT_RANKED, measure
from stages.evaluation.metrics import HeldOut

HOUR = 3_600_000
DAY = 24 * HOUR


def test_an_age_at_a_border_is_in_the_older_slice():
    ages = np.array([-1, 0, HOUR - 1, HOUR, 6 * HOUR - 1, 6 * HOUR, DAY - 1, DAY, 7 * DAY - 1, 7 * DAY, 1 << 60])
    slices = {name: ages[mask].tolist() for name, mask in age_slices(ages).items()}
    assert slices == {
        NOT_YET: [-1],
        "item under 1 h": [0, HOUR - 1],
        "item 1-6 h": [HOUR, 6 * HOUR - 1],
        "item 6-24 h": [6 * HOUR, DAY - 1],
        "item 1-7 days": [DAY, 7 * DAY - 1],
        "item older": [7 * DAY, 1 << 60],
    }


def table(*lists):
    request = np.repeat([3, 5, 9][: len(lists)], [len(items) for items in lists])
    rank = np.concatenate([np.arange(len(items)) for items in lists]).astype(np.int32)
    return RankedTable(request_id=request, item_index=np.concatenate(lists), score=-rank.astype(np.float32), rank=rank)


@pytest.fixture
def held():
    """Request 3 wants a young and an old item, 5 a young one, 9 an old one."""
    return HeldOut(
        request_id=np.array([3, 5, 9]),
        position=np.array([0, 0, 1, 2]),
        item_index=np.array([0, 1, 0, 2]),
        relevance=np.ones(4),
        n_items=4,
    )


def test_a_slice_looks_for_its_own_targets_in_the_requests_that_have_one(held):
    pieces = [table([1, 0]), table([0], [3, 0], [3, 1]).take(np.array([1, 2, 3, 4]))]
    row = measure(pieces, held, (1, 2), 3, np.zeros(4, bool))
    assert row.target_rank.tolist() == [1, 0, 1, NOT_RANKED]
    born = np.array([9 * DAY, 0, 0, 0])
    found = by_item_age({"row": row}, held, np.array([10 * DAY - 7 * HOUR] * 3), born, (1, 2), 3)
    parts = {part["name"]: part for part in found if part["targets"]}
    young, old = parts["item 6-24 h"], parts["item older"]
    assert [(part["requests"], part["targets"]) for part in (young, old)] == [(2, 2), (2, 2)]
    second, ideal = 1 / np.log2(3), 1 + 1 / np.log2(3)
    # Young: second place in requests 3 and 5. Old: first place in request 3, none in request 9.
    assert young["rows"]["row"] == {
        "ndcg@1": 0.0,
        "ndcg@2": pytest.approx(second),
        "recall@1": 0.0,
        "recall@2": 1.0,
        "recall@3": 1.0,
        "ndcg_share@1": 0.0,
        "ndcg_share@2": pytest.approx((second / ideal + second) / (1 + second)),
    }
    assert old["rows"]["row"] == {
        "ndcg@1": 0.5,
        "ndcg@2": 0.5,
        "recall@1": 0.5,
        "recall@2": 0.5,
        "recall@3": 0.5,
        "ndcg_share@1": 1.0,
        "ndcg_share@2": pytest.approx(1 / ideal / (1 + second)),
    }


def test_a_row_that_finds_nothing_has_no_share(held):
    row = measure([table([3])], held, (2,), 2, np.zeros(4, bool))
    (part,) = (part for part in by_item_age({"row": row}, held, np.zeros(3), np.zeros(4), (2,), 2) if part["targets"])
    assert part["rows"]["row"] == {"ndcg@2": 0.0, "recall@2": 0.0, "ndcg_share@2": 0.0}
