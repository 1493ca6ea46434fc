"""A release whose parts do not match is refused with one error that names both values."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from serving.release import _item_index, load_release
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, write_json
from stages.contracts.manifest import FunnelSpec
from stages.contracts.snapshot import ItemTable

ID = "2023-11-14-alpha"


@pytest.fixture
def copy(releases, tmp_path):
    return shutil.copytree(releases["alpha"], tmp_path / "release")


def test_a_whole_release_loads(releases):
    release = load_release(releases["alpha"])
    assert release.manifest.release_id == ID
    assert len(release.items) == release.candidate.n_items == 300
    assert release.item_index["i5"] == release.item_index["copy-of-i5"] == 5
    assert release.user_index["u7"] == 7
    assert [(stage.row.name, stage.is_used) for stage in release.stages] == [("light", True), ("heavy", True)]
    assert release.stages[1].scorer.objective == {"click": 0.25, "like": 2.0}


@pytest.mark.parametrize("part", ["user_tower.onnx", "light_ranker.txt", "state/state.json", "items.parquet"])
def test_a_changed_part_is_named(copy, part):
    path = copy / part
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ReleaseError, match=rf"{part}: sha256 \w+…, the manifest says \w+…"):
        load_release(copy)


def test_a_missing_and_a_foreign_part_are_both_named(copy):
    (copy / "index.faiss").unlink()
    (copy / "notes.txt").write_text("?")
    with pytest.raises(ReleaseError, match=r"index.faiss: missing; notes.txt: not in the manifest"):
        load_release(copy)


def test_no_manifest_no_release(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(ReleaseError, match="a release without a manifest is not complete"):
        load_release(copy)


def test_a_part_that_nobody_listed(copy, reseal):
    (copy / "heavy_ranker.onnx").unlink()
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=r"does not list \['heavy_ranker.onnx'\]"):
        load_release(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tower_version", "a" * 64, r"tower_version is .*'a{12}…' in manifest.json \(assemble the release again\)"),
        (
            "feature_schema_hash",
            "b" * 64,
            r"feature_schema_hash is '\w{12}…' in feature_schema.json, .*'b{12}…' in manifest.json \(assemble",
        ),
        ("data_fingerprint", "c" * 64, r"data_fingerprint is 'f{12}…' in snapshot.json, 'c{12}…' in manifest.json"),
        ("as_of_ms", 5, r"as_of_ms is 1700000000000 in snapshot.json, 5 in manifest.json"),
    ],
)
def test_the_manifest_must_match_the_parts(copy, reseal, field, value, message):
    reseal(copy, ID, **{field: value})
    with pytest.raises(ReleaseError, match=message):
        load_release(copy)


def test_features_that_this_code_computes_otherwise(copy, reseal):
    config = read_json(copy / "config.json")
    config["features"]["half_lives_days"] = [2.0]
    write_json(copy / "config.json", config)
    reseal(copy, ID)
    with pytest.raises(
        ReleaseError,
        match=r"feature_schema_hash is .* in this version's features, .* in feature_schema.json \(build the",
    ):
        load_release(copy)


@pytest.mark.parametrize(
    ("part", "code", "message"),
    [
        ("feature_schema.json", None, "features were computed by a version that did not note its code.*train again"),
        ("feature_schema.json", "0" * 64, r"features were computed by other code \(0{12}…\)"),
        ("tower.json", "1" * 64, r"tower's inputs were computed by other code \(1{12}…\)"),
    ],
)
def test_a_release_of_other_code(copy, reseal, part, code, message):
    write_json(copy / part, {**read_json(copy / part), "code": code})
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=message):
        load_release(copy)


def test_another_number_of_items(copy, reseal):
    table = pq.read_table(copy / "items.parquet")
    pq.write_table(table.slice(0, 299), copy / "items.parquet")
    reseal(copy, ID)
    with pytest.raises(
        ReleaseError, match=r"n_items is 299 in items.parquet, 300 in item_vectors.npy, 300 in tower.json"
    ):
        load_release(copy)


def test_parts_of_two_releases(copy, releases, reseal):
    for name in ("user_tower.onnx", "item_vectors.npy", "tower.json"):
        shutil.copy(releases["beta"] / name, copy / name)
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=r"tower_version is .* in index.json.* \(build the index again\)"):
        load_release(copy)


def test_a_tower_trained_with_another_history(copy, reseal):
    tower = read_json(copy / "tower.json")
    tower["config"]["features"]["history_length"] = 9
    write_json(copy / "tower.json", tower)
    reseal(copy, ID)
    with pytest.raises(
        ReleaseError, match=r"history_length is 6 in config.json, 9 in tower.json \(train the two-tower model again\)"
    ):
        load_release(copy)


@pytest.mark.parametrize("part", ["snapshot.json", "items.parquet", "light_ranker.txt", "heavy_ranker.onnx"])
def test_a_part_that_was_sealed_but_is_not_readable(copy, reseal, part):
    (copy / part).write_bytes(b"neither JSON nor anything else")
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=part):
        load_release(copy)


def test_an_array_with_objects_is_not_unpickled(copy, reseal):
    path = next((copy / "state").glob("*.npy"))
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match="state"):
        load_release(copy)


def test_an_unknown_stage(copy, reseal):
    reseal(copy, ID, funnel=FunnelSpec(stages=("light", "magic")))
    with pytest.raises(ReleaseError, match=r"stages has \['magic'\], allowed are \['light', 'heavy'\]"):
        load_release(copy)


def test_an_alias_of_no_item(copy, reseal):
    table = pq.read_table(copy / "aliases.parquet")
    pq.write_table(table.set_column(1, "item_index", [[300]]), copy / "aliases.parquet")
    reseal(copy, ID)
    with pytest.raises(ReleaseError, match=r"aliases.parquet has \['copy-of-i5 -> 300'\], allowed are 0 to 299"):
        load_release(copy)


def test_bypassed_rankers_are_not_needed(copy, reseal):
    for name in ("light_ranker.txt", "light_ranker.json", "heavy_ranker.onnx", "heavy_ranker.json"):
        (copy / name).unlink()
    reseal(copy, ID, funnel=FunnelSpec(stages=()))
    release = load_release(copy)
    assert release.stages == ()


def test_ids_of_retired_rows_lead_to_what_replaced_them(tmp_path):
    """A row of an extended map may belong to an item that is a duplicate or blocked by now."""
    names = np.array(["a", "b", "c"], dtype=object)
    numbers = np.zeros(3, dtype=np.int64)
    codes = numbers.astype(np.int32)
    items = ItemTable(names, names, numbers, numbers.astype(np.float32), np.zeros(4, np.int64), codes, 1)
    assert _item_index(tmp_path, items, {"b": 0, "copy of c": 2}, {"a": "rules"}) == {"b": 0, "c": 2, "copy of c": 2}
