"""Duplicates for review, verdicts and blocked items through the whole dataset step."""

from __future__ import annotations

import csv
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.contracts.errors import ConfigError
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetConfig, DatasetStepConfig
from stages.dataset.side_files import resolve_files

TITLES = ["Quiet Island Journey Home", "Island Quiet Journey Home", "Loud City", "loud city!", "Old Mill", "New Pond"]
ITEMS = [(f"i{row}", title, "", row, None) for row, title in enumerate(TITLES)]


def long_titles(items: pa.Table) -> Any:
    return pa.compute.greater(pa.compute.utf8_length(items["title"]), 20)


def wrong_shape(items: pa.Table) -> list[bool]:
    return [True]


@pytest.fixture
def build(tmp_path: Path, list_source: Callable[..., Any]) -> Callable[..., Snapshot]:
    numbers = iter(range(1_000))
    rng = random.Random(0)
    rows = [(f"u{n % 8}", f"i{rng.randrange(7)}", "click", 1.0, rng.randrange(30 * DAY_MS)) for n in range(300)]

    def run(**changes: Any) -> Snapshot:
        directory = tmp_path / f"s{next(numbers)}"
        directory.mkdir()
        values = {
            "signals": ["click"],
            "tasks": [{"name": "click", "signals": ["click"], "relevance": 1}],
            "activity": {"min_events": 1},
            "as_of_ms": 30 * DAY_MS,
            "warehouse_fingerprint": "w",
            "split": {"candidate_share": 0.3, "ranker_share": 0.35},
            "requests": {"targets_per_request": 1},
        }
        build_snapshot(DatasetStepConfig.model_validate(values | changes), list_source(rows, ITEMS), directory)
        return Snapshot(directory)

    return run


def blocked_are_nowhere(snapshot: Snapshot) -> set[str]:
    blocked = set(snapshot.blocked())
    ids = set(snapshot.items().item_id.tolist())
    assert not blocked & (ids | set(snapshot.aliases()))
    assert snapshot.events().item_index.max() < len(ids)
    return blocked


def test_review_pairs_are_written_and_verdicts_honoured(build: Callable[..., Snapshot], tmp_path: Path) -> None:
    near = {"method": "near", "threshold": 0.9, "review_band": 0.2}
    snapshot = build(duplicates=near)
    assert snapshot.aliases().keys() == {"i3", "i1"}
    with (snapshot.directory / "review_pairs.csv").open(encoding="utf-8") as file:
        (pair,) = [row for row in csv.DictReader(file) if {row["item_a"], row["item_b"]} == {"i0", "i1"}]
    assert (pair["decided"], float(pair["similarity"])) == ("same", 1.0)
    verdicts = tmp_path / "verdicts.csv"
    verdicts.write_text("item_a,item_b,verdict\ni0,i1,different\ni4,i5, Same\ni0,unknown,same\n", encoding="utf-8")
    judged = build(duplicates={**near, "verdicts": str(verdicts)})
    assert judged.aliases().keys() == {"i3", "i5"}
    assert judged.meta.counts["verdicts_used"] == 2
    verdicts.write_text("item_a,item_b,verdict\ni0,i1,perhaps\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"verdict \['perhaps'\], allowed: same, different"):
        build(duplicates={**near, "verdicts": str(verdicts)})


def test_blocked_items_and_their_copies_are_kept_out_of_everything(
    build: Callable[..., Snapshot], tmp_path: Path
) -> None:
    banned = tmp_path / "banned.txt"
    banned.write_text("i3\n\ni6\nnever-seen\n", encoding="utf-8")
    snapshot = build(content={"predicates": {"mills": "i4"}, "lists": {"illegal": str(banned)}})
    assert snapshot.blocked() == {
        "i4": "mills",
        "i3": "illegal",
        "i6": "illegal",
        "never-seen": "illegal",
        "i2": "duplicate_of_blocked",
    }
    assert blocked_are_nowhere(snapshot) >= {"i2", "i3", "i4", "i6"}
    counts = snapshot.meta.counts
    assert (counts["items_blocked_mills"], counts["items_blocked_illegal"]) == (1, 3)
    assert (counts["items_blocked_duplicate_of_blocked"], counts["items_blocked"]) == (1, 5)


def test_a_classifier_blocks_and_its_faults_are_named(
    build: Callable[..., Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("a_classifier")
    module.long_titles, module.wrong_shape = long_titles, wrong_shape  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_classifier", module)
    snapshot = build(content={"classifiers": {"wordy": "a_classifier:long_titles"}})
    assert snapshot.blocked() == {"i0": "wordy", "i1": "wordy"}
    blocked_are_nowhere(snapshot)
    with pytest.raises(ConfigError, match=r"classifiers.wordy = 'a_classifier:wrong_shape' returned bool \(1,\)"):
        build(content={"classifiers": {"wordy": "a_classifier:wrong_shape"}})
    with pytest.raises(ConfigError, match=r"classifiers.wordy = 'no_such:thing': No module named"):
        build(content={"classifiers": {"wordy": "no_such:thing"}})


def test_a_files_content_is_part_of_the_identity(tmp_path: Path) -> None:
    banned = tmp_path / "banned.txt"
    values: dict[str, Any] = {"signals": ["c"], "tasks": [{"name": "c", "signals": ["c"], "relevance": 1}]}
    config = DatasetConfig.model_validate({**values, "content": {"lists": {"illegal": str(banned)}}})
    with pytest.raises(ConfigError, match=r"content.lists.illegal = .*: no such file"):
        resolve_files(config)
    banned.write_text("a\n", encoding="utf-8")
    first = resolve_files(config)
    banned.write_text("b\n", encoding="utf-8")
    assert resolve_files(config) != first
