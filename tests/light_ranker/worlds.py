"""Examples directories made by hand, with a preference that a ranker must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.contracts.examples import ExampleRows
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from tests.builders.examples import example_rows, write_examples

N_CANDIDATES = 20
Planter = Callable[[np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(generator, user [R], item [R]) -> (features [R, F], utility [R]); the best three are wanted."""


@dataclass(frozen=True)
class World:
    """Rows in memory, and as inputs of the step."""

    rows: ExampleRows
    inputs: dict[str, Path]


def make_rows(plant: Planter, n_requests: int = 160, n_users: int = 40, n_windows: int = 4) -> ExampleRows:
    """Return requests in time order; every tenth is answered from the popular list."""
    generator = np.random.default_rng(7)
    users = generator.permutation(np.arange(n_requests) % n_users)
    request_id = np.repeat(np.arange(n_requests), N_CANDIDATES)
    item = np.concatenate([generator.permutation(50)[:N_CANDIDATES] for _ in range(n_requests)])
    features, utility = plant(generator, users[request_id], item)
    return example_rows(
        request_id,
        features,
        user_index=users[request_id],
        window=request_id * n_windows // n_requests,
        item_index=item,
        score=np.tile(np.linspace(1, 0, N_CANDIDATES), n_requests),
        source=np.where(request_id % 10 == 9, SOURCE_POPULAR, SOURCE_TOWER),
        relevance=_best_three(utility.reshape(n_requests, N_CANDIDATES)).ravel(),
    )


def _best_three(utility: np.ndarray) -> np.ndarray:
    """Give relevance 2.5 to the best row of each request and 1 to the next two."""
    place = np.argsort(np.argsort(-utility, axis=1), axis=1)
    return np.select([place == 0, place < 3], [2.5, 1.0], 0.0).astype(np.float32)


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


def written(root: Path, rows: ExampleRows, requests_per_group: int = 23) -> World:
    return World(rows, {"examples": write_examples(root / "examples", rows, requests_per_group=requests_per_group)})
