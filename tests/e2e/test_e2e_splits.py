"""The whole funnel, up to its ledger, on parts that are dealt pair by pair."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stages import pipeline
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER
from stages.settings import load_settings


@pytest.mark.parametrize(
    "split",
    [
        {"method": "leave_last_out", "last": 2, "before_last": 2},
        {"method": "users", "user_shares": [0.6, 0.2, 0.2], "fold_in_share": 0.6},
    ],
    ids=lambda split: split["method"],
)
def test_a_funnel_on_dealt_pairs(job, here, tiny: dict[str, Any], split: dict[str, Any]) -> None:
    settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "dataset": {"split": split}})
    results = pipeline.run_all(settings, until="evaluate")
    snapshot = Snapshot(results["dataset"].directory)
    events, requests = snapshot.events(), snapshot.requests()
    assert snapshot.meta.split == split["method"]
    key = events.user_index * len(snapshot.items()) + events.item_index
    parts = [set(key[events.part == part].tolist()) for part in (PART_CANDIDATE, PART_RANKER, PART_EVALUATION)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    ledger = json.loads((results["evaluate"].directory / "ledger.json").read_text())
    rows = {row["name"]: row["metrics"]["ndcg@10"] for row in ledger["rows"]}
    assert set(rows) == {"popularity", "trending", "ease", "ials", "candidates", "light", "heavy"}
    assert rows["candidates"] > rows["popularity"] > 0
    slices = {part["name"]: part["requests"] for part in ledger["slices"]}
    # Everybody's history is known, of a dealt user only as history: nobody is new.
    assert slices["new users"] == 0 < slices["warm users"]
    trained = np.unique(events.user_index[events.active & (events.part == PART_CANDIDATE)])
    held_out = np.unique(requests.user_index[requests.part == PART_EVALUATION])
    assert bool(set(trained) & set(held_out)) == (split["method"] != "users")


def test_a_run_extends_the_rows_of_a_release(job, tiny: dict[str, Any]) -> None:
    """The released maps come first, also where less of the past is looked at."""
    settings = load_settings(
        job.environ, data="synthetic", overrides={**tiny, "dataset": {"base": str(job.release), "history_days": 15}}
    )
    results = pipeline.run_all(settings, until="dataset")
    old, new = Snapshot(job.results["dataset"].directory), Snapshot(results["dataset"].directory)
    assert new.user_ids()[: len(old.user_ids())].tolist() == old.user_ids().tolist()
    assert new.items().item_id[: len(old.items())].tolist() == old.items().item_id.tolist()
    assert new.meta.ids["users"][: len(old.meta.ids["users"])] == old.meta.ids["users"]
    assert new.meta.counts["events"] < old.meta.counts["events"]
