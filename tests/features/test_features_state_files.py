from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.contracts import arrays as arrays_module
from stages.contracts.errors import ReleaseError
from stages.contracts.snapshot import ContextColumn
from stages.contracts.tables import DAY_MS
from stages.contracts.value_rules import FittedValueRule
from stages.features.config import TrendingConfig, TrendsConfig
from stages.features.state import FunnelState
from stages.features.state_files import (
    FORMAT_VERSION,
    LOG,
    PLAIN,
    RAGGED,
    STATE_FILE,
    Shapes,
    array_shapes,
    check_identity,
    load_arrays,
    observed_ranges,
    state_identity,
)

SIGNALS = ("click", "rating", "impression")
DEVICE = ContextColumn(name="device", values=("phone", "tv"))
CLICK, RATING = 0, 1
T0 = 10_000 * DAY_MS
TRENDING = TrendsConfig(lists={"trending": TrendingConfig()})
Make = Callable[..., Any]


class World:
    """A saved state that has an entry in every ragged array, and what it was saved for."""

    def __init__(self, directory: Path, make_items: Make, make_state: Make) -> None:
        made = make_state()
        self.items, self.config, self.tasks = make_items(8), made.config, made.tasks
        self.directory = directory
        state = FunnelState.empty(self.items, self.config, SIGNALS, self.tasks, context=(DEVICE,), trending=TRENDING)
        for user, item, signal, value, time_ms in (
            (0, 3, CLICK, 1.0, T0),
            (2, 3, RATING, 0.5, T0),
            (2, 5, CLICK, 1.0, T0 + 1),
        ):
            state.apply(user, item, signal, value, time_ms, state.context_values([1]))
        state.save(directory)

    @property
    def shapes(self) -> Shapes:
        return array_shapes(self.items, self.config, self.tasks, (DEVICE,), TRENDING)

    @property
    def identity(self) -> dict[str, Any]:
        return state_identity(self.items, self.config, SIGNALS, self.tasks, (DEVICE,), TRENDING)

    def load(self) -> dict[str, np.ndarray]:
        return load_arrays(self.directory, self.shapes)

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    def array(self, name: str) -> np.ndarray:
        return np.load(self.path(name), allow_pickle=False)

    def put(self, name: str, values: np.ndarray) -> None:
        np.save(self.path(name), values)

    def refused(self, name: str, words: str) -> None:
        """The error names the file, and says the words."""
        with pytest.raises(ReleaseError, match=words) as caught:
            self.load()
        assert str(self.directory) in str(caught.value)
        assert name in str(caught.value)


@pytest.fixture
def world(tmp_path: Path, make_items: Make, make_state: Make) -> World:
    return World(tmp_path, make_items, make_state)


NAMES = (*PLAIN, "item_counts", "task_last_ms", *RAGGED, *LOG)
"""Arrays of every kind."""


def test_the_files_are_those_that_the_shapes_name(world: World) -> None:
    assert {path.stem for path in world.directory.glob("*.npy")} == set(world.shapes)
    found = world.load()
    assert set(found) == set(world.shapes)
    for name, (shape, dtype) in world.shapes.items():
        assert found[name].dtype == dtype, name
        assert found[name].shape == shape or name in (*RAGGED, *LOG), name
        np.testing.assert_array_equal(found[name], world.array(name))


def test_small_arrays_are_read_and_large_ones_mapped_and_neither_writes_to_its_file(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in world.directory.iterdir()}
    for limit in (arrays_module.IN_MEMORY_BYTES, -1):
        monkeypatch.setattr(arrays_module, "IN_MEMORY_BYTES", limit)
        found = world.load()
        for values in found.values():
            values[...] = 0
    assert {path.name: path.read_bytes() for path in world.directory.iterdir()} == before


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(world: World, name: str) -> None:
    world.path(name).unlink()
    world.refused(f"{name}.npy", "is not a readable array")


@pytest.mark.parametrize("name", ["touches", "item_counts", "users_items", "users_offsets", "neighbours_weights"])
@pytest.mark.parametrize("damage", ["empty", "header", "values", "noise after", "noise", "json"])
def test_a_damaged_file_is_named(world: World, name: str, damage: str) -> None:
    whole = world.path(name).read_bytes()
    world.path(name).write_bytes(
        {
            "empty": b"",
            "header": whole[:60],
            "values": whole[:-1],
            "noise after": whole + b"\0",
            "noise": bytes(len(whole)),
            "json": b"[1, 2, 3]",
        }[damage]
    )
    world.refused(f"{name}.npy", "is not a readable array")


