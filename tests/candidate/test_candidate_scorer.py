import shutil

import faiss
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.candidate.scorer as scorer_module
from stages.candidate.config import IndexConfig
from stages.candidate.index import approximate_index, exact_index, with_ids
from stages.candidate.scorer import CandidateScorer, UserTower, ranker_query
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json

N, D = 40, 4
SUMMARY = {"tower_version": "v", "config": {"features": {}}}


def unit(n, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(N, 0)


def make(index) -> CandidateScorer:
    return CandidateScorer(tower=None, index=index, item_vectors=VECTORS, summary=SUMMARY)


def brute_force(query, k, exclude):
    scores = VECTORS @ query
    allowed = np.setdiff1d(np.arange(N), exclude)
    return allowed[np.lexsort((allowed, -scores[allowed]))][:k]


excluded = st.lists(st.lists(st.integers(0, N - 1), max_size=N), min_size=1, max_size=5)


@settings(deadline=None)
@given(excluded, st.integers(1, N + 5), st.integers(0, 100), st.sampled_from([0, 8, 512]))
def test_exact_search_equals_brute_force_without_the_excluded(exclusions, k, seed, overfetch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "_OVERFETCH", overfetch)
        queries = unit(len(exclusions), seed)
        exclude = [np.array(items, np.int64) for items in exclusions]
        found = make(exact_index(VECTORS)).search(queries, k, exclude)
    for query, items, answer in zip(queries, exclude, found, strict=True):
        np.testing.assert_array_equal(answer.ids, brute_force(query, k, items))
        np.testing.assert_allclose(answer.scores, VECTORS[answer.ids] @ query, atol=1e-6)


@settings(deadline=None)
@given(excluded, st.integers(1, N + 5), st.integers(0, 100), st.sampled_from([0, 512]))
def test_approximate_search_always_finds_k_where_they_remain(exclusions, k, seed, overfetch):
    config = IndexConfig(n_lists=8, codec="flat", n_probe=1)
    index = approximate_index(np.tile(VECTORS, (10, 1)), np.arange(10 * N), config)
    index.reset()
    index.add(VECTORS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "_OVERFETCH", overfetch)
        exclude = [np.array(items, np.int64) for items in exclusions]
        found = make(index).search(unit(len(exclusions), seed), k, exclude)
    for items, answer in zip(exclude, found, strict=True):
        remaining = N - len(set(items.tolist()))
        assert len(answer) == min(k, remaining)
        assert not set(answer.ids.tolist()) & set(items.tolist())


withheld = st.sets(st.integers(0, N - 1), min_size=1, max_size=N - 1)


@settings(deadline=None, max_examples=60)
@given(withheld, excluded, st.integers(1, N + 5), st.sampled_from([0, 512]), st.booleans())
def test_what_is_not_indexed_is_never_found(missing, exclusions, k, overfetch, exact):
    ids = np.setdiff1d(np.arange(N), sorted(missing))
    index = with_ids(VECTORS[ids], ids)
    if not exact:
        index = approximate_index(np.tile(VECTORS, (10, 1)), np.arange(10 * N), IndexConfig(n_lists=8, codec="flat"))
        index.reset()
        index.add_with_ids(VECTORS[ids], ids)
    searcher = make(index)
    assert searcher.indexed.tolist() == ids.tolist()
    queries = unit(len(exclusions), 0)
    exclude = [np.array(items, np.int64) for items in exclusions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "_OVERFETCH", overfetch)
        found = searcher.search(queries, k, exclude)
    for query, items, answer in zip(queries, exclude, found, strict=True):
        gone = np.union1d(items, sorted(missing))
        assert len(answer) == min(k, N - len(gone))
        assert not np.isin(answer.ids, gone).any()
        if exact:
            np.testing.assert_array_equal(answer.ids, brute_force(query, k, gone))


def test_ties_are_broken_by_item():
    vectors = np.tile(VECTORS[:1], (6, 1))
    scorer = CandidateScorer(tower=None, index=exact_index(vectors), item_vectors=vectors, summary=SUMMARY)
    answer = scorer.search(VECTORS[:1], 6, [np.array([2])])[0]
    assert answer.ids.tolist() == [0, 1, 3, 4, 5]


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
    assert isinstance(scorer.item_vectors, np.memmap)


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
    with pytest.raises(ReleaseError, match=f"{name}: sha256"):
        CandidateScorer.load(parts)


@pytest.mark.parametrize("name", ["user_tower.onnx", "item_vectors.npy", "tower.json", "index.faiss", "index.json"])
def test_a_missing_part_is_named(parts, name):
    (parts / name).unlink()
    with pytest.raises(ReleaseError, match=name):
        CandidateScorer.load(parts)


def test_an_index_of_another_tower_is_refused(parts):
    described = read_json(parts / "index.json")
    write_json(parts / "index.json", {**described, "tower_version": "0" * 64})
    with pytest.raises(ReleaseError, match=r"tower_version 000000000000…, the tower in .* build the index again"):
        CandidateScorer.load(parts)


def test_an_index_of_another_size_is_refused(parts):
    faiss.write_index(exact_index(unit(5, 1)), str(parts / "index.faiss"))
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
