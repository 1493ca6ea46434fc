"""Worlds at the edge and malformed ones: a model that answers, or one error that says what is allowed."""

import dataclasses
import shutil
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from stages.candidate.config import CandidateConfig, IndexConfig, RetrieveConfig, TrainCandidateConfig
from stages.candidate.export.user_tower import export
from stages.candidate.index.step import build_index
from stages.candidate.retrieval.step import retrieve
from stages.candidate.scorer import CandidateScorer
from stages.candidate.training.step import prepare, train_candidate
from stages.candidate.training.worker import train as train_rank
from stages.contracts.config import merged
from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import CandidateTable, EventTable
from stages.features.config import FeatureConfig
from stages.features.history import Moment, tower_inputs
from stages.features.state import FunnelState

pytestmark = pytest.mark.usefixtures("here")

FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
SETTINGS = {
    "model": {"dimension": 8, "category_dimension": 4, "hidden": (8,)},
    "negatives": {"shared": 16},
    "training": {"epochs": 2, "batch_size": 64},
    "distributed": {"device": "cpu", "timeout_s": 60},
}


def settings(**changes):
    return TrainCandidateConfig(candidate=CandidateConfig(**merged(SETTINGS, changes)), features=FEATURES)


@pytest.fixture
def small(tmp_path, snapshot_writer, event_table, request_table):
    """Return a function that writes a snapshot of (user, item) touches, one a millisecond, asked for user 0 at last."""

    def write(touches, n_items):
        user, item = np.array(touches).T
        events = event_table(user, item, np.arange(len(touches)), np.zeros(len(touches)))
        requests = request_table(np.array([0]), np.array([0]), np.array([11_500]), np.array([2], np.int8))
        targets = np.array([0]), np.array([n_items - 1])
        snapshot_writer(tmp_path / "snapshot", events, requests, targets, np.zeros(n_items), [[0]] * n_items)
        return tmp_path / "snapshot"

    return write


def answers_of(config, snapshot, root):
    """Train, index and retrieve; return the scorer and what user 0 is answered with."""
    inputs = {"snapshot": snapshot, **{name: root / name for name in ("candidate", "index", "retrieved")}}
    for name in ("candidate", "index", "retrieved"):
        inputs[name].mkdir()
    train_candidate(config, inputs, inputs["candidate"])
    build_index(IndexConfig(), inputs, inputs["index"])
    retrieve(RetrieveConfig(candidate_k=5, features=FEATURES), inputs, inputs["retrieved"])
    assert np.isfinite(np.load(inputs["candidate"] / "item_vectors.npy")).all()
    table = CandidateTable.read(inputs["retrieved"] / "candidates.parquet")
    return CandidateScorer.load(inputs["candidate"], inputs["index"]), table.item_index.tolist()


