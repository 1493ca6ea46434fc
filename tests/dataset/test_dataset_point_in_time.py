"""From the warehouse to the features of a request: what comes later changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.contracts.examples import ExamplesFile
from stages.contracts.snapshot import Snapshot, Task
from stages.contracts.tables import DAY_MS, CandidateTable
from stages.dataset.build import build_snapshot
from stages.dataset.config import DatasetStepConfig
from stages.features.build import ExamplesConfig, build_examples

END = 30 * DAY_MS
MOMENT = END - 6 * DAY_MS
SIGNALS = ("click", "like", "impression")
EVERYTHING = {"requests": {"without_positive": True}, "negatives": {"per_request": None}}
ITEMS = [
    (f"i{number:02d}", f"t{number}", ("A|B", "C", "")[number % 3], 0, 10.0 * number or None) for number in range(15)
]
CONFIG = DatasetStepConfig.model_validate(
    {
        "signals": SIGNALS,
        "tasks": (
            Task(name="click", signals=("click",), relevance=1.0),
            Task(name="like", signals=("like",), min_value=0.5, relevance=1.0),
        ),
        "as_of_ms": END,
        "activity": {"min_events": 1},
        "split": {"ranker_days": 12, "evaluation_days": 2},
        "requests": {"targets_per_request": 1, "max_requests_per_user": None},
        "warehouse_fingerprint": "w",
    }
)
Row = tuple[str, str, str, float, int]


def log() -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (
            f"u{rng.integers(24)}",
            f"i{rng.integers(15):02d}",
            SIGNALS[rng.integers(3)],
            float(rng.random()),
            int(rng.integers(DAY_MS, END)),
        )
        for _ in range(350)
    ]


def features(directory: Path, source: Any) -> dict[tuple[str, int, str], np.ndarray]:
    """Return the features by (user, time, item) of every ranker request with every item of the old catalogue."""
    snapshot_directory = directory / "snapshot"
    snapshot_directory.mkdir(parents=True)
    build_snapshot(CONFIG, source, snapshot_directory)
    snapshot = Snapshot(snapshot_directory)
    requests, names = snapshot.requests(), snapshot.items().item_id.tolist()
    shown = np.array(sorted(names.index(row[0]) for row in ITEMS), dtype=np.int64)
    size = len(requests) * len(shown)
    rank = np.tile(np.arange(len(shown), dtype=np.int32), len(requests))
    candidates = CandidateTable(
        request_id=np.repeat(np.arange(len(requests)), len(shown)),
        item_index=np.tile(shown, len(requests)),
        score=(1 / (1 + rank)).astype(np.float32),
        rank=rank,
        source=np.zeros(size, np.int8),
    )
    for name in ("retrieve", "candidate", "out"):
        (directory / name).mkdir()
    candidates.write(directory / "retrieve" / "candidates.parquet")
    # A vector that belongs to the id, not to the row.
    vectors = np.stack([np.random.default_rng(list(name.encode())).normal(size=4) for name in names])
    np.save(directory / "candidate" / "item_vectors.npy", vectors.astype(np.float32))
    inputs = {"snapshot": snapshot_directory, "retrieve": directory / "retrieve", "candidate": directory / "candidate"}
    config = ExamplesConfig.model_validate({"sampling": EVERYTHING})
    build_examples(config, inputs, directory / "out")
    rows = ExamplesFile(directory / "out").read()
    keys = zip(
        snapshot.user_ids()[rows.user_index].tolist(),
        requests.request_time_ms[rows.request_id].tolist(),
        [names[item] for item in rows.item_index],
        strict=True,
    )
    return dict(zip(keys, rows.features, strict=True))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*(f"u{number}" for number in range(12)), "0", "Ä"]),
            st.sampled_from([*(f"i{number:02d}" for number in range(15)), "a new one", "0"]),
            st.sampled_from(SIGNALS),
            st.floats(0, 1, width=32),
            st.integers(MOMENT, END - 1),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_later_events_users_and_items_change_no_feature_of_an_earlier_request(
    list_source: Callable[..., Any], later: list[Row]
) -> None:
    with TemporaryDirectory() as place:
        alone = features(Path(place) / "alone", list_source(log(), ITEMS, 100))
        more = [("0", "made later", "Z", MOMENT + 1, None), *ITEMS]
        among = features(Path(place) / "among", list_source(log() + later, more, 100))
    compared = 0
    for key, values in alone.items():
        if key[1] <= MOMENT:
            np.testing.assert_array_equal(values, among[key], err_msg=str(key))
            compared += 1
    assert compared > 15 * 20
