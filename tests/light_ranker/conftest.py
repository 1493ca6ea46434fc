"""Snapshot and examples directories made by hand, with a preference that a ranker must find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable, RequestTable
from tests.builders.snapshots import request_table, write_snapshot

N_CANDIDATES = 20
Inputs = dict[str, Path]
Planter = Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(generator, user [R], item [R]) -> (features [R, F], utility [R]); the best three are wanted."""


def write_inputs(root: Path, plant: Planter, n_ranker: int = 160, n_evaluation: int = 30, n_users: int = 40) -> Inputs:
    """Write requests in time order; every tenth is answered from the popular list."""
    generator = np.random.default_rng(7)
    n_requests = n_ranker + n_evaluation
    users = generator.permutation(np.arange(n_requests) % n_users).astype(np.int64)
    part = np.where(np.arange(n_requests) < n_ranker, PART_RANKER, PART_EVALUATION)
    requests = request_table(users, np.arange(n_requests) * 1000, part)
    request_id = np.repeat(np.arange(n_requests), N_CANDIDATES)
    item = np.concatenate([generator.permutation(50)[:N_CANDIDATES] for _ in range(n_requests)])
    features, utility = plant(generator, users[request_id], item)
    relevance = _best_three(utility.reshape(n_requests, N_CANDIDATES)).ravel()
    rows = CandidateTable(
        request_id=request_id,
        item_index=item,
        score=np.tile(np.linspace(1, 0, N_CANDIDATES), n_requests).astype(np.float32),
        rank=np.tile(np.arange(N_CANDIDATES), n_requests).astype(np.int32),
        source=np.where(request_id % 10 == 9, SOURCE_POPULAR, SOURCE_TOWER).astype(np.int8),
    )
    return _write(root, requests, rows, features, relevance)


def _best_three(utility: np.ndarray) -> np.ndarray:
    """Give relevance 2.5 to the best row of each request and 1 to the next two."""
    place = np.argsort(np.argsort(-utility, axis=1), axis=1)
    return np.select([place == 0, place < 3], [2.5, 1.0], 0.0).astype(np.float32)


def _write(
    root: Path, requests: RequestTable, rows: CandidateTable, features: np.ndarray, relevance: np.ndarray
) -> Inputs:
    snapshot, examples = root / "snapshot", root / "examples"
    write_snapshot(snapshot, (0, 0, 1, 2), requests=requests)
    examples.mkdir()
    rows.write(examples / "rows.parquet")
    np.save(examples / "features.npy", features.astype(np.float32))
    np.save(examples / "relevance.npy", relevance)
    np.save(examples / "labels.npy", (relevance > 0).astype(np.float32)[:, None])
    names = [f"f{column}" for column in range(features.shape[1])]
    (examples / "feature_schema.json").write_text(json.dumps({"names": names, "hash": "schema-1"}))
    return {"snapshot": snapshot, "examples": examples}


def linear_preference(
    generator: np.random.Generator, user: np.ndarray, item: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Only the first two of five features matter, linearly."""
    features = generator.normal(size=(len(user), 5))
    return features, 2.0 * features[:, 0] - features[:, 1] + 0.1 * generator.normal(size=len(user))


def secret_favourites(
    generator: np.random.Generator, user: np.ndarray, item: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each user has favourites that nothing tells but the pair's own key: memory helps, learning cannot."""
    taste = generator.random((int(user.max()) + 1, 50))
    key = generator.permutation(taste.size).reshape(taste.shape)
    return key[user, item][:, None], taste[user, item]


@pytest.fixture(scope="session")
def linear_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("linear"), linear_preference)


@pytest.fixture
def fresh_inputs(tmp_path: Path) -> Inputs:
    """Inputs that a test may break."""
    return write_inputs(tmp_path / "fresh", linear_preference, n_ranker=20, n_evaluation=5)


@pytest.fixture(scope="session")
def secret_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("secret"), secret_favourites, n_ranker=300, n_evaluation=20, n_users=20)
