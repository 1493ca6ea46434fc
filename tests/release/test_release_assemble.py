import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import sha256_file, write_json
from stages.contracts.manifest import FunnelSpec, read_manifest, verify_release
from stages.contracts.snapshot import Snapshot
from stages.release.assemble import AssembleConfig, assemble, popular_list
from tests.counted_hashes import count_hashes, times_hashed

CONFIG = AssembleConfig(resolved={"seed": 1, "paths": None}, fallback_k=3)


def assemble_into(directory, inputs, config=CONFIG):
    directory.mkdir()
    return assemble(config, inputs, directory), directory / "release"


def edit_json(path, **values):
    write_json(path, json.loads(path.read_text()) | values)


def test_a_release_holds_every_part_and_verifies(inputs, tmp_path):
    (metrics, info), release = assemble_into(tmp_path / "out", inputs)
    manifest = verify_release(release)
    assert set(manifest.parts) == {
        *(
            "config.json",
            "fallback.json",
            "ledger.json",
            "snapshot.json",
            "items.parquet",
            "users.parquet",
            "blocked.parquet",
        ),
        *(
            "aliases.parquet",
            "user_tower.onnx",
            "item_tower.onnx",
            "item_vectors.npy",
            "tower.json",
            "index.faiss",
            "index.json",
        ),
        *("feature_schema.json", "state/state.json", "state/counts.npy", "light_ranker.txt", "light_ranker.json"),
        *("heavy_ranker.onnx", "heavy_ranker.json"),
    }
    assert info["release_id"] == manifest.release_id
    assert manifest.release_id.startswith("20231114-")
    assert metrics["heavy/ndcg@10"] == manifest.metrics["heavy/ndcg@10"] == 0.25
    assert manifest.feature_schema_hash == "schema-1"
    assert manifest.data_fingerprint == "f" * 64
    assert json.loads((release / "config.json").read_text()) == {"seed": 1, "paths": None}


def test_each_file_is_hashed_once(blended, tmp_path, monkeypatch):
    counted = count_hashes(monkeypatch)
    _, release = assemble_into(tmp_path / "out", blended)
    parts = read_manifest(release).parts
    assert "sources/ease_items.npy" in parts
    assert times_hashed(counted, parts) == dict.fromkeys(parts, 1)


def test_the_objective_is_written_out(inputs, tmp_path):
    _, release = assemble_into(tmp_path / "default", inputs)
    assert read_manifest(release).funnel.objective == {"click": 1.0}
    chosen = AssembleConfig(funnel=FunnelSpec(objective={"like": 2.0}))
    _, release = assemble_into(tmp_path / "chosen", inputs, chosen)
    assert read_manifest(release).funnel.objective == {"like": 2.0}


def test_equal_inputs_give_an_equal_id_and_any_change_another(inputs, tmp_path, make_release):
    (_, first), _ = assemble_into(tmp_path / "one", inputs)
    (_, again), _ = assemble_into(tmp_path / "two", inputs)
    assert first == again
    (_, other_fallback), _ = assemble_into(tmp_path / "three", inputs, CONFIG.model_copy(update={"fallback_k": 2}))
    other_light = read_manifest(make_release(tmp_path / "four", salt="another")).release_id
    same_light = read_manifest(make_release(tmp_path / "five")).release_id
    assert len({first["release_id"], other_fallback["release_id"], other_light, same_light}) == 4


def test_files_are_copied_where_links_are_refused(inputs, tmp_path, monkeypatch):
    (_, linked), _ = assemble_into(tmp_path / "linked", inputs)

    def refuse(*_args):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    (_, copied), release = assemble_into(tmp_path / "copied", inputs)
    assert linked == copied
    verify_release(release)


def test_the_popular_list_counts_users_once_and_forgets(inputs):
    snapshot = Snapshot(inputs["snapshot"])
    forever = popular_list(snapshot, 9, None)
    assert [(row["item_id"], row["score"]) for row in forever[:2]] == [("item-1", 3.0), ("item-2", 2.0)]
    assert [row["item_id"] for row in forever] == ["item-1", "item-2", "item-0", "item-3"]  # item-4 is not born
    of_late = popular_list(snapshot, 2, 10.0)
    assert [row["item_id"] for row in of_late] == ["item-2", "item-1"]
    assert of_late[0]["score"] == pytest.approx(2 * 2**-0.1)


def other_tower(inputs):
    (inputs["candidate"] / "user_tower.onnx").write_bytes(b"other tower")


def other_item_tower(inputs):
    (inputs["candidate"] / "item_tower.onnx").write_bytes(b"other item tower")


def other_index(inputs):
    edit_json(inputs["index"] / "index.json", tower_version="of another tower")


def other_index_bytes(inputs):
    (inputs["index"] / "index.faiss").write_bytes(b"other index")


def index_of_other_vectors(inputs):
    edit_json(inputs["index"] / "index.json", item_vectors_sha256="others")


