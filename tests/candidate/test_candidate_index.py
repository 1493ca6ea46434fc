import faiss
import numpy as np
import pytest

from stages.candidate.config import IndexConfig
from stages.candidate.index import (
    approximate_index,
    build_index,
    exact_index,
    recall_at,
    tune_probes,
)
from stages.contracts.errors import DataError
from stages.contracts.files import read_json, sha256_file


def clustered(n, dim, seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(16, dim))
    vectors = centres[rng.integers(0, 16, n)] + 0.4 * rng.normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(3000, 16, 0), clustered(50, 16, 1)
IDS = np.arange(3000)


def brute_force(k):
    return np.argsort(-(QUERIES @ VECTORS.T), axis=1, kind="stable")[:, :k]


def test_exact_index_finds_what_brute_force_finds():
    found = exact_index(VECTORS).search(QUERIES, 20)[1]
    assert recall_at(found, brute_force(20)) == 1.0


@pytest.mark.parametrize("codec", ["sq8", "flat"])
def test_probes_are_raised_until_the_recall_is_reached(codec):
    config = IndexConfig(n_lists=50, codec=codec, n_probe=1, wanted_recall=0.95, recall_k=20)
    index = approximate_index(VECTORS, IDS, config)
    before = recall_at(index.search(QUERIES, 20)[1], brute_force(20))
    recall = tune_probes(index, VECTORS, IDS, QUERIES, config)
    assert before < 0.95 <= recall
    assert 1 < index.nprobe < index.nlist
    assert recall == pytest.approx(recall_at(index.search(QUERIES, 20)[1], brute_force(20)))


def test_an_index_below_the_wanted_recall_is_refused():
    config = IndexConfig(n_lists=4, codec="sq8", wanted_recall=1.0, recall_k=100)
    index = approximate_index(VECTORS, IDS, config)
    with pytest.raises(DataError, match=r"with all 4 lists searched, wanted_recall = 1.0; set codec = 'flat'"):
        tune_probes(index, VECTORS, IDS, QUERIES, config)


def test_lists_follow_the_catalogue():
    assert approximate_index(VECTORS, IDS, IndexConfig()).nlist == 3000 // 39
    assert approximate_index(VECTORS, IDS, IndexConfig(n_lists=10)).nlist == 10


def test_the_step_writes_an_exact_index_of_a_small_catalogue(planted, trained, indexed):
    described = read_json(indexed / "index.json")
    assert described["type"] == "exact"
    assert described["recall"] == 1.0
    assert described["tower_version"] == read_json(trained / "tower.json")["tower_version"]
    assert described["index_sha256"] == sha256_file(indexed / "index.faiss")
    assert faiss.read_index(str(indexed / "index.faiss")).ntotal == 60


def test_the_step_measures_an_approximate_index_on_users_histories(planted, trained, tmp_path):
    config = IndexConfig(exact_below=10, n_lists=2, n_probe=1, recall_k=5, n_queries=30)
    metrics, info = build_index(config, {"snapshot": planted, "candidate": trained}, tmp_path)
    described = read_json(tmp_path / "index.json")
    # 60 items make one list of at least 39 points.
    assert info["type"] == described["type"] == "IVF1,SQ8"
    assert metrics["n_queries"] == 30
    assert metrics["recall"] >= 0.95
