"""What the values of a signal may be: learnt from the events, or set by the recipe."""

from __future__ import annotations

import numpy as np
import pytest

from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.results import StageResult
from stages.contracts.snapshot import Snapshot, SnapshotMeta
from stages.contracts.tables import DAY_MS
from stages.contracts.value_ranges import SeenValues, ValueRange, learn_ranges
from stages.dataset.base import read_base
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetConfig, DatasetStepConfig
from stages.dataset.side_files import resolve_files
from stages.pipeline import selection
from stages.recipe import Recipe

TASKS = [{"name": "liked", "signals": ["rating"], "relevance": 1}]


def learnt(values, amount=False, pieces=3):
    seen = SeenValues()
    for piece in np.array_split(np.asarray(values, dtype=np.float32), pieces):
        seen.add(piece)
    found = seen.range("rating", amount)
    return found.low, found.high


@pytest.mark.parametrize(
    ("values", "amount", "wanted"),
    [
        ([1, 2, 3, 4, 5], False, (1, 5)),
        ([0.5, 5, 4.5], False, (0.5, 5)),
        ([-1, 1], False, (-1, 1)),
        ([1, 1, 1], False, (1, 1)),
        ([3], False, (3, 3)),
        ([], False, (1, 1)),
        ([np.nan, np.inf, 2], False, (2, 2)),
        (np.linspace(3, 600, 500), False, (0, 600)),
        (np.linspace(0.125, 0.75, 500), False, (0, 1)),
        (np.linspace(-3, 600, 500), False, (-3, 600)),
        ([30, 60], True, (0, 60)),
        ([0.25, 0.5], True, (0, 1)),
    ],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_scale_keeps_its_ends_and_an_amount_starts_at_nothing(values, amount, wanted, pieces):
    assert learnt(values, amount, pieces) == wanted


def test_what_a_base_allows_stays_allowed_and_a_recipe_says_otherwise():
    seen = {name: SeenValues() for name in ("rating", "click", "watch")}
    seen["rating"].add(np.array([3.0, 4.0]))
    base = [ValueRange(signal="rating", low=1, high=3.5), ValueRange(signal="click", low=2, high=2)]
    found = {entry.signal: (entry.low, entry.high) for entry in learn_ranges(seen, (), base, {"watch": (0, 1e300)})}
    assert found == {"rating": (1, 4), "click": (2, 2), "watch": (0, float(np.float32(1e30)))}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e300, 0.999, 5.001])
def test_a_range_holds_what_is_in_it(value):
    allowed = ValueRange(signal="rating", low=1, high=5)
    assert not allowed.holds(value)
    assert all(allowed.holds(good) for good in (1, 5, 4.1, 3))
    tenth = float(np.float32(0.1))
    assert ValueRange(signal="rating", low=tenth, high=tenth).holds(0.1), "as the events of a snapshot, in float32"
    assert str(allowed) == "1 to 5"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"stars": [1, 5]}, r"value_ranges names signals \['stars'\]"),
        ({"rating": [5, 1]}, "value_ranges.rating = "),
        ({"rating": [1]}, "value_ranges.rating"),
        ({"rating": [1, float("inf")]}, "value_ranges.rating"),
    ],
)
def test_a_wrong_range_in_a_recipe_is_refused(ranges, words):
    values = {"signals": ["rating"], "tasks": TASKS, "value_ranges": ranges}
    with pytest.raises(ConfigError, match=words):
        parse_config(DatasetConfig, values, "recipe")
    assert parse_config(DatasetConfig, {**values, "value_ranges": {"rating": [1, 5]}}, "recipe")


@pytest.fixture
def build(tmp_path, list_source):
    """Return a function that builds a snapshot and returns its directory and {signal: (low, high)}."""
    items = [(f"i{number:02d}", f"title {number}", "", 0, 100.0) for number in range(20)]

    def run(name, rows, **changes):
        config = {
            "signals": ("rating", "watch", "save"),
            "tasks": TASKS,
            "as_of_ms": 30 * DAY_MS,
            "activity": {"min_events": 1},
            "duplicates": {"method": "none"},
            "warehouse_fingerprint": "w",
        }
        step = DatasetStepConfig.model_validate(config | changes)
        step = DatasetStepConfig.model_validate(step.model_dump() | resolve_files(step).model_dump())
        (tmp_path / name).mkdir()
        build_snapshot(step, list_source(rows, items), tmp_path / name)
        found = Snapshot(tmp_path / name).meta.value_ranges
        return tmp_path / name, {entry.signal: (entry.low, entry.high) for entry in found}

    return run


def rows_of(ratings, watched):
    rng = np.random.default_rng(1)
    rows = []
    for place, time in enumerate(np.sort(rng.integers(1, 30 * DAY_MS, 600))):
        signal, value = ("watch", watched) if place % 3 == 0 else ("rating", ratings[place // 3 % len(ratings)])
        rows.append((f"u{rng.integers(10)}", f"i{rng.integers(20):02d}", signal, float(value), int(time)))
    return rows


def test_a_snapshot_holds_what_its_source_says_before_rules_and_after_a_base(build):
    base, found = build("base", rows_of([1, 2, 5], 30))
    assert found == {"rating": (1, 5), "watch": (30, 30), "save": (1, 1)}
    rule = {"watch": {"method": "share", "unit": "seconds"}}
    assert build("ruled", rows_of([2, 4], 250), values=rule)[1]["watch"] == (0, 250)
    assert build("summed", rows_of([2, 4], 30), repeats={"watch": "sum"})[1]["watch"][0] == 0
    grown, found = build("grown", rows_of([2, 4], 40), base=str(base))
    assert found == {"rating": (1, 5), "watch": (30, 40), "save": (1, 1)}
    assert read_base(str(grown)).sha256 != read_base(str(base)).sha256
    assert build("given", rows_of([2, 4], 40), value_ranges={"rating": [1, 5]})[1]["rating"] == (1, 5)


def test_a_snapshot_of_an_older_version_has_no_ranges():
    assert SnapshotMeta.model_fields["value_ranges"].default == ()


def test_what_a_data_contract_says_of_values_holds_for_posts():
    recipe = Recipe(
        dataset={"signals": ["rating", "save"], "tasks": TASKS, "value_ranges": {"save": [1, 3]}},
        contracts={"values": {"ranges": {"rating": [1, 5], "save": [0, 9], "elsewhere": [0, 1]}}},
    )
    source = StageResult(step="ingest", path="", fingerprint="w", info={"as_of_ms": 1})
    assert selection(recipe, source).value_ranges == {"rating": (1, 5), "save": (1, 3)}