def index_below_the_floor(inputs):
    edit_json(inputs["index"] / "index.json", recall=0.949)


def other_vectors(inputs):
    np.save(inputs["candidate"] / "item_vectors.npy", np.zeros((5, 3), dtype=np.float32))


def fewer_vectors(inputs):
    np.save(inputs["candidate"] / "item_vectors.npy", np.ones((4, 3), dtype=np.float32))


def fewer_items(inputs):
    path = inputs["snapshot"] / "items.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)


def other_state(inputs):
    edit_json(inputs["examples"] / "state" / "state.json", n_items=99)


def other_light_schema(inputs):
    edit_json(inputs["light"] / "light_ranker.json", feature_schema_hash="schema-2")


def other_heavy_schema(inputs):
    edit_json(inputs["heavy"] / "heavy_ranker.json", feature_schema_hash="schema-2")


def other_dimension(inputs):
    edit_json(inputs["heavy"] / "heavy_ranker.json", vector_dim=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_tower, r"tower_version is '\w+…' in user_tower.onnx, '\w+…' in tower.json"),
        (other_item_tower, r"item_tower_sha256 is '\w+…' in item_tower.onnx, '\w+…' in tower.json"),
        (other_index, r"tower_version is .* 'of another tower' in index.json"),
        (other_index_bytes, r"index_sha256 is '\w+…' in index.faiss, '\w+…' in index.json \(build the index again\)"),
        (
            index_of_other_vectors,
            r"item_vectors_sha256 is .*'\w+…' in tower.json, 'others' in index.json \(build the index again\)",
        ),
        (index_below_the_floor, r"recall is 0.949 in index.json, allowed is 0.95 or more"),
        (other_vectors, r"item_vectors_sha256 is '\w+…' in item_vectors.npy, '\w+…' in tower.json"),
        (fewer_vectors, r"n_items is 5 in items.parquet, 4 in item_vectors.npy, 5 in tower.json"),
        (fewer_items, r"n_items is 4 in items.parquet, 5 in item_vectors.npy"),
        (other_state, r"n_items is .* 99 in state/state.json"),
        (
            other_light_schema,
            r"feature_schema_hash is 'schema-1' in feature_schema.json, 'schema-2' in light_ranker.json",
        ),
        (other_heavy_schema, r"'schema-1' in light_ranker.json, 'schema-2' in heavy_ranker.json"),
        (other_dimension, r"dim is 3 in item_vectors.npy, 3 in tower.json, 64 in heavy_ranker.json \(train the heavy"),
    ],
)
def test_parts_that_do_not_match_are_refused_with_both_values(inputs, tmp_path, change, message):
    change(inputs)
    with pytest.raises(ReleaseError, match=message):
        assemble_into(tmp_path / "out", inputs)
    assert not (tmp_path / "out" / "release" / "manifest.json").exists()


def test_a_missing_part_and_a_lacking_key_are_named(inputs, tmp_path):
    (inputs["light"] / "light_ranker.txt").unlink()
    with pytest.raises(ReleaseError, match=r"light_ranker\.txt: missing"):
        assemble_into(tmp_path / "one", inputs)
    (inputs["light"] / "light_ranker.txt").write_text("tree")
    write_json(inputs["candidate"] / "tower.json", {"dim": 3})
    with pytest.raises(ReleaseError, match=r"tower\.json lacks tower_version, .*: train the two-tower model again"):
        assemble_into(tmp_path / "two", inputs)


@pytest.fixture
def blended(inputs):
    """Inputs with a source beside the index, and features that tell the two apart."""
    directory = inputs["index"].parent / "sources_step"
    target = directory / "sources"
    target.mkdir(parents=True)
    np.save(target / "ease_items.npy", np.arange(3, dtype=np.int32))
    meta = {
        "names": ["tower", "ease"],
        "candidate_k": 1000,
        "n_items": 5,
        "tower_version": sha256_file(inputs["candidate"] / "user_tower.onnx"),
        "data_fingerprint": "f" * 64,
        "files": {"ease_items.npy": sha256_file(target / "ease_items.npy")},
    }
    write_json(target / "sources.json", meta)
    edit_json(inputs["examples"] / "feature_schema.json", sources=["tower", "ease"])
    return {**inputs, "sources": directory}


