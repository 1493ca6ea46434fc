"""The ledger by the age of the items looked for: the slices, requests with several targets, and the whole step."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contracts.tables import CandidateTable, RankedTable
from stages.evaluation.evaluate import evaluate
from stages.evaluation.item_ages import NOT_YET, age_slices, by_item_age
from stages.evaluation.measure import NOT_RANKED, measure
from stages.evaluation.metrics import HeldOut
from stages.evaluation.report import render_ledger, write_html
from tests.evaluation import test_evaluation_step as world

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


def test_targets_are_sliced_by_the_age_of_their_items(tmp_path):
    """Items 2 to 7 are 30 minutes, 1, 6 and 24 hours, 7 days old, and not yet there when they are asked for.

    ``light`` finds each item first; ``candidates`` second, but the youngest and the oldest not at all.
    """
    snapshot = world.write_world(tmp_path / "snapshot")
    ages = np.array([0, 0, HOUR // 2, HOUR, 6 * HOUR, DAY, 7 * DAY, -1])
    path = snapshot / "items.parquet"
    items = pq.read_table(path)
    place = items.schema.get_field_index("created_at_ms")
    pq.write_table(items.set_column(place, items.schema.field(place), pa.array(600 - ages)), path)

    def found(user):
        return [0, 1] if world.wanted_item(user) in (2, 6) else world.second_place(user)

    inputs = {
        "snapshot": snapshot,
        "retrieve": world.write_ranking(tmp_path / "some", "candidates.parquet", found, CandidateTable),
        "held_out": world.write_rankings(tmp_path / "held_out", light=world.first_place),
        "light": tmp_path / "light",
    }
    (tmp_path / "out").mkdir()
    evaluate(world.CONFIG, inputs, tmp_path / "out")
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    wanted = np.bincount([world.wanted_item(user) for user in range(world.N_USERS)], minlength=world.N_ITEMS)[
        [7, 2, 3, 4, 5, 6]
    ]
    names = ["not yet there", "under 1 h", "1-6 h", "6-24 h", "1-7 days", "older"]
    assert [(part["name"], part["targets"]) for part in ledger["item_ages"]] == [
        (f"item {name}", count) for name, count in zip(names, wanted.tolist(), strict=True)
    ]
    second, n_found = 1 / np.log2(3), wanted[[0, 2, 3, 4]].sum()
    for part, count, is_found in zip(ledger["item_ages"], wanted, [1, 0, 1, 1, 1, 0], strict=True):
        assert part["target_share"] == pytest.approx(count / world.N_USERS)
        candidates, light = part["rows"]["candidates"], part["rows"]["light"]
        assert (light["ndcg@2"], light["recall@6"]) == (1.0, 1.0)
        assert light["ndcg_share@2"] == pytest.approx(count / world.N_USERS)
        assert candidates["ndcg@2"] == pytest.approx(is_found * second)
        assert candidates["recall@6"] == is_found
        assert candidates["ndcg_share@2"] == pytest.approx(is_found * count / n_found)
    write_html(ledger, tmp_path / "ledger.html")
    pages = (tmp_path / "out" / "ledger.md").read_text(), render_ledger(ledger), (tmp_path / "ledger.html").read_text()
    for page in pages:
        assert "NDCG@2 by age of the target" in page and "item 6-24 h" in page and "Recall@6 by age" in page
    del ledger["item_ages"]  # a release from before items' ages were looked at
    assert "by age" not in render_ledger(ledger)
