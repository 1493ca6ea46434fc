"""Who is served when watch time becomes a label: semi-synthetic logs over a file of real durations.

    python -m benchmarks.labels --durations path/to/video_features_basic_pure.csv.gz

Preference is drawn without regard to duration. Attention, in seconds, grows with preference and with the root of
the duration, and ends where the video ends: short videos are finished whatever people think of them, and long ones
collect more seconds.
The logs pass through a warehouse and the dataset step; a LightGBM classifier learns each kind of label from noisy
views of the preference and from the duration, and serves each user's best ten of a thousand random videos. Figures
are means over seeds with the standard error of the mean: the share of what is served that belongs to the shortest
and to the longest quarter of the catalogue (0.25 each would be neutral), and NDCG@10 against the true preference.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pyarrow as pa
from tabulate import tabulate

from benchmarks.environment import describe
from stages.contracts.ndcg import discounts
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import DAY_MS
from stages.contracts.top_k import top_k
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetStepConfig
from stages.dataset.warehouse_source import WarehouseSource
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.ingest.ingest import ingest_tables

USERS, VIEWS, SHOWN, K, DAYS, FACTORS = 1_500, 120, 1_000, 10, 20, 8
LABELS: dict[str, tuple[dict[str, Any], float | None]] = {
    "completion": ({"watch": {"method": "share"}}, 0.8),
    "seconds": ({}, None),
    "duration_quantile": ({"watch": {"method": "duration_quantile"}}, 0.6),
}
"""Value rules, and the value from which on a view is a positive; None = the median."""


def read_durations(path: Path) -> np.ndarray:
    """Return the known durations of the file, float64 seconds ``[N]``."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
    texts = [row["video_duration"] for row in csv.DictReader(lines)]
    return np.array([float(text) / 1000 for text in texts if text and float(text) > 0])


class World:
    """One draw of users, preferences and views."""

    def __init__(self, durations_s: np.ndarray, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.duration = durations_s
        self.taste, self.style = rng.normal(size=(USERS, FACTORS)), rng.normal(size=(len(durations_s), FACTORS))
        self.quality = rng.normal(size=len(durations_s))
        self.user = np.repeat(np.arange(USERS), VIEWS)
        self.item = rng.integers(0, len(durations_s), len(self.user))
        wish = 2.5 * (self.preference(self.user, self.item) - 0.5) + 0.8 * rng.normal(size=len(self.user))
        attention = np.exp(2.8 + wish) * np.sqrt(durations_s[self.item] / 60)
        self.watched = np.minimum(attention, durations_s[self.item])
        self.time = rng.integers(1, DAYS * DAY_MS, len(self.user))

    def preference(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return float64 in (0, 1): how much a user likes an item, whatever its duration."""
        raw = (self.taste[user] * self.style[item]).sum(axis=1) / np.sqrt(FACTORS) + self.quality[item]
        return 1 / (1 + np.exp(-raw))

    def features(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Return what the model sees: noisy views of taste and quality, and the duration."""
        match = (self.taste[user] * self.style[item]).sum(axis=1) / np.sqrt(FACTORS)
        noise = np.random.default_rng(1).normal(size=len(self.quality))
        return np.stack([match, self.quality[item] + 0.5 * noise[item], np.log(self.duration[item])], axis=1)

    def load(self, warehouse: Warehouse) -> None:
        """Put views and videos into a warehouse."""
        size, items = len(self.user), len(self.duration)
        events = {
            "user_id": [f"u{user}" for user in self.user],
            "item_id": [f"v{item}" for item in self.item],
            "signal": ["watch"] * size,
            "value": self.watched,
            "event_time_ms": self.time,
        }
        names = [f"v{item}" for item in range(items)]
        catalogue = {"item_id": names, "title": names, "categories": [""] * items}
        catalogue |= {"created_at_ms": np.zeros(items, np.int64), "duration_s": self.duration}
        nobody = {"user_id": pa.array([], pa.string()), "attributes": pa.array([], pa.string())}
        ingest_tables(warehouse, pa.table(events), pa.table(catalogue), pa.table(nobody), "watch logs")


def measure(world: World, warehouse: Warehouse, values: dict[str, Any], minimum: float | None) -> dict[str, float]:
    """Learn from one kind of label and look at what is served."""
    config = DatasetStepConfig.model_validate(
        {
            "signals": ("watch",),
            "tasks": (Task(name="watch", signals=("watch",), relevance=1.0),),
            "activity": {"min_events": 1},
            "duplicates": {"method": "none"},
            "values": values,
            "as_of_ms": DAYS * DAY_MS,
            "warehouse_fingerprint": "benchmark",
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        build_snapshot(config, WarehouseSource(warehouse), Path(directory))
        snapshot = Snapshot(Path(directory))
        events, users, items = snapshot.events(), snapshot.user_ids(), snapshot.items().item_id
    user = np.array([int(name[1:]) for name in users])[events.user_index]
    item = np.array([int(name[1:]) for name in items])[events.item_index]
    label = events.value >= (np.median(events.value) if minimum is None else minimum)
    booster = lgb.train(
        {"objective": "binary", "num_leaves": 31, "learning_rate": 0.1, "verbosity": -1, "num_threads": 2, "seed": 0},
        lgb.Dataset(world.features(user, item), label.astype(np.float32)),
        num_boost_round=80,
    )
    rng = np.random.default_rng(2)
    short, long = (np.quantile(world.duration, q) for q in (0.25, 0.75))
    shares, ndcg = [], []
    discount = discounts(np.arange(K), K)
    for who in range(0, USERS, 10):
        shown = rng.choice(len(world.duration), SHOWN, replace=False)
        viewer = np.full(SHOWN, who)
        top = top_k(booster.predict(world.features(viewer, shown)), K)
        truth = world.preference(viewer, shown)
        ndcg.append((truth[top] * discount).sum() / (np.sort(truth)[::-1][:K] * discount).sum())
        served = world.duration[shown[top]]
        shares.append(((served < short).mean(), (served >= long).mean()))
    least, most = np.mean(shares, axis=0)
    return {"shortest_quarter": float(least), "longest_quarter": float(most), "ndcg@10": float(np.mean(ndcg))}


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--durations", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    durations = read_durations(options.durations)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LABELS}
    for seed in range(options.seeds):
        world = World(durations, seed)
        with tempfile.TemporaryDirectory() as directory, Warehouse(f"duckdb:///{directory}/w.duckdb") as warehouse:
            world.load(warehouse)
            for name, (values, minimum) in LABELS.items():
                found[name].append(measure(world, warehouse, values, minimum))
    table, rows = {}, []
    for name, runs in found.items():
        means = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        errors = {key: float(np.std([run[key] for run in runs], ddof=1) / np.sqrt(len(runs))) for key in runs[0]}
        rows.append([name, *(f"{means[key]:.4f} ± {errors[key]:.4f}" for key in means)])
        table[name] = {key: {"mean": round(means[key], 4), "error": round(errors[key], 4)} for key in means}
    headers = ["label", "shortest quarter", "longest quarter", "NDCG@10"]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    result = {"benchmark": "labels", **describe("lightgbm", "numpy"), "videos": len(durations), "seeds": options.seeds}
    print(json.dumps({**result, "labels": table}))


if __name__ == "__main__":
    main()
