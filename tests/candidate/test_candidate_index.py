import re

import faiss
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from stages.candidate.config import IndexConfig
from stages.candidate.index import device as index_device
from stages.candidate.index.choice import choose_index, index_bytes, recalls
from stages.candidate.index.device import IndexDevice
from stages.candidate.index.kinds import index_type, kinds_to_try, make_index
from stages.candidate.index.search import ItemSearch
from stages.candidate.index.step import build_index
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.files import read_json, sha256_file
from tests.late_clock import show_everything

N, D, K = 3000, 16, 20
KINDS = ["flat", "ivf_flat", "ivf_sq8", "ivf_pq", "hnsw"]


def clustered(n, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(16, D))
    vectors = centres[rng.integers(0, 16, n)] + 0.6 * rng.normal(size=(n, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(N, 0), clustered(50, 1)
EVERY_THIRD = np.arange(0, N, 3)


def brute_force(ids, k=K):
    return ids[np.argsort(-(QUERIES @ VECTORS[ids].T), axis=1, kind="stable")[:, :k]]


def found_by(chosen, k=K):
    search = ItemSearch(chosen.index, VECTORS, chosen.trial.refine)
    return [items.ids for items in search.search(QUERIES, k, [np.empty(0, np.int64)] * len(QUERIES))]


@pytest.fixture(scope="module", params=KINDS)
def chosen(request):
    config = IndexConfig(kinds=(request.param,), recall_k=K, n_lists=25, n_timed=3)
    return request.param, choose_index(VECTORS, EVERY_THIRD, QUERIES, config)


def test_each_kind_reaches_the_recall_that_is_recorded(chosen):
    kind, found = chosen
    shares = recalls(found_by(found), brute_force(EVERY_THIRD))
    assert found.trial.recall == pytest.approx(shares.mean())
    assert found.trial.recall_lower == pytest.approx(shares.mean() - 1.645 * stats.sem(shares))
    assert shares.min() == 1.0 if kind == "flat" else found.trial.recall_lower >= 0.95
    assert found.trial.outcome == "chosen" and found.trial.latency_ms > 0


def test_the_memory_is_that_of_the_file_and_about_what_was_expected(chosen, tmp_path):
    kind, found = chosen
    faiss.write_index(found.index, str(tmp_path / "index"))
    assert found.trial.memory_bytes == (tmp_path / "index").stat().st_size == index_bytes(found.index)
    expected = index_type(kind, len(EVERY_THIRD), D, IndexConfig(n_lists=25)).estimate
    assert found.trial.memory_bytes == pytest.approx(expected, rel=0.25, abs=4000)


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8"])
def test_the_effort_is_the_smallest_that_reaches_the_recall(kind):
    config = IndexConfig(kinds=(kind,), n_lists=25, recall_k=K, n_timed=1)
    found = choose_index(VECTORS, np.arange(N), QUERIES, config)
    probes = found.trial.parameters["nprobe"]
    assert 1 < probes < 25 and faiss.extract_index_ivf(found.index).nprobe == probes
    faiss.extract_index_ivf(found.index).nprobe = probes - 1
    shares = recalls(found_by(found), brute_force(np.arange(N)))
    assert shares.mean() - 1.645 * stats.sem(shares) < 0.95


def test_the_quickest_is_taken_and_the_others_are_told():
    config = IndexConfig(kinds=("flat", "ivf_sq8"), recall_k=K, n_lists=25, n_timed=20)
    found = choose_index(VECTORS, np.arange(N), QUERIES, config)
    assert [trial.type for trial in found.tried] == ["Flat", "IVF25,SQ8"]
    assert sorted(trial.outcome for trial in found.tried) == ["chosen", "slower"]
    quickest = min(found.tried, key=lambda trial: trial.latency_ms)
    assert found.trial.latency_ms <= 1.1 * quickest.latency_ms


def test_the_same_seed_gives_the_same_index():
    config = IndexConfig(n_lists=25, points_a_list=39)
    codes = []
    for kind in ("ivf_sq8", "ivf_flat"):
        made = index_type(kind, N, D, config)
        pair = [make_index(made, VECTORS, np.arange(N), config, IndexDevice("cpu")) for _ in range(2)]
        codes.append([faiss.serialize_index(index).tobytes() for index in pair])
    assert all(first == second for first, second in codes)


def test_vectors_go_to_the_lists_that_faiss_itself_would_choose():
    config = IndexConfig(n_lists=25)
    index = make_index(index_type("ivf_flat", N, D, config), VECTORS, np.arange(N), config, IndexDevice("cpu"))
    again = faiss.clone_index(index)
    again.reset()
    again.add(VECTORS)
    sizes = [[ivf.invlists.list_size(number) for number in range(25)] for ivf in (index, again)]
    assert sizes[0] == sizes[1] and sum(sizes[0]) == N


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_sq8", "ivf_pq"])
def test_lists_and_codes_are_those_of_faiss_own_training(kind):
    """Iterations of the k-means that are shown one by one lead where Faiss's call for all of them leads."""
    config = IndexConfig(n_lists=25)
    made = make_index(index_type(kind, N, D, config), VECTORS, np.arange(N), config, IndexDevice("cpu"))
    wanted = faiss.index_factory(D, index_type(kind, N, D, config).factory, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(wanted))
    ivf.cp.seed, ivf.cp.max_points_per_centroid = config.seed, config.points_a_list
    comparing = faiss.IndexFlatIP(D)
    ivf.clustering_index = comparing
    if kind == "ivf_pq":
        ivf.pq.cp.seed = config.seed
        faiss.downcast_VectorTransform(wanted.chain.at(0)).niter = 10
    wanted.train(VECTORS)
    ivf.clustering_index = None
    wanted.add(VECTORS)
    np.testing.assert_array_equal(
        faiss.extract_index_ivf(made).quantizer.reconstruct_n(0, 25), ivf.quantizer.reconstruct_n(0, 25)
    )
    np.testing.assert_array_equal(made.reconstruct_n(0, N), wanted.reconstruct_n(0, N))


def test_training_filling_searching_and_timing_are_shown(monkeypatch, caplog):
    show_everything(monkeypatch, caplog)
    config = IndexConfig(kinds=("ivf_sq8", "hnsw"), recall_k=K, n_lists=25, n_timed=3)
    tried = choose_index(VECTORS, np.arange(N), QUERIES, config).tried
    lines = [line for line in caplog.messages if line.startswith("[sluice] build_index: ")]
    for trial in tried:
        name = trial.type
        phases = [line.split(f" {name}: ")[0] for line in lines if f" {name}: " in line]
        wanted = ["fill", "search", "time"] if name.startswith("HNSW") else ["train", "fill", "search", "time"]
        assert list(dict.fromkeys(phases)) == [f"[sluice] build_index: {phase}" for phase in wanted]
        assert any(f"fill {name}: 3,000 of 3,000 items, " in line for line in lines)
        assert any(re.search(rf"search {name}: 50 of \d+ queries", line) for line in lines)
    assert any("train IVF25,SQ8: 1 of 10 iterations, 0.017 a second, done in 9 min at " in line for line in lines)


def names(kinds):
    return [entry.kind for entry in kinds]


def test_kinds_follow_size_and_memory():
    small = kinds_to_try(1000, 64, IndexConfig())
    assert (names(small[0]), small[1]) == (["flat"], [])
    assert names(kinds_to_try(100_000, 64, IndexConfig())[0]) == ["flat", "ivf_flat", "ivf_sq8", "hnsw"]
    assert names(kinds_to_try(1_000_000, 64, IndexConfig())[0]) == ["flat", "ivf_flat", "ivf_sq8"]
    some, left_out = kinds_to_try(1_000_000, 64, IndexConfig(memory_limit_mb=100))
    assert (names(some), names(left_out)) == (["ivf_sq8"], ["flat", "ivf_flat"])
    few, left_out = kinds_to_try(1_000_000, 64, IndexConfig(memory_limit_mb=40))
    assert (names(few), names(left_out)) == (["ivf_pq"], ["flat", "ivf_flat", "ivf_sq8"])
    assert few[0].factory == "OPQ16,IVF4000,PQ16"
    assert index_type("ivf_sq8", 100_000_000, 64, IndexConfig()).factory == "IVF40000_HNSW32,SQ8"
    assert index_type("ivf_sq8", 1000, 64, IndexConfig()).n_lists == 1000 // 39


def test_nothing_within_the_memory_is_an_error_with_the_sizes():
    with pytest.raises(DataError, match=r"memory_limit_mb = 0.01 \(Flat: 0.2 MB, not built\); raise memory_limit_mb"):
        choose_index(VECTORS, np.arange(N), QUERIES, IndexConfig(memory_limit_mb=0.01))


def test_nothing_that_reaches_the_recall_is_an_error():
    config = IndexConfig(kinds=("ivf_sq8",), n_lists=4, wanted_recall=1.0, recall_k=100, n_timed=1)
    with pytest.raises(DataError, match=r"recall@100 1.0 within .*IVF4,SQ8: .* recall 0\.9\d+, at least 0\.9"):
        choose_index(VECTORS, np.arange(N), QUERIES, config)


def test_no_recipe_may_go_below_the_floor():
    with pytest.raises(ValidationError, match=r"greater than or equal to 0.95"):
        IndexConfig(wanted_recall=0.9)


def test_cuda_is_refused_where_faiss_sees_no_gpu(monkeypatch):
    monkeypatch.setattr(index_device.faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=r"index.device = 'cuda': Faiss sees no GPU.*allowed are 'auto' and 'cpu'"):
        IndexDevice("cuda")
    assert IndexDevice("auto").name == IndexDevice("cpu").name == "cpu"


def test_a_gpu_is_taken_where_faiss_sees_one(monkeypatch):
    """Stubs of Faiss's GPU calls: what they do on a GPU is not shown here, that they are called is."""
    calls = []
    monkeypatch.setattr(index_device.faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(index_device.faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(
        index_device.faiss,
        "index_cpu_to_gpu",
        lambda resources, number, index: calls.append((resources, number)) or index,
        raising=False,
    )
    monkeypatch.setattr(
        index_device.faiss,
        "knn_gpu",
        lambda resources, q, x, k, metric: faiss.knn(q, x, k, metric=metric),
        raising=False,
    )
    config = IndexConfig(kinds=("ivf_sq8",), n_lists=25, recall_k=K, n_timed=1)
    found = choose_index(VECTORS, np.arange(N), QUERIES, config)
    assert (found.device, calls) == ("cuda", [("resources", 0)] * 2)
    assert IndexDevice("cpu").name == "cpu"


def test_the_step_writes_an_exact_index_of_a_small_catalogue(planted, trained, indexed):
    described, tower = read_json(indexed / "index.json"), read_json(trained / "tower.json")
    assert (described["type"], described["recall"], described["refine"]) == ("Flat", 1.0, 1)
    assert described["tower_version"] == tower["tower_version"]
    assert described["item_vectors_sha256"] == tower["item_vectors_sha256"]
    assert described["index_sha256"] == sha256_file(indexed / "index.faiss")
    assert faiss.read_index(str(indexed / "index.faiss")).ntotal == 60
    assert described["latency_ms"] > 0 and described["memory_bytes"] > 60 * 16 * 4


def test_the_step_measures_an_approximate_index_on_users_histories(planted, trained, tmp_path):
    config = IndexConfig(kinds=("ivf_sq8",), recall_k=5, n_queries=30)
    metrics, info = build_index(config, {"snapshot": planted, "candidate": trained}, tmp_path)
    described = read_json(tmp_path / "index.json")
    # 60 items make one list of at least 39 points.
    assert info["type"] == described["type"] == "IVF1,SQ8"
    assert (metrics["n_queries"], metrics["nprobe"], described["recall_k"]) == (30, 1, 5)
    assert metrics["recall"] >= 0.95
    assert [trial["outcome"] for trial in described["tried"]] == ["chosen"]