@pytest.mark.parametrize("name", NAMES)
def test_another_type_is_named_with_the_wanted_one(world: World, name: str) -> None:
    values = world.array(name)
    world.put(name, values.astype(np.uint8))
    world.refused(f"{name}.npy", f"holds uint8, expected {values.dtype}")


def test_the_other_byte_order_is_another_type(world: World) -> None:
    values = world.array("touches")
    world.put("touches", values.astype(values.dtype.newbyteorder()))
    world.refused("touches.npy", "expected int64")


@pytest.mark.parametrize("name", ["touches", "positives", "item_counts", "totals", "context_counts"])
def test_another_shape_is_named_with_the_wanted_one(world: World, name: str) -> None:
    values = world.array(name)
    for changed in (values[:-1], values[None], values[..., :-1], values[:0]):
        world.put(name, changed)
        world.refused(f"{name}.npy", re.escape(f"has shape {changed.shape}, expected {values.shape}"))


@pytest.mark.parametrize("name", [*RAGGED, *LOG])
def test_a_ragged_array_has_one_dimension(world: World, name: str) -> None:
    values = world.array(name)
    for changed in (values[:, None], np.array(1, dtype=values.dtype)):
        world.put(name, changed)
        world.refused(f"{name}.npy", "expected one dimension")


@pytest.mark.parametrize("name", [name for name in RAGGED if not name.endswith("_offsets")])
def test_a_column_shorter_or_longer_than_its_offsets_say_is_named(world: World, name: str) -> None:
    values = world.array(name)
    for changed in (values[:-1], np.append(values, values[:1])):
        world.put(name, changed)
        world.refused(f"{name}.npy", f"has {len(changed)} entries, its offsets end at {len(values)}")


@pytest.mark.parametrize("prefix", ["users", "neighbours"])
@pytest.mark.parametrize("damage", ["nothing", "not from 0", "falling", "negative"])
def test_offsets_out_of_order_are_named(world: World, prefix: str, damage: str) -> None:
    """Rows would be read from other rows' entries, and no length would tell."""
    offsets = world.array(f"{prefix}_offsets")
    end = int(offsets[-1])
    assert end > 1
    changed = offsets.copy()
    if damage == "nothing":
        changed = offsets[:0]
    elif damage == "not from 0":
        changed[0] = 1
    elif damage == "falling":
        changed[1:3] = end, 0
    else:
        changed[1] = -1
    world.put(f"{prefix}_offsets", changed)
    world.refused(f"{prefix}_offsets.npy", "allowed are numbers that begin with 0 and never fall")


def test_links_are_of_all_items_or_of_none(world: World) -> None:
    offsets = world.array("neighbours_offsets")
    world.put("neighbours_offsets", np.append(offsets, offsets[-1]))
    world.refused("neighbours_offsets.npy", "is of 9 items, allowed are 0 and 8")
    world.put("neighbours_offsets", np.zeros(1, dtype=np.int64))
    for column in ("items", "weights"):
        world.put(f"neighbours_{column}", world.array(f"neighbours_{column}")[:0])
    assert len(world.load()["neighbours_offsets"]) == 1


def test_the_columns_of_recent_touches_are_equally_long(world: World) -> None:
    assert len(LOG) > 1
    world.put(LOG[-1], world.array(LOG[-1])[:-1])
    world.refused(f"{LOG[-1]}.npy", "must be equally long")


def test_a_state_without_trends_reads_no_recent_touches(world: World) -> None:
    for name in LOG:
        world.path(name).unlink()
    shapes = array_shapes(world.items, world.config, world.tasks, (DEVICE,))
    assert set(load_arrays(world.directory, shapes)) == set(shapes) == set(world.shapes) - set(LOG)


def test_an_empty_state_is_a_state(tmp_path: Path, make_items: Make, make_state: Make) -> None:
    make_state(n_items=1).save(tmp_path)
    made = make_state(n_items=1)
    found = load_arrays(tmp_path, array_shapes(make_items(1), made.config, made.tasks, ()))
    assert found["users_offsets"].tolist() == [0]
    assert len(found["users_items"]) == 0


