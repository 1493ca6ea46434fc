"""A planted world in which each user likes one block of items, and models trained on it."""

import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fbgemm and torchrec warn about themselves while they are imported
    import stages.candidate.training.worker  # noqa: F401

from stages.candidate.config import CandidateConfig, IndexConfig, TrainCandidateConfig
from stages.candidate.data.examples import Examples, first_touches
from stages.candidate.data.item_features import Catalogue, hashed_words
from stages.candidate.index.step import build_index
from stages.candidate.training.step import train_candidate
from stages.contracts.snapshot import Task
from stages.contracts.tables import EventTable, RequestTable
from stages.features.config import FeatureConfig
from stages.features.history import UNKNOWN_USER, TowerInputs
from tests.builders import snapshots
from tests.shared import Shared

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


def write_world(directory: Path, events: EventTable, requests: RequestTable, targets, created, categories) -> None:
    """Write a snapshot whose users and items are named by their numbers; ``targets`` are requests and their items."""
    n_items, n_users = len(created), int(events.user_index.max()) + 1
    names = [str(i) for i in range(n_items)]
    snapshots.write_snapshot(
        directory,
        (0, 10_000, 11_000, 12_000),
        signals=("click", "impression"),
        tasks=[Task(name="like", signals=("click",), relevance=1.0)],
        categories=[f"c{i}" for i in range(N_BLOCKS)],
        events=events,
        requests=requests,
        targets=dict(zip(("request_id", "item_index"), targets, strict=True)),
        items=snapshots.catalogue(n_items, item_id=names, title=names, categories=categories, created_at_ms=created),
        users=[str(i) for i in range(n_users)],
        aliases={},
    )


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
    events = snapshots.event_table(*np.array(sorted(columns, key=lambda row: row[2])).T)
    order = np.argsort([row[1] for row in request_columns], kind="stable")
    user, time_ms, part = np.array(request_columns)[order].T
    requests = snapshots.request_table(user, time_ms, part)
    created = np.zeros(N_ITEMS, np.int64)
    created[BLOCK - 1] = 11_200  # an item of block 0 that is born between the two parts' requests
    categories = [[i // BLOCK] for i in range(N_ITEMS)]
    write_world(directory, events, requests, (np.arange(len(order)), np.array(targets)[order]), created, categories)


@pytest.fixture(scope="session")
def planted(shared: Shared) -> Path:
    return shared("planted", planted_world)


@pytest.fixture(scope="session")
def trained(planted: Path, shared: Shared) -> Path:
    """What ``train_candidate`` writes with one rank under torchrun."""
    config = TrainCandidateConfig(candidate=TINY, features=FEATURES)
    return shared("trained", lambda directory: train_candidate(config, {"snapshot": planted}, directory))


@pytest.fixture(scope="session")
def indexed(planted: Path, trained: Path, shared: Shared) -> Path:
    inputs = {"snapshot": planted, "candidate": trained}
    return shared("indexed", lambda directory: build_index(IndexConfig(), inputs, directory))


@pytest.fixture(scope="session")
def small_world() -> tuple[Examples, Catalogue]:
    """Forty users with sequences over 12 items; item 11 never occurs, item i has i % 3 categories."""
    rng = np.random.default_rng(3)
    rows = [(user, item, time) for user in range(40) for time, item in enumerate(rng.permutation(11)[:6])]
    user, item, time = np.array(rows).T
    order = np.argsort(time, kind="stable")
    examples = first_touches(snapshots.event_table(user[order], item[order], time[order], np.zeros(len(rows))))
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
    return snapshots.event_table


@pytest.fixture(scope="session")
def snapshot_writer():
    return write_world


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
        trained_contexts=np.ones(5, bool),
    )
    return examples, catalogue
