"""A planted world in which each user likes one block of items, and models trained on it."""

import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fbgemm and torchrec warn about themselves while they are imported
    import torch
    import torch.distributed as dist

    import stages.candidate.training.worker  # noqa: F401

from stages.candidate.config import CandidateConfig, IndexConfig, TrainCandidateConfig
from stages.candidate.data.examples import Examples, first_touches
from stages.candidate.data.item_features import Catalogue, hashed_words
from stages.candidate.index.step import build_index
from stages.candidate.training.step import train_candidate
from stages.contracts.files import write_json
from stages.contracts.snapshot import SnapshotMeta, Task, TimeBorders
from stages.contracts.tables import EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, TowerInputs

N_USERS, N_BLOCKS, BLOCK = 160, 4, 15
N_ITEMS = N_BLOCKS * BLOCK
COLD = 7  # a liked item of block 0 that nobody touches before the evaluation part
FEATURES = FeatureConfig(history_length=8, history_decay=4.0)
TINY = CandidateConfig(
    model={"dimension": 16, "category_dimension": 4, "hidden": (16,)},
    loss={"temperature": 0.2},
    negatives={"shared": 32},
    training={"epochs": 8, "batch_size": 64},
    optimizer={"sparse_learning_rate": 0.2, "dense_learning_rate": 5e-3},
    distributed={"device": "cpu", "timeout_s": 60},
)


def make_events(user, item, time_ms, part, signal=None, active=None, value=None, context=None):
    n = len(user)
    return EventTable(
        user_index=np.asarray(user, np.int64),
        item_index=np.asarray(item, np.int64),
        event_time_ms=np.asarray(time_ms, np.int64),
        signal=np.zeros(n, np.int16) if signal is None else np.asarray(signal, np.int16),
        value=np.ones(n, np.float32) if value is None else np.asarray(value, np.float32),
        part=np.asarray(part, np.int8),
        active=np.ones(n, bool) if active is None else np.asarray(active, bool),
        context=None if context is None else np.asarray(context, np.int32),
    )


def write_snapshot(directory: Path, events: EventTable, requests: RequestTable, targets, created, categories) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    events.write(directory / "events.parquet")
    requests.write(directory / "requests.parquet")
    request_id, item = targets
    ones = np.ones(len(item), np.float32)
    columns = {"request_id": request_id, "item_index": item, "relevance": ones, "task_like": ones}
    pq.write_table(pa.table(columns), directory / "targets.parquet")
    n_items, n_users = len(created), int(events.user_index.max()) + 1
    names = [str(i) for i in range(n_items)]
    items = {
        "item_index": np.arange(n_items),
        "item_id": names,
        "title": names,
        "categories": pa.array(categories, pa.list_(pa.int32())),
        "created_at_ms": np.asarray(created, np.int64),
        "duration_s": np.full(n_items, np.nan, np.float32),
        "eligible": np.full(n_items, 7, dtype=np.int8),
    }
    pq.write_table(pa.table(items), directory / "items.parquet")
    users = {"user_index": np.arange(n_users), "user_id": [str(i) for i in range(n_users)]}
    pq.write_table(pa.table(users), directory / "users.parquet")
    aliases = {"item_id": pa.array([], pa.string()), "item_index": pa.array([], pa.int64())}
    pq.write_table(pa.table(aliases), directory / "aliases.parquet")
    meta = SnapshotMeta(
        signals=("click", "impression"),
        categories=tuple(f"c{i}" for i in range(N_BLOCKS)),
        tasks=(Task(name="like", signals=("click",), relevance=1.0),),
        borders=TimeBorders(start_ms=0, candidate_end_ms=10_000, ranker_end_ms=11_000, as_of_ms=12_000),
        counts={},
        fingerprint="f" * 64,
    )
    write_json(directory / "snapshot.json", meta.model_dump(mode="json"))