def run_here(config, snapshot, work):
    work.mkdir()
    catalogue = prepare(config, Snapshot(snapshot), work, checkpoints=work / "checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        train_rank(work, progress=False)
    return catalogue


def test_histories_that_are_all_empty_are_refused_by_default(small, tmp_path):
    snapshot = small([(user, user % 4) for user in range(20)], 6)
    with pytest.raises(
        EmptyDatasetError, match=r"0 of 20 training examples have a history, .* set training.use_empty_histories"
    ):
        train_candidate(settings(), {"snapshot": snapshot}, tmp_path / "out")


def test_histories_that_are_all_empty_train_where_they_are_asked_for(small, tmp_path):
    snapshot = small([(user, user % 4) for user in range(20)], 6)
    scorer, found = answers_of(settings(training={"use_empty_histories": True}), snapshot, tmp_path)
    assert sorted(found) == [1, 2, 3, 4, 5]
    state = FunnelState.empty(Snapshot(snapshot).items(), FEATURES, ("click",), ())
    nobody = tower_inputs([state.history(0)], [Moment(1)], FEATURES, scorer.n_items)
    assert (nobody.items == scorer.n_items).all()
    assert np.isfinite(scorer.embed(nobody)).all()


def test_one_user_is_enough(small, tmp_path):
    """Whoever is alone has no negative but items that they never touched."""
    _, found = answers_of(settings(), small([(0, item) for item in range(6)], 9), tmp_path)
    assert sorted(found) == [6, 7, 8]


def test_one_item_has_no_history_and_trains_without_one(small, tmp_path):
    snapshot = small([(user, 0) for user in range(1, 20)], 1)
    with pytest.raises(EmptyDatasetError, match="0 of 19 training examples have a history"):
        train_candidate(settings(), {"snapshot": snapshot}, tmp_path / "out")
    scorer, found = answers_of(settings(training={"use_empty_histories": True}), snapshot, tmp_path)
    assert found == [0]
    query = np.ones((1, 8), np.float32)
    assert [items.ids.tolist() for items in scorer.search(query, 5, [np.empty(0, np.int64)])] == [[0]]
    assert [items.ids.tolist() for items in scorer.search(query, 5, [np.array([0])])] == [[]]


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("item_index", 60, r"item_index = 60 at position 3 \(1 of [\d,]+ are wrong\), allowed are 0 to 59"),
        ("item_index", -1, "item_index = -1 at position 3"),
        ("user_index", 160, "user_index = 160 at position 3 .* allowed are 0 to 159"),
        ("signal", 2, "signal = 2 at position 3 .* allowed are 0 to 1"),
        ("value", np.nan, "value = nan at position 3 .* allowed are finite numbers"),
        ("value", -np.inf, "value = -inf at position 3 .* allowed are finite numbers"),
    ],
)
def test_malformed_events_are_named_before_anything_is_trained(planted, tmp_path, column, value, wanted):
    shutil.copytree(planted, tmp_path / "snapshot")
    events = EventTable.read(planted / "events.parquet")
    values = getattr(events, column).copy()
    values[3] = value
    dataclasses.replace(events, **{column: values}).write(tmp_path / "snapshot" / "events.parquet")
    with pytest.raises(DataError, match=f"events.parquet: {wanted}"):
        train_candidate(settings(), {"snapshot": tmp_path / "snapshot"}, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot"]


@pytest.mark.parametrize(
    ("column", "kind", "value", "wanted"),
    [
        ("duration_s", pa.float32(), np.inf, "duration_s = inf at position 2 .* and NaN where it is unknown"),
        ("duration_s", pa.float32(), -3.0, "duration_s = -3.0 at position 2 .* allowed are finite numbers from 0"),
        ("categories", pa.list_(pa.int32()), [4], "categories = 4 at position 2 .* allowed are 0 to 3"),
    ],
)
def test_malformed_items_are_named_before_anything_is_trained(planted, tmp_path, column, kind, value, wanted):
    shutil.copytree(planted, tmp_path / "snapshot")
    items = pq.read_table(planted / "items.parquet")
    values = items[column].to_pylist()
    values[2] = value
    changed = items.set_column(items.column_names.index(column), column, pa.array(values, kind))
    pq.write_table(changed, tmp_path / "snapshot" / "items.parquet")
    with pytest.raises(DataError, match=f"items.parquet: {wanted}"):
        train_candidate(settings(), {"snapshot": tmp_path / "snapshot"}, tmp_path / "out")


@pytest.mark.parametrize("item", [-1, 61])
def test_a_history_with_an_item_beyond_the_table_is_refused(trained, indexed, single_items, item):
    """ONNX would count a negative row from the end."""
    scorer = CandidateScorer.load(trained, indexed)
    with pytest.raises(DataError, match=f"history_items = {item}: allowed are 0 to 59, and 60 at padding"):
        scorer.embed(single_items([1, item]))


def test_a_loss_that_is_not_finite_ends_at_the_next_checkpoint(planted, one_rank, tmp_path):
    """What a resumed run could only repeat is never kept."""
    config = settings(optimizer={"dense_learning_rate": 1e30}, checkpoints={"every_steps": 1})
    with pytest.raises(DataError, match=r"the loss of epoch 1 is nan; lower the learning rates"):
        run_here(config, planted, tmp_path / "work")
    assert len(list((tmp_path / "work" / "checkpoints").glob("step-*"))) <= 2


def test_a_step_too_large_after_the_last_loss_is_never_published(planted, one_rank, tmp_path):
    """One step: its loss is that of the first values, and what it leaves is beyond float32 once it is multiplied."""
    config = settings(training={"epochs": 1, "batch_size": 4096}, optimizer={"dense_learning_rate": 3e37})
    catalogue = run_here(config, planted, tmp_path / "work")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"numbers of item_vectors.npy are NaN or infinite; lower the learning rates"):
        export(tmp_path / "out", tmp_path / "work", config, catalogue)
    assert not (tmp_path / "out" / "item_vectors.npy").exists()


@pytest.mark.parametrize(
    "name",
    ["weights/embeddings.embedding_bags.item.weight", "optimizer/query_tower.correction.mlp.0.weight/exp_avg_sq"],
)
def test_state_that_is_not_finite_is_never_published(planted, one_rank, tmp_path, name):
    """Nor is what no probe meets, such as the vector of a rare item, or what only the next training reads."""
    config = settings(training={"epochs": 1})
    catalogue = run_here(config, planted, tmp_path / "work")
    path = tmp_path / "work" / "state" / f"{name}.npy"
    values = np.load(path)
    values[7, 1] = np.nan
    np.save(path, values)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=rf"1 of {values.size:,} numbers of state/{name}.npy are NaN or infinite"):
        export(tmp_path / "out", tmp_path / "work", config, catalogue)
    assert not list((tmp_path / "out").iterdir())


def test_every_collective_is_of_the_one_group_that_has_the_time_out(planted, one_rank, tmp_path):
    """Training, its checkpoints and what it leaves open no group of their own, which would wait torch's default."""
    run_here(settings(training={"epochs": 1}, checkpoints={"every_steps": 2}), planted, tmp_path / "work")
    assert list(dist.distributed_c10d._world.pg_map) == [dist.group.WORLD]
