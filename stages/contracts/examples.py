"""The ranking examples that both rankers train on, and the NDCG that they compare orders by.

The rankers never import each other; they share this module and files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.files import read_json
from stages.contracts.ndcg import dcg, ideal_dcg
from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.summaries import SCHEMA_FILE
from stages.contracts.tables import CandidateTable

_CHUNK_ROWS = 1 << 18


@dataclass(frozen=True)
class Examples:
    """A finished ``build_examples`` directory. R rows, F features, T tasks.

    Attributes:
        rows: R candidate rows, sorted by (request_id, rank).
        features: float32 ``[R, F]``, memory-mapped and read-only.
        relevance: float32 ``[R]``, graded, 0 where the candidate is not a target.
        labels: float32 ``[R, T]`` 0/1, memory-mapped and read-only.
        feature_names: F names.
        schema_hash: hash of the feature schema that made ``features``.
    """

    rows: CandidateTable
    features: np.ndarray
    relevance: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    schema_hash: str

    def __post_init__(self) -> None:
        wanted = {
            "features.npy": (self.features, (len(self.rows), len(self.feature_names))),
            "relevance.npy": (self.relevance, (len(self.rows),)),
            "labels.npy": (self.labels, (len(self.rows), *self.labels.shape[1:2])),
        }
        for name, (values, shape) in wanted.items():
            if values.dtype != np.float32 or values.shape != shape:
                raise DataError(f"{name} must be float32 {list(shape)}, found {values.dtype} {list(values.shape)}")
        if (np.diff(self.rows.request_id) < 0).any():
            raise DataError("rows.parquet must be sorted by request_id")
        self._refuse_non_finite()

    def _refuse_non_finite(self) -> None:
        for start in range(0, len(self.rows), _CHUNK_ROWS):
            bad = np.argwhere(~np.isfinite(self.features[start : start + _CHUNK_ROWS]))
            if len(bad):
                row, column = int(bad[0, 0]) + start, int(bad[0, 1])
                raise DataError(
                    f"features.npy: feature {self.feature_names[column]!r} is {self.features[row, column]} in row "
                    f"{row}; every feature must be finite"
                )
        if not np.isfinite(self.relevance).all() or (self.relevance < 0).any():
            raise DataError("relevance.npy must be finite and not negative")

    @classmethod
    def read(cls, directory: Path) -> Examples:
        """Open the files of ``directory``.

        Raises:
            DataError: if a file is missing, unreadable, of another shape, or holds NaN.
        """
        names, schema_hash = _read_schema(directory / SCHEMA_FILE)
        return cls(
            rows=CandidateTable.read(directory / "rows.parquet"),
            features=read_array(directory / "features.npy"),
            relevance=np.asarray(read_array(directory / "relevance.npy")),
            labels=read_array(directory / "labels.npy"),
            feature_names=names,
            schema_hash=schema_hash,
        )


def _read_schema(path: Path) -> tuple[tuple[str, ...], str]:
    try:
        schema = read_json(path)
        return tuple(str(name) for name in schema["names"]), str(schema["hash"])
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} must hold the keys names and hash: {error!r}") from None


def read_array(path: Path) -> np.ndarray:
    """Memory-map one ``.npy`` file, read-only and without pickle.

    Raises:
        DataError: if it is missing or not a plain array.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path} is not a readable .npy array: {error}") from None
    return array


def mean_ndcg(request_id: np.ndarray, relevance: np.ndarray, scores: np.ndarray, k: int = 10) -> float:
    """Return the mean NDCG@k over requests that have a relevant row.

    The ideal order is that of the request's own rows: this compares two orders of the same candidates. The held-out
    metric is another one: it also counts the targets that retrieval missed.

    Args:
        request_id: int64 ``[R]``, equal ids side by side.
        relevance: float ``[R]``, not negative.
        scores: float ``[R]``; ties keep row order.
        k: cut-off.

    Raises:
        DataError: if no request has a relevant row.
    """
    lengths = np.diff(run_offsets(request_id))
    request = np.repeat(np.arange(len(lengths)), lengths)
    ideal = ideal_dcg(request, relevance, k, len(lengths))
    counted = ideal > 0
    if not counted.any():
        raise DataError(f"NDCG@{k}: none of {len(ideal)} requests has a relevant row")
    order = np.lexsort((-scores, request))
    found = dcg(request, relevance[order], places_in_rows(lengths), k, len(lengths))
    return float(np.mean(found[counted] / ideal[counted]))
