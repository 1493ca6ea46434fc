"""The heavy ranker's inputs: the rows that the light ranker passes on, as whole requests.

Shapes: R example rows, Q requests, M chosen rows, B requests of a batch, K rows of the longest of
them, D vector dimensions, F ranking features, W = F + 2 + 3D input width, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.contracts.errors import DataError
from stages.contracts.examples import Examples
from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.tables import CandidateTable
from stages.features.ranking import heavy_features


@dataclass(frozen=True)
class Lists:
    """The best rows of each request by light score, best first.

    Attributes:
        rows: int64 ``[M]`` positions in the examples.
        light_ranks: int32 ``[M]`` 0-based position in the light ranker's order.
        starts: int64 ``[Q + 1]``; request q has ``rows[starts[q]:starts[q + 1]]``.
        request_id: int64 ``[Q]``.
    """

    rows: np.ndarray
    light_ranks: np.ndarray
    starts: np.ndarray
    request_id: np.ndarray

    def __len__(self) -> int:
        return len(self.request_id)

    def select(self, first: int, last: int) -> Lists:
        """Return requests ``first`` to ``last`` (not included)."""
        chosen = slice(self.starts[first], self.starts[last])
        starts = self.starts[first : last + 1] - self.starts[first]
        return Lists(self.rows[chosen], self.light_ranks[chosen], starts, self.request_id[first:last])


def light_lists(rows: CandidateTable, light_scores: np.ndarray, wanted: np.ndarray, keep: int) -> Lists:
    """Keep the ``keep`` best rows by light score of each request, ties in candidate order.

    Args:
        rows: R candidate rows, sorted by (request_id, rank).
        light_scores: float ``[R]``.
        wanted: bool ``[R]``, rows to consider; whole requests.
        keep: rows kept of a request.
    """
    chosen = np.flatnonzero(wanted)
    ids = rows.request_id[chosen]
    order = np.lexsort((rows.rank[chosen], -light_scores[chosen], ids))
    ranks = places_in_rows(np.diff(run_offsets(ids)))
    kept = ranks < keep
    passed = chosen[order][kept]
    ids = rows.request_id[passed]
    starts = run_offsets(ids)
    return Lists(passed, ranks[kept].astype(np.int32), starts, ids[starts[:-1]])


@dataclass(frozen=True)
class Batch:
    """Padded whole requests.

    Attributes:
        inputs: float32 ``[B, K, W]``, 0 at padding.
        labels: float32 ``[B, K, T]`` 0/1.
        relevance: float32 ``[B, K]``.
        mask: float32 ``[B, K]``, 1 at rows, 0 at padding.
    """

    inputs: Tensor
    labels: Tensor
    relevance: Tensor
    mask: Tensor


@dataclass(frozen=True)
class HeavyData:
    """The data that input rows are made from.

    Attributes:
        examples: R rows.
        light_scores: float32 ``[R]``.
        queries: float32 ``[Q, D]`` user vectors by request id.
        vectors: float32 ``[N, D]`` item vectors.
    """

    examples: Examples
    light_scores: np.ndarray
    queries: np.ndarray
    vectors: np.ndarray

    def __post_init__(self) -> None:
        n_rows = len(self.examples.rows)
        if self.light_scores.shape != (n_rows,) or not np.isfinite(self.light_scores).all():
            raise DataError(f"scores.npy {list(self.light_scores.shape)} must be finite [{n_rows}], one score a row")
        if self.queries.ndim != 2 or self.vectors.ndim != 2 or self.queries.shape[1] != self.vectors.shape[1]:
            raise DataError(
                f"queries.npy {list(self.queries.shape)} and item_vectors.npy {list(self.vectors.shape)} must be "
                "[Q, D] and [N, D]"
            )
        for name, ids, known in (
            ("queries.npy", self.examples.rows.request_id, len(self.queries)),
            ("item_vectors.npy", self.examples.rows.item_index, len(self.vectors)),
        ):
            if n_rows and not 0 <= ids.min() <= ids.max() < known:
                raise DataError(f"{name} has {known} rows, rows.parquet refers to {ids.min()} to {ids.max()}")

    @property
    def width(self) -> int:
        """W, columns of an input row."""
        return len(self.examples.feature_names) + 2 + 3 * int(self.vectors.shape[1])

    @property
    def light_column(self) -> int:
        """Column of the light score."""
        return len(self.examples.feature_names)

    def inputs(self, lists: Lists, request: int) -> np.ndarray:
        """Return float32 ``[K, W]`` inputs of one request's rows."""
        chosen = slice(lists.starts[request], lists.starts[request + 1])
        rows = lists.rows[chosen]
        matrix: np.ndarray = heavy_features(
            np.asarray(self.examples.features[rows]),
            self.light_scores[rows],
            lists.light_ranks[chosen],
            np.asarray(self.queries[lists.request_id[request]]),
            np.asarray(self.vectors[self.examples.rows.item_index[rows]]),
        )
        return matrix

    def batch(self, lists: Lists, requests: np.ndarray) -> Batch:
        """Return the given requests (positions in ``lists``), padded to the longest."""
        lengths = lists.starts[requests + 1] - lists.starts[requests]
        shape = (len(requests), int(lengths.max()))
        inputs = np.zeros((*shape, self.width), dtype=np.float32)
        labels = np.zeros((*shape, self.examples.labels.shape[1]), dtype=np.float32)
        relevance = np.zeros(shape, dtype=np.float32)
        for slot, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            rows = lists.rows[lists.starts[request] : lists.starts[request + 1]]
            inputs[slot, :length] = self.inputs(lists, int(request))
            labels[slot, :length] = self.examples.labels[rows]
            relevance[slot, :length] = self.examples.relevance[rows]
        mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.float32)
        return Batch(*(torch.from_numpy(array) for array in (inputs, labels, relevance, mask)))

    def batches(self, lists: Lists, size: int, generator: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of ``size`` requests, shuffled if a generator is given."""
        order = np.arange(len(lists)) if generator is None else generator.permutation(len(lists))
        for start in range(0, len(order), size):
            yield self.batch(lists, order[start : start + size])

    def moments(self, lists: Lists) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation ``[W]`` over all rows; the deviation of a constant column is 1."""
        total, squares = np.zeros(self.width), np.zeros(self.width)
        shift = self.inputs(lists, 0).mean(axis=0, dtype=np.float64)
        for request in range(len(lists)):
            inputs = self.inputs(lists, request) - shift
            total += inputs.sum(axis=0)
            squares += np.square(inputs).sum(axis=0)
        mean = total / len(lists.rows)
        std = np.sqrt(np.maximum(squares / len(lists.rows) - mean**2, 0.0))
        return mean + shift, np.where(std > 1e-6, std, 1.0)