def planted_world(directory: Path) -> None:
    """Users touch items of their block; item weights inside a block are skewed, the same in each block."""
    rng = np.random.default_rng(0)
    weights = 1.0 / np.arange(2, BLOCK + 2)
    columns, request_columns, targets = [], [], []
    for user in range(N_USERS):
        block = user % N_BLOCKS
        items = block * BLOCK + rng.permutation(BLOCK)[np.argsort(rng.random(BLOCK) ** (1 / weights))[::-1]]
        items = items[items != COLD][:10]
        times = [*np.sort(rng.choice(10_000, 8, replace=False)).tolist(), 10_500, 11_500]
        # The last user of each block comes new in the ranker part: no row of the candidate part is theirs.
        start = 0 if user < N_USERS - N_BLOCKS else 8
        for step, (item, time_ms) in enumerate(zip(items.tolist(), times, strict=True)):
            if step >= start:
                columns.append((user, item, time_ms, int(time_ms >= 10_000) + int(time_ms >= 11_000)))
                if time_ms >= 10_000:
                    request_columns.append((user, time_ms, 1 + int(time_ms >= 11_000)))
                    targets.append(item)
    events = make_events(*np.array(sorted(columns, key=lambda row: row[2])).T)
    order = np.argsort([row[1] for row in request_columns], kind="stable")
    user, time_ms, part = np.array(request_columns)[order].T
    requests = RequestTable(
        request_id=np.arange(len(order)), user_index=user, request_time_ms=time_ms, part=part.astype(np.int8)
    )
    created = np.zeros(N_ITEMS, np.int64)
    created[BLOCK - 1] = 11_200  # an item of block 0 that is born between the two parts' requests
    categories = [[i // BLOCK] for i in range(N_ITEMS)]
    write_snapshot(directory, events, requests, (np.arange(len(order)), np.array(targets)[order]), created, categories)


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("planted")
    planted_world(directory)
    return directory


@pytest.fixture(scope="session")
def trained(planted, tmp_path_factory) -> Path:
    """What ``train_candidate`` writes with one rank under torchrun."""
    directory = tmp_path_factory.mktemp("trained")
    train_candidate(TrainCandidateConfig(candidate=TINY, features=FEATURES), {"snapshot": planted}, directory)
    return directory


@pytest.fixture(scope="session")
def indexed(planted, trained, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("indexed")
    build_index(IndexConfig(), {"snapshot": planted, "candidate": trained}, directory)
    return directory


@pytest.fixture(scope="session")
def one_rank():
    """A process group of one rank in this process, to run worker code without the launcher."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    threads = torch.get_num_threads()
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small_world() -> tuple[Examples, Catalogue]:
    """Forty users with sequences over 12 items; item 11 never occurs, item i has i % 3 categories."""
    rng = np.random.default_rng(3)
    rows = [(user, item, time) for user in range(40) for time, item in enumerate(rng.permutation(11)[:6])]
    user, item, time = np.array(rows).T
    order = np.argsort(time, kind="stable")
    examples = first_touches(make_events(user[order], item[order], time[order], np.zeros(len(rows))))
    counts = np.arange(12) % 3
    offsets = np.concatenate([[0], np.cumsum(counts)])
    codes = rng.integers(0, 5, offsets[-1])
    frequency = np.bincount(examples.items[examples.usable(False)], minlength=12)
    in_histories = np.zeros(12, bool)
    in_histories[examples.items[examples.read_by_others(50)]] = True
    duration = rng.normal(size=12).astype(np.float32)
    return examples, Catalogue(offsets, codes, duration, frequency, in_histories, np.arange(12))


@pytest.fixture(scope="session")
def single_items():
    """Return tower inputs of histories that hold one item of the planted world each, a second old."""

    def make(items):
        histories = np.full((len(items), FEATURES.history_length), N_ITEMS, np.int64)
        histories[:, 0] = items
        ages = (histories < N_ITEMS).astype(np.int64)
        nobody = np.full(len(items), UNKNOWN_USER)
        return TowerInputs(histories, np.zeros_like(histories), ages, nobody, np.zeros((len(items), 0), np.int64))

    return make


@pytest.fixture(scope="session")
def event_table():
    return make_events


@pytest.fixture(scope="session")
def snapshot_writer():
    return write_snapshot


@pytest.fixture(scope="session")
def request_table():
    return RequestTable


@pytest.fixture(scope="session")
def rich_world(small_world):
    """The small world with titles, births, users of whom two have no examples, contexts and signals."""
    examples, catalogue = small_world
    rng = np.random.default_rng(5)
    offsets, codes = hashed_words(np.array([f"w{item % 3} common" if item else "" for item in range(12)], object), 20)
    moments = np.array([[0, 0], [1, 0], [2, 3], [0, 1]], np.int32)
    examples = dataclasses.replace(
        examples,
        moments=moments,
        contexts=rng.integers(0, 4, len(examples)).astype(np.int32),
        version_signals=rng.integers(0, 3, len(examples.version_signals)).astype(np.int16),
    )
    catalogue = dataclasses.replace(
        catalogue,
        word_offsets=offsets,
        word_codes=codes,
        created_at_ms=rng.integers(-(10**9), 5000, 12),
        end_ms=6000,
        n_signals=3,
        trained_users=np.arange(42) < 40,
        context_sizes=np.array([2, 3]),
    )
    return examples, catalogue
