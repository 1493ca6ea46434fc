"""However tables are sharded and however many ranks there are, the same model comes out.

Two ranks add the same float32 numbers in another order than one. The difference grows over the steps
but stays far below what a seed changes: losses within 1e-4 and unit vectors within 2e-3 after 16 steps.
"""

import dataclasses
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.distributed.candidate_exchange import Share
from stages.candidate.distributed.lookup import with_stride
from stages.candidate.distributed.sharding import Sharder, planner
from stages.candidate.export import user_tower
from stages.candidate.export.user_tower import export
from stages.candidate.towers.encoders import Sizes
from stages.candidate.towers.two_tower import TwoTower
from stages.candidate.training import worker
from stages.candidate.training.batches import Batches
from stages.candidate.training.step import prepare
from stages.contracts.config import merged
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.features.config import FeatureConfig
from tests.time_limits import finished

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
LOSS_TOLERANCE, VECTOR_TOLERANCE = 1e-4, 2e-3
KINDS = [
    ("table_wise", "rowwise_adagrad"),
    ("row_wise", "rowwise_adagrad"),
    ("data_parallel", "rowwise_adagrad"),
    ("auto", "rowwise_adagrad"),
    ("column_wise", "adagrad"),
    ("data_parallel", "adagrad"),
    ("table_wise", "adagrad"),
]


WORK = {
    "table_wise": ((1.0, 0.0), (1.0, 0.0)),
    "row_wise": ((0.5, 0.5), (1.0, 0.0)),
    "column_wise": ((0.5, 0.5), (0.5, 0.5)),
    "data_parallel": ((1.0, 1.0), (0.0, 0.0)),
}
"""Share of a table that each of two ranks holds, and share of its most popular row that each has to send."""


@pytest.mark.parametrize("sharding", WORK)
def test_what_each_kind_of_sharding_is_for(sharding):
    """``table_wise`` sends a row whole and once, ``row_wise`` holds a table that is too large for one rank,
    ``column_wise`` does so and burdens the ranks alike however popular a row is, ``data_parallel`` sends no row."""
    config = CandidateConfig(
        model={"item_parts": 1}, optimizer={"sparse": "adagrad"}, distributed={"sharding": sharding}
    )
    rows, width, popular = 1000, config.model.dimension, 3
    model = TwoTower(Sizes(rows, 5, 0, 0, 0, 1, 4, 2.0), config.model, torch.device("meta"))
    (tables,) = planner(model, config, torch.device("cpu"), 2).plan(model, [Sharder()]).plan.values()
    held, sent = np.zeros(2), np.zeros(2)
    if tables["item"].sharding_spec is None:  # TorchRec's mark of a table that every rank has a copy of
        held += 1.0
    else:
        for shard in tables["item"].sharding_spec.shards:
            (first, _), (n_rows, n_columns) = shard.shard_offsets, shard.shard_sizes
            held[shard.placement.rank()] += n_rows * n_columns / (rows * width)
            sent[shard.placement.rank()] += n_columns / width if first <= popular < first + n_rows else 0.0
    assert (tuple(held), tuple(sent)) == WORK[sharding]


def job(planted: Path, directory: Path, **changes):
    """Prepare a job of 101 examples a batch, which two ranks cannot halve, and return what export needs."""
    values = {
        "model": {"dimension": 16, "category_dimension": 4, "hidden": (16,)},
        "loss": {"temperature": 0.2},
        "negatives": {"shared": 33},
        "training": {"epochs": 2, "batch_size": 101},
        "optimizer": {"sparse_learning_rate": 0.1, "dense_learning_rate": 5e-3},
        "distributed": {"device": "cpu", "timeout_s": 60},
    }
    config = TrainCandidateConfig(candidate=CandidateConfig(**merged(values, changes)), features=FEATURES)
    directory.mkdir(parents=True)
    return config, prepare(config, Snapshot(planted), directory)


def run_ranks(n: int, *directories: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(n), str(Path(__file__).with_name("ranks.py")), *map(str, directories)]
    interface = "lo" if sys.platform == "linux" else "lo0"
    inherited = {**os.environ, "GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1", **environment}
    return finished(command, env=inherited)


@pytest.fixture(scope="module")
def results(planted, tmp_path_factory):
    """Losses, vectors and queries of every kind of sharding on one rank and on two; the item tower is not exported."""
    root, found = tmp_path_factory.mktemp("sharding"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_tower, "write_item_tower", lambda *arguments: arguments[-1].write_bytes(b""))
        _train_all(planted, root, found)
    return found


