"""The directories before the heavy ranker, made by hand, with a crossing that light scores miss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.snapshot import Task
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable
from tests.builders.snapshots import request_table, write_snapshot

Inputs = dict[str, Path]
N_CANDIDATES, N_ITEMS, DIM = 15, 60, 3


def write_inputs(root: Path, n_ranker: int = 240, n_evaluation: int = 40) -> Inputs:
    """Write a world in which a click depends on ``f0 * f1`` and on the light score, a purchase on ``f2``.

    Every tenth request is answered from the popular list.
    """
    generator = np.random.default_rng(3)
    n_requests = n_ranker + n_evaluation
    request_id = np.repeat(np.arange(n_requests), N_CANDIDATES)
    features = generator.normal(size=(len(request_id), 4)).astype(np.float32)
    light = generator.normal(size=len(request_id)).astype(np.float32)
    wish = 2.0 * features[:, 0] * features[:, 1] + 0.7 * light
    click = _best(wish, 3)
    purchase = _best(features[:, 2] + 0.3 * generator.normal(size=len(wish)), 2)
    rows = CandidateTable(
        request_id=request_id,
        item_index=np.concatenate([generator.permutation(N_ITEMS)[:N_CANDIDATES] for _ in range(n_requests)]),
        score=np.tile(np.linspace(1, 0, N_CANDIDATES), n_requests).astype(np.float32),
        rank=np.tile(np.arange(N_CANDIDATES), n_requests).astype(np.int32),
        source=np.where(request_id % 10 == 9, SOURCE_POPULAR, SOURCE_TOWER).astype(np.int8),
    )
    inputs = {name: root / name for name in ("snapshot", "candidate", "retrieve", "examples", "light")}
    for directory in inputs.values():
        directory.mkdir(parents=True)
    _write_snapshot(inputs["snapshot"], n_requests, n_ranker)
    np.save(inputs["candidate"] / "item_vectors.npy", generator.normal(size=(N_ITEMS, DIM)).astype(np.float32))
    np.save(inputs["retrieve"] / "queries.npy", generator.normal(size=(n_requests, DIM)).astype(np.float32))
    np.save(inputs["light"] / "scores.npy", light)
    rows.write(inputs["examples"] / "rows.parquet")
    np.save(inputs["examples"] / "features.npy", 100.0 + 30.0 * features)
    np.save(inputs["examples"] / "relevance.npy", click)
    np.save(inputs["examples"] / "labels.npy", np.stack([click, purchase], axis=1))
    schema = {"names": ["f0", "f1", "f2", "f3"], "hash": "schema-1"}
    (inputs["examples"] / "feature_schema.json").write_text(json.dumps(schema))
    return inputs


def _best(utility: np.ndarray, count: int) -> np.ndarray:
    lists = utility.reshape(-1, N_CANDIDATES)
    return (np.argsort(np.argsort(-lists, axis=1), axis=1) < count).ravel().astype(np.float32)


def _write_snapshot(directory: Path, n_requests: int, n_ranker: int) -> None:
    ids = np.arange(n_requests)
    tasks = [
        Task(name="click", signals=("click",), relevance=1.0),
        Task(name="purchase", signals=("purchase",), weight=0.1),
    ]
    requests = request_table(ids % 30, ids * 1000, np.where(ids < n_ranker, PART_RANKER, PART_EVALUATION))
    write_snapshot(directory, (0, 0, 1, 2), signals=("click", "purchase"), tasks=tasks, requests=requests)


@pytest.fixture(scope="session")
def heavy_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("heavy"))


@pytest.fixture
def fresh_inputs(tmp_path: Path) -> Inputs:
    """Inputs that a test may break."""
    return write_inputs(tmp_path / "fresh", n_ranker=30, n_evaluation=5)