def test_the_sources_are_parts_of_the_release(blended, inputs, tmp_path):
    (_, info), release = assemble_into(tmp_path / "out", blended)
    assert {"sources/sources.json", "sources/ease_items.npy"} <= set(verify_release(release).parts)
    edit_json(inputs["examples"] / "feature_schema.json", sources=[])
    (_, without), release = assemble_into(tmp_path / "without", inputs)
    assert not [name for name in verify_release(release).parts if name.startswith("sources/")]
    assert info != without
    (release / "sources").mkdir()
    (release / "sources" / "sources.json").write_text("{}")
    with pytest.raises(ReleaseError, match=r"sources/sources\.json: not in the manifest"):
        verify_release(release)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tower_version": "other"}, r"tower_version is .* 'other' in sources/sources.json"),
        ({"n_items": 6}, r"n_items is .* 6 in sources/sources.json"),
        ({"data_fingerprint": "0"}, r"data_fingerprint is 'f+…' in snapshot.json, '0' in sources/sources.json"),
        ({"names": ["tower"]}, r"sources is \[\] in sources/sources.json, \['tower', 'ease'\] in feature_schema.json"),
        (
            {"files": {"ease_items.npy": "0"}},
            r"sha256 of sources/ease_items.npy is '0' in sources/sources.json, '\w+…' in sources/ease_items",
        ),
        ({"candidate_k": 70}, r"candidate_k is 1000 in funnel, 70 in sources/sources.json \(train the sources again\)"),
        ({"files": {"ials_items.npy": "0"}}, r"ials_items.npy is missing, sources/sources.json names it"),
    ],
)
def test_sources_of_something_else_are_refused(blended, tmp_path, changes, message):
    edit_json(blended["sources"] / "sources" / "sources.json", **changes)
    with pytest.raises(ReleaseError, match=message):
        assemble_into(tmp_path / "out", blended)


def test_features_that_tell_missing_sources_apart_are_refused(blended, tmp_path):
    del blended["sources"]
    with pytest.raises(
        ReleaseError, match=r"candidate generators \['tower', 'ease'\], but sources/sources.json is missing"
    ):
        assemble_into(tmp_path / "out", blended)


def test_a_bypassed_stage_may_be_absent_but_a_stage_in_use_may_not(inputs, tmp_path):
    del inputs["heavy"]
    light_only = AssembleConfig(funnel=FunnelSpec(stages=("light",)))
    _, release = assemble_into(tmp_path / "light", inputs, light_only)
    assert "heavy_ranker.onnx" not in verify_release(release).parts
    with pytest.raises(ReleaseError, match=r"inputs \['heavy'\] are missing"):
        assemble_into(tmp_path / "both", inputs)


@pytest.mark.parametrize(
    ("funnel", "message"),
    [
        (FunnelSpec(stages=("light", "huge")), r"funnel.stages: unknown \['huge'\]"),
        (FunnelSpec(objective={"share": 1.0}), r"funnel.objective: unknown tasks \['share'\]"),
    ],
)
def test_an_unknown_stage_or_task_is_refused(inputs, tmp_path, funnel, message):
    with pytest.raises(ConfigError, match=message):
        assemble_into(tmp_path / "out", inputs, AssembleConfig(funnel=funnel))


def test_nothing_of_a_bypassed_stage_is_in_the_release(inputs, tmp_path, serve):
    reason = "loses to light: -0.0146 [-0.0155, -0.0137] in ndcg@10"
    serve(inputs, "light", ["light"], heavy=reason)
    _, release = assemble_into(tmp_path / "out", inputs)
    manifest = verify_release(release)
    assert manifest.funnel.stages == ("light",)
    assert manifest.bypassed == {"heavy": reason}
    assert not [name for name in manifest.parts if name.startswith("heavy_ranker")]
    assert "light_ranker.txt" in manifest.parts
    assert manifest.metrics["served/ndcg@10"] == manifest.metrics["light/ndcg@10"] == 0.20
    assert manifest.metrics["heavy/ndcg@10"] == 0.25, "the ledger keeps the row"


def test_where_both_rankers_are_bypassed_neither_is_in_the_release(inputs, tmp_path, serve):
    serve(inputs, "candidates", [], light="loses", heavy="reads it")
    _, release = assemble_into(tmp_path / "out", inputs)
    manifest = verify_release(release)
    assert (manifest.funnel.stages, sorted(manifest.bypassed)) == ((), ["heavy", "light"])
    assert not [name for name in manifest.parts if "_ranker." in name]


def test_the_heavy_ranker_alone_brings_the_light_one_whose_scores_it_reads(inputs, tmp_path, serve):
    serve(inputs, "heavy", ["heavy"], light="left out by the recipe")
    alone = AssembleConfig(funnel=FunnelSpec(stages=("heavy",)))
    _, release = assemble_into(tmp_path / "out", inputs, alone)
    assert {"light_ranker.txt", "heavy_ranker.onnx"} <= set(verify_release(release).parts)
    del inputs["light"]
    with pytest.raises(ReleaseError, match=r"inputs \['light'\] are missing"):
        assemble_into(tmp_path / "without", inputs, alone)


def test_a_ledger_that_serves_what_was_not_asked_for_is_refused(inputs, tmp_path, serve):
    serve(inputs, "heavy", ["light", "heavy"])
    with pytest.raises(ReleaseError, match=r"serves the stages .*'heavy'\], funnel.stages asks for \['light'\]"):
        assemble_into(tmp_path / "out", inputs, AssembleConfig(funnel=FunnelSpec(stages=("light",))))