def _train_all(planted, root, found):
    for ranks in (1, 2):
        jobs = {
            kind: job(
                planted,
                root / f"{kind[0]}-{kind[1]}-{ranks}",
                model={"word_buckets": 2000, "word_dimension": 4, "user_id": True},
                optimizer={"sparse": kind[1]},
                distributed={"sharding": kind[0]},
            )
            for kind in KINDS
        }
        places = {kind: root / f"{kind[0]}-{kind[1]}-{ranks}" for kind in KINDS}
        done = run_ranks(ranks, *places.values())
        assert done.returncode == 0, done.stderr[-3000:]
        for kind, (config, catalogue) in jobs.items():
            out = root / f"out-{kind[0]}-{kind[1]}-{ranks}"
            out.mkdir()
            summary = export(out, places[kind], config, catalogue)
            query = np.load(places[kind] / "probe_query.npy")
            found[kind, ranks] = summary, np.load(out / "item_vectors.npy"), query, places[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_reach_what_one_reaches(results, kind):
    (one, vectors, queries, _), (two, vectors_2, queries_2, _) = results[kind, 1], results[kind, 2]
    np.testing.assert_allclose(two.losses, one.losses, atol=LOSS_TOLERANCE)
    np.testing.assert_allclose(vectors_2, vectors, atol=VECTOR_TOLERANCE)
    np.testing.assert_allclose(queries_2, queries, atol=VECTOR_TOLERANCE)
    assert one.losses[1] < one.losses[0] - 0.2  # it did move


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loss_masks_is_found_while_rows_travel(results, kind):
    """Each rank starts the lookup of a batch first, and reads its rows in the towers last."""
    summary, _, _, place = results[kind, 2]
    steps = read_json(place / "metrics.json")["steps"] * len(summary.losses)
    wanted = {"start_lookup _loss_of forward": steps, "start_lookup forward": 1}  # the probe has no loss
    assert [read_json(place / f"seen-{rank}.json")["orders"] for rank in range(2)] == [wanted] * 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system knows no affinity")
def test_ranks_share_out_the_cores(results):
    available = os.sched_getaffinity(0)
    for ranks in (1, 2):
        place = results[KINDS[0], ranks][3]
        cores = [read_json(place / f"seen-{rank}.json")["cores"] for rank in range(ranks)]
        if len(available) >= ranks:
            assert sorted(itertools.chain(*cores)) == sorted(available)
        else:
            assert all(set(own) == available for own in cores)


@pytest.mark.parametrize(
    ("rank", "ranks", "threads", "wanted"),
    [(0, 1, 1, None), (0, 2, 1, [0, 1]), (1, 2, 2, [3, 5, 7]), (1, 2, 3, None), (4, 5, 1, [7]), (5, 6, 1, None)],
)
def test_a_rank_keeps_to_its_share_of_five_cores(monkeypatch, rank, ranks, threads, wanted):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 5, 3, 1, 0}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: taken.append(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    worker.take_own_cores(threads)
    assert taken == ([] if wanted is None else [wanted])


@pytest.mark.parametrize("kind", KINDS)
def test_the_portable_tower_is_the_sharded_one(results, kind):
    assert max(results[kind, ranks][0].export_deviation for ranks in (1, 2)) < 1e-5


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad"])
def test_every_kind_of_sharding_gives_the_same_model(results, optimizer):
    same = [kind for kind in KINDS if kind[1] == optimizer]
    for first, other in itertools.pairwise(same):
        np.testing.assert_allclose(results[other, 2][1], results[first, 1][1], atol=VECTOR_TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_unsharded_state_holds_every_weight_and_sum(results, kind):
    """One rank's files and two ranks' have the same names, shapes and, within rounding, values."""
    one, two = (results[kind, ranks][3] / "state" for ranks in (1, 2))
    names = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert names == sorted(path.relative_to(two) for path in two.rglob("*.npy"))
    assert Path("optimizer/embeddings.embedding_bags.category.weight/sum.npy") in names
    for name in names:
        first, second = np.load(one / name), np.load(two / name)
        assert first.shape == second.shape
        if "signal" in name.parts[1]:
            continue  # one kind of event only: weights are normalised, so nothing but rounding ever moves this one
        np.testing.assert_allclose(second, first, atol=5e-3, rtol=5e-3)
    sums = np.load(one / "optimizer/embeddings.embedding_bags.item.weight/sum.npy")
    assert sums.shape == ((60,) if kind[1] == "rowwise_adagrad" else (60, 16))
    assert sums.max() > 0


@pytest.mark.parametrize(("n_queries", "n_uniform", "world"), [(10, 4, 2), (7, 3, 2), (8, 0, 3), (11, 5, 4)])
def test_shares_cover_the_batch_and_find_their_rows_again(n_queries, n_uniform, world):
    """Gathering what each rank holds and taking ``blocks`` gives ``order``, own positives first."""
    shares = [Share.even(n_queries, n_uniform, rank, world) for rank in range(world)]
    gathered = np.full(world * shares[0].rows, -1)
    for rank, share in enumerate(shares):
        own = np.r_[np.arange(n_queries)[share.queries], n_queries + np.arange(n_uniform)[share.shared]]
        gathered[rank * share.rows : rank * share.rows + len(own)] = own
    for share in shares:
        np.testing.assert_array_equal(np.concatenate([gathered[block] for block in share.blocks()]), share.order())
        own = share.queries.stop - share.queries.start
        np.testing.assert_array_equal(share.order()[:own], np.arange(n_queries)[share.queries])
        assert (share.order()[:n_queries] < n_queries).all()
        assert sorted(share.order()) == list(range(n_queries + n_uniform))
    assert sum(share.weight for share in shares) / world == pytest.approx(1.0)


def test_the_batch_does_not_depend_on_the_number_of_ranks(small_world):
    config = CandidateConfig(negatives={"shared": 5}, training={"batch_size": 17})
    features = FeatureConfig(history_length=4, history_decay=2.0)
    whole = list(Batches(*small_world, config, features).epoch(1))
    parts = [list(Batches(*small_world, config, features, rank, 3).epoch(1)) for rank in range(3)]
    assert len(whole) == len(parts[0]) == len(parts[2]) > 5
    for step, batch in enumerate(whole):
        for name in ("history", "signals", "ages", "kept", "named", "users"):
            joined = np.concatenate([getattr(own[step], name) for own in parts])
            np.testing.assert_array_equal(joined, getattr(batch, name))
        for own in parts:
            np.testing.assert_array_equal(own[step].candidates, batch.candidates[own[step].share.order()])


def test_an_epoch_may_begin_at_any_step(small_world):
    batches = Batches(
        *small_world, CandidateConfig(training={"batch_size": 16}), FeatureConfig(history_length=4, history_decay=2.0)
    )
    whole, rest = list(batches.epoch(3)), list(batches.epoch(3, start=7))
    assert len(rest) == len(whole) - 7
    np.testing.assert_array_equal(rest[0].items, whole[7].items)
    np.testing.assert_array_equal(rest[0].kept, whole[7].kept)


def test_column_wise_sharding_refuses_sums_by_row():
    with pytest.raises(ValidationError, match=r"sharding = 'column_wise' needs optimizer.sparse = 'adagrad'"):
        CandidateConfig(distributed={"sharding": "column_wise"})


def test_more_ranks_than_rows_and_tables(planted, tmp_path):
    """Five ranks, two tables, one of four rows: some ranks hold nothing of it, or nothing at all."""
    places = []
    for kind in ("row_wise", "table_wise", "data_parallel", "auto", "column_wise"):
        places.append(tmp_path / kind)
        optimizer = "adagrad" if kind == "column_wise" else "rowwise_adagrad"
        job(
            planted, places[-1], training={"epochs": 1}, optimizer={"sparse": optimizer}, distributed={"sharding": kind}
        )
    done = run_ranks(5, *places)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [read_json(place / "metrics.json")["losses"][0] for place in places]
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[:4], losses[0], atol=LOSS_TOLERANCE)
    category = [np.load(p / "state/weights/embeddings.embedding_bags.category.weight.npy") for p in places]
    assert {weights.shape for weights in category} == {(4, 4)}
    for weights in category[1:4]:
        np.testing.assert_allclose(weights, category[0], atol=VECTOR_TOLERANCE)


def test_a_lookup_that_has_started_finds_the_same_rows(planted, tmp_path, one_rank):
    """With the stride of a rank that has more, too."""
    job(planted, tmp_path / "job")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        batches, loss_of, _ = worker.build(tmp_path / "job", 0, 1)
        tables = loss_of.model.module.embeddings
        for batch in itertools.islice(batches.epoch(0), 6):
            plain = loss_of.prepare(batch)
            for stride in (plain.features.stride(), plain.features.stride() + 9):
                started = dataclasses.replace(plain, rows=tables(with_stride(plain.features, stride)))
                assert loss_of(batch, started).item() == loss_of(batch, plain).item()
