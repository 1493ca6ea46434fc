"""What the evaluation hands to a release: the ledger's served row, and its results request by request.

``held_out.parquet`` lets two releases be compared on the requests that both were judged on, even if their user and item
indices differ. It holds no user id: a request is identified by a hash of its user, time and targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import canonical_json

LEDGER_FILE, HELD_OUT_FILE = "ledger.json", "held_out.parquet"
SERVED = "served"
"""In the names of metrics: the ledger row that a release answers with."""

MAX_REQUESTS = 1_000_000
"""Rows of ``held_out.parquet`` at most. Of more requests the smallest keys are kept: the same ones in every release."""


def ledger_metrics(ledger: Mapping[str, Any]) -> dict[str, float]:
    """Flatten a ledger's rows to ``{<row>/<metric>: value}``, and its served row to ``served/<metric>`` as well."""
    rows = [(row["name"], row["metrics"]) for row in ledger["rows"]]
    if "served" in ledger:  # ledgers of older versions have no such entry
        rows.append((SERVED, ledger["served"]["metrics"]))
    return {f"{row}/{name}": float(value) for row, metrics in rows for name, value in metrics.items()}


def request_key(user_id: str, time_ms: int, targets: Iterable[tuple[str, float]]) -> int:
    """Return a 64-bit hash of one held-out request, as a signed integer.

    Args:
        user_id: of the request.
        time_ms: of the request, int ms UTC.
        targets: item id and relevance of each target, in any order.
    """
    text = canonical_json([user_id, time_ms, sorted([item_id, float(relevance)] for item_id, relevance in targets)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big", signed=True)


@dataclass(frozen=True)
class JudgedRequests:
    """The metric of a release's served row on each of Q held-out requests.

    Attributes:
        metric: such as ``ndcg@10``.
        key: int64 ``[Q]``, see ``request_key``, strictly increasing.
        value: float64 ``[Q]``, the metric of each request.
    """

    metric: str
    key: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    @classmethod
    def make(cls, metric: str, key: np.ndarray, value: np.ndarray) -> JudgedRequests:
        """Sort requests by key; of equal keys the first is kept, of more than ``MAX_REQUESTS`` the smallest."""
        kept, rows = np.unique(key, return_index=True)
        return cls(metric, kept[:MAX_REQUESTS], np.asarray(value, dtype=np.float64)[rows[:MAX_REQUESTS]])

    def write(self, path: Path) -> None:
        """Write the table as Parquet (zstd), with the metric's name in its metadata."""
        table = pa.table({"request_key": self.key, "value": self.value})
        table = table.replace_schema_metadata({"metric": self.metric})
        pq.write_table(table, path, compression="zstd")  # type: ignore[no-untyped-call]

    @classmethod
    def read(cls, path: Path) -> JudgedRequests:
        """Read what ``write`` wrote.

        Raises:
            ReleaseError: if the file is missing or is no such table.
        """
        try:
            table = pq.read_table(path, columns=["request_key", "value"])  # type: ignore[no-untyped-call]
            key, value = table["request_key"].to_numpy(), table["value"].to_numpy()
            metric = (table.schema.metadata or {})[b"metric"].decode()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ReleaseError(f"{path} is not a readable table of judged requests: {error}") from None
        if key.dtype != np.int64 or value.dtype != np.float64 or not np.isfinite(value).all():
            raise ReleaseError(f"{path}: request_key must be int64 and value finite float64")
        return cls(metric, key, value)

    def common(self, other: JudgedRequests) -> tuple[np.ndarray, np.ndarray]:
        """Return this table's values and the other's, float64 ``[C]`` each, of the C requests that both hold.

        Raises:
            DataError: if the two hold different metrics.
        """
        if self.metric != other.metric:
            raise DataError(f"judged requests: {self.metric} and {other.metric} cannot be compared")
        _, mine, theirs = np.intersect1d(self.key, other.key, assume_unique=True, return_indices=True)
        return self.value[mine], other.value[theirs]
