"""Examples directories made by hand, from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts.examples import ExampleRows, ExamplesFile
from stages.contracts.files import write_json
from stages.contracts.ragged import places_in_rows, run_offsets

SCHEMA_HASH = "schema-1"


def example_rows(request_id: Any, features: Any, **columns: Any) -> ExampleRows:
    """Return rows from columns ``[R]``; one value stands for every row.

    Args:
        request_id: int ``[R]``, sorted.
        features: float ``[R, F]``.
        columns: of ``ExampleRows``. Unless given: every request has its own user and is in window 0, items are the
            places in the request, as are the ranks, scores fall with the rank, weights are 1, and relevance is 0.
            Labels are one column, 1 where the relevance is above 0.
    """
    ids = np.asarray(request_id, np.int64)
    rank = places_in_rows(np.diff(run_offsets(ids)))
    relevance = np.broadcast_to(np.asarray(columns.pop("relevance", 0.0), np.float32), ids.shape)
    labels = np.asarray(columns.pop("labels", relevance[:, None] > 0), np.float32)
    given = {
        "user_index": ids,
        "window": 0,
        "item_index": rank,
        "score": -rank,
        "rank": rank,
        "source": 0,
        "weight": 1.0,
        **columns,
        "request_id": ids,
        "relevance": relevance,
    }
    typed = {name: np.array(np.broadcast_to(given[name], ids.shape), of) for name, of in ExampleRows.TYPES.items()}
    return ExampleRows(**typed, labels=labels, features=np.asarray(features, np.float32))


def write_examples(
    directory: Path,
    rows: ExampleRows,
    tasks: Sequence[str] = ("click",),
    feature_names: Sequence[str] = (),
    requests_per_group: int = 7,
) -> Path:
    """Write ``examples.parquet`` and ``feature_schema.json``.

    Args:
        directory: made where there is none; returned.
        rows: of whole requests, sorted.
        tasks: names of the labels' columns.
        feature_names: ``f0``, ``f1`` ... unless given.
        requests_per_group: requests of a row group.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = list(feature_names) or [f"f{column}" for column in range(rows.features.shape[1])]
    write_json(directory / "feature_schema.json", {"names": names, "hash": SCHEMA_HASH})
    starts = run_offsets(rows.request_id)
    with ExamplesFile.writer(directory, names, tasks) as append:
        for first in range(0, len(starts) - 1, requests_per_group):
            last = min(first + requests_per_group, len(starts) - 1)
            append(rows.take(slice(starts[first], starts[last])))
    return directory
