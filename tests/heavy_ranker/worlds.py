"""The directories before the heavy ranker, made by hand, with a crossing that light scores miss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.contracts.examples import ExampleRows
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.snapshot import Task
from tests.builders.examples import example_rows, write_examples
from tests.builders.snapshots import write_snapshot

N_CANDIDATES, N_ITEMS, DIM = 15, 60, 3
TASKS = ("click", "purchase")


@dataclass(frozen=True)
class World:
    """What the step reads; the attributes are what the files hold."""

    root: Path
    rows: ExampleRows
    light_scores: np.ndarray
    queries: np.ndarray
    vectors: np.ndarray

    @property
    def inputs(self) -> dict[str, Path]:
        return {name: self.root / name for name in ("snapshot", "candidate", "retrieve", "examples", "light")}

    def write(self, requests_per_group: int = 23) -> World:
        """Write the files and return the world."""
        for name, array in (
            ("candidate/item_vectors.npy", self.vectors),
            ("retrieve/queries.npy", self.queries),
            ("light/scores.npy", self.light_scores),
        ):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(self.root / name, array)
        tasks = [
            Task(name="click", signals=("click",), relevance=1.0),
            Task(name="purchase", signals=("purchase",), weight=0.1),
        ]
        write_snapshot(self.root / "snapshot", (0, 0, 1, 2), signals=TASKS, tasks=tasks)
        tasks_there = TASKS[: self.rows.labels.shape[1]]
        write_examples(self.root / "examples", self.rows, tasks_there, requests_per_group=requests_per_group)
        return self


def make_world(root: Path, n_requests: int = 240, n_windows: int = 5) -> World:
    """Return a world in which a click depends on ``f0 * f1`` and on the light score, a purchase on ``f2``.

    Every tenth request is answered from the popular list.
    """
    generator = np.random.default_rng(3)
    request_id = np.repeat(np.arange(n_requests), N_CANDIDATES)
    features = generator.normal(size=(len(request_id), 4)).astype(np.float32)
    light = generator.normal(size=len(request_id)).astype(np.float32)
    click = _best(2.0 * features[:, 0] * features[:, 1] + 0.7 * light, 3)
    purchase = _best(features[:, 2] + 0.3 * generator.normal(size=len(light)), 2)
    rows = example_rows(
        request_id,
        100.0 + 30.0 * features,
        user_index=request_id % 30,
        window=request_id * n_windows // n_requests,
        item_index=np.concatenate([generator.permutation(N_ITEMS)[:N_CANDIDATES] for _ in range(n_requests)]),
        source=np.where(request_id % 10 == 9, SOURCE_POPULAR, SOURCE_TOWER),
        relevance=click,
        labels=np.stack([click, purchase], axis=1),
    )
    queries = generator.normal(size=(n_requests, DIM)).astype(np.float32)
    return World(root, rows, light, queries, generator.normal(size=(N_ITEMS, DIM)).astype(np.float32))


def _best(utility: np.ndarray, count: int) -> np.ndarray:
    lists = utility.reshape(-1, N_CANDIDATES)
    return (np.argsort(np.argsort(-lists, axis=1), axis=1) < count).ravel().astype(np.float32)