def test_what_a_state_was_saved_for_is_accepted(world: World) -> None:
    check_identity(world.directory / STATE_FILE, world.identity)


def test_every_difference_is_named_at_once(world: World) -> None:
    wanted = world.identity | {"n_items": 9, "signals": ["click"]}
    with pytest.raises(ReleaseError, match="the state was saved for something else") as caught:
        check_identity(world.directory / STATE_FILE, wanted)
    for words in (str(world.directory / STATE_FILE), "n_items = 8, expected 9", "signals = ", "expected ['click']"):
        assert words in str(caught.value)
    assert "n_categories" not in str(caught.value)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1, None])
def test_another_version_of_the_format_is_refused(world: World, version: int | None) -> None:
    path = world.directory / STATE_FILE
    kept = json.loads(path.read_text())
    kept["format_version"] = version
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
    with pytest.raises(ReleaseError, match=f"format_version = {version}, expected {FORMAT_VERSION}"):
        check_identity(path, world.identity)


def test_order_of_signals_tasks_and_values_counts(world: World) -> None:
    """Their positions are the codes in the arrays."""
    path, identity = world.directory / STATE_FILE, world.identity
    for key in ("signals", "tasks"):
        with pytest.raises(ReleaseError, match=f"{key} = "):
            check_identity(path, identity | {key: identity[key][::-1]})
    swapped = [column | {"values": column["values"][::-1]} for column in identity["context"]]
    with pytest.raises(ReleaseError, match="context = "):
        check_identity(path, identity | {"context": swapped})


def test_trends_of_another_kind_are_refused(world: World) -> None:
    other = TrendsConfig(lists={"trending": TrendingConfig(segment_smoothing=51.0)})
    identity = state_identity(world.items, world.config, SIGNALS, world.tasks, (DEVICE,), other)
    with pytest.raises(ReleaseError, match="trending = "):
        check_identity(world.directory / STATE_FILE, identity)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '"state"'])
def test_what_is_no_description_is_refused(world: World, text: str) -> None:
    path = world.directory / STATE_FILE
    path.write_text(text)
    with pytest.raises(ReleaseError, match=r"state\.json is not a readable state description"):
        check_identity(path, world.identity)
    path.unlink()
    with pytest.raises(ReleaseError, match=r"state\.json is not a readable state description"):
        check_identity(path, world.identity)


def test_ranges_are_those_of_the_histories(world: World) -> None:
    found = observed_ranges(world.directory, SIGNALS, ())
    assert set(found) == {"click", "rating"}, "no user has an impression"
    assert (found["rating"].low, found["rating"].high) == (0.5, 0.5)
    assert (found["click"].low, found["click"].high) == (1.0, 1.0)


def test_a_rule_in_seconds_has_a_day_as_its_range(world: World) -> None:
    """The histories hold values after the rule, the range is that of posted ones."""
    for unit, high in (("seconds", 86_400.0), ("share", 1.0)):
        rule = FittedValueRule(signal="click", method="share", unit=unit)
        found = observed_ranges(world.directory, SIGNALS, (rule,))["click"]
        assert (found.low, found.high) == (0.0, high)


def test_ranges_of_columns_of_different_lengths_are_refused(world: World) -> None:
    world.put("users_signals", world.array("users_signals")[:-1])
    with pytest.raises(ReleaseError, match=r"users_signals\.npy \(2,\), users_values\.npy \(3,\): allowed are equal"):
        observed_ranges(world.directory, SIGNALS, ())
    world.path("users_signals").unlink()
    with pytest.raises(ReleaseError, match=r"users_signals\.npy is not a readable array"):
        observed_ranges(world.directory, SIGNALS, ())


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("users_items", 8, 7),
        ("users_items", -1, 7),
        ("users_signals", 3, 2),
        ("neighbours_items", 8, 7),
        ("trending_items", -1, 7),
        ("trending_segments", 1, 0),
    ],
)
def test_what_there_is_not_is_refused_before_compiled_code_reads_it(
    world: World, name: str, value: int, most: int
) -> None:
    values = world.array(name)
    values[-1] = value
    world.put(name, values)
    with pytest.raises(ReleaseError, match=rf"{name}\.npy holds {value}, allowed are 0 to {most}"):
        FunnelState.load(world.directory, world.items, world.config, SIGNALS, world.tasks, (DEVICE,), trending=TRENDING)
