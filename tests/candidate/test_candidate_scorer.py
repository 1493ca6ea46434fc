import shutil

import faiss
import numpy as np
import onnx
import pytest

from stages.candidate.onnx_towers import UserTower, ranker_query
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json


@pytest.fixture
def parts(trained, indexed, tmp_path):
    """One directory with tower and index, as a release has them."""
    for source in (trained, indexed):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_release_directory_loads_and_embeds_any_batch(parts, single_items):
    scorer = CandidateScorer.load(parts)
    assert (scorer.n_items, scorer.dim) == (60, 16)
    assert scorer.tower_version == sha256_file(parts / "user_tower.onnx")
    queries = scorer.embed(single_items([1, 16, 31]))
    assert queries.shape == (3, 16)
    np.testing.assert_allclose(scorer.embed(single_items([1])), queries[:1], atol=1e-6)
    assert not scorer.item_vectors.flags.writeable


def test_a_tower_with_other_inputs_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("history_weights", onnx.TensorProto.FLOAT, ["batch", 8])
    output = onnx.helper.make_tensor_value_info("query", onnx.TensorProto.FLOAT, ["batch", 8])
    node = onnx.helper.make_node("Identity", ["history_weights"], ["query"])
    graph = onnx.helper.make_graph([node], "tower", [value], [output])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "tower.onnx")
    with pytest.raises(ReleaseError, match=r"inputs \['history_weights'\], expected history_items and some of"):
        UserTower(tmp_path / "tower.onnx")


def test_rankers_read_the_mean_of_the_tastes():
    tastes = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.testing.assert_allclose(ranker_query(tastes), [[2, 3], [8, 9]])
    np.testing.assert_array_equal(ranker_query(tastes[:, 0]), tastes[:, 0])


@pytest.mark.parametrize("name", ["user_tower.onnx", "item_vectors.npy", "index.faiss"])
def test_a_changed_part_is_refused(parts, name):
    with (parts / name).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ReleaseError, match=f" in {name}"):
        CandidateScorer.load(parts)


@pytest.mark.parametrize("name", ["user_tower.onnx", "item_vectors.npy", "tower.json", "index.faiss", "index.json"])
def test_a_missing_part_is_named(parts, name):
    (parts / name).unlink()
    with pytest.raises(ReleaseError, match=name):
        CandidateScorer.load(parts)


def test_an_index_of_another_tower_is_refused(parts):
    described = read_json(parts / "index.json")
    write_json(parts / "index.json", {**described, "tower_version": "0" * 64})
    with pytest.raises(
        ReleaseError, match=r"tower_version is .*'000000000000…' in index.json \(build the index again\)"
    ):
        CandidateScorer.load(parts)


def test_an_index_of_other_vectors_is_refused(parts):
    described = read_json(parts / "index.json")
    write_json(parts / "index.json", {**described, "item_vectors_sha256": "0" * 64})
    with pytest.raises(
        ReleaseError, match=r"item_vectors_sha256 is .*'000000000000…' in index.json \(build the index again\)"
    ):
        CandidateScorer.load(parts)


def test_a_filter_reaches_the_search(parts):
    scorer = CandidateScorer.load(parts)
    mask = np.arange(60) % 4 == 1
    query = scorer.item_vectors[:1]
    found = scorer.search(query, 5, [np.array([1])], filters=[mask])[0]
    allowed = np.flatnonzero(mask)[1:]
    assert found.ids.tolist() == allowed[np.argsort(-(scorer.item_vectors[allowed] @ query[0]))][:5].tolist()


def test_an_index_of_another_size_is_refused(parts):
    index = faiss.IndexFlatIP(4)
    index.add(np.eye(5, 4, dtype=np.float32))
    faiss.write_index(index, str(parts / "index.faiss"))
    described = read_json(parts / "index.json")
    write_json(parts / "index.json", {**described, "index_sha256": sha256_file(parts / "index.faiss")})
    with pytest.raises(ReleaseError, match=r"5 x 4, index.json and the vectors \(60, 16\) say \(60, 16\)"):
        CandidateScorer.load(parts)


def test_a_tower_that_is_no_onnx_model_is_refused(parts):
    (parts / "user_tower.onnx").write_bytes(b"no model")
    version = sha256_file(parts / "user_tower.onnx")
    write_json(parts / "tower.json", {**read_json(parts / "tower.json"), "tower_version": version})
    write_json(parts / "index.json", {**read_json(parts / "index.json"), "tower_version": version})
    with pytest.raises(ReleaseError, match="is not a loadable ONNX model"):
        CandidateScorer.load(parts)
