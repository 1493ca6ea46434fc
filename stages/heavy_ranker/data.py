"""The heavy ranker's inputs: batches of whole requests, from memory or from a few row groups of the examples at a time.

Shapes: R example rows, Q requests, M chosen rows, B requests of a batch, n rows of all of them, K rows of the longest
one, D vector dimensions, F ranking features, W = F + 2 + 3D input width, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stages.contracts.errors import DataError
from stages.contracts.examples import ExamplesFile
from stages.contracts.ragged import places_in_rows, ranges, row_offsets
from stages.features.ranking import heavy_features
from stages.heavy_ranker.lists import Lists

BUFFER_GROUPS = 4
"""Row groups that are in memory, and whose requests are shuffled together, where not all rows are."""
_PASS_REQUESTS = 128
"""Requests at a time in a pass that does not train."""


@dataclass(frozen=True)
class Batch:
    """Whole requests, one row after the other.

    Attributes:
        inputs: float32 ``[n, W]``.
        labels: float32 ``[n, T]`` 0/1.
        relevance: float32 ``[n]``.
        weight: float32 ``[n]``, see ``ExampleRows``.
        request: int64 ``[n]``, the row's request, below B.
        place: int64 ``[n]``, position within the request.
        n_requests: B.
    """

    inputs: Tensor
    labels: Tensor
    relevance: Tensor
    weight: Tensor
    request: Tensor
    place: Tensor
    n_requests: int

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        names = ("inputs", "labels", "relevance", "weight", "request", "place")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def padded(self, values_n: Tensor) -> Tensor:
        """Return ``[B, K]``: a value of each row by request, 0 at padding."""
        longest = int(self.place.max()) + 1
        return values_n.new_zeros(self.n_requests, longest).index_put((self.request, self.place), values_n)


@dataclass(frozen=True)
class Block:
    """Requests whose features are in memory.

    Attributes:
        requests: int64 ``[B]`` positions in the lists.
        first: int64 ``[B]``, the row of ``features`` at which each request begins.
        features: float32 ``[rows, F]``.
    """

    requests: np.ndarray
    first: np.ndarray
    features: np.ndarray


class HeavyData:
    """The data that input rows are made from.

    Args:
        file: the examples.
        lists: the chosen rows of the file.
        queries: float32 ``[requests, D]`` user vectors by request id.
        vectors: float32 ``[N, D]`` item vectors.
        memory_rows: features of at most so many chosen rows are held in memory.

    Raises:
        DataError: if the arrays do not belong together.
    """

    def __init__(
        self, file: ExamplesFile, lists: Lists, queries: np.ndarray, vectors: np.ndarray, memory_rows: int
    ) -> None:
        _check_vectors(lists, queries, vectors)
        self.file, self.lists, self.queries, self.vectors = file, lists, queries, vectors
        firsts = lists.rows[lists.starts[:-1]]
        # Requests lie whole in a row group: requests group_requests[g]:group_requests[g + 1] lie in group g.
        self._group_requests = np.searchsorted(firsts, file.group_starts) if len(lists) else np.zeros(1, np.int64)
        self._held: Block | None = None
        if len(lists.rows) <= memory_rows:
            everything = np.ones(len(lists), dtype=bool)
            self._held = self._load(self._groups(everything), everything)

    @property
    def width(self) -> int:
        """W, columns of an input row."""
        return len(self.file.feature_names) + 2 + 3 * int(self.vectors.shape[1])

    @property
    def light_column(self) -> int:
        """Column of the light score."""
        return len(self.file.feature_names)

    def _groups(self, wanted: np.ndarray) -> np.ndarray:
        """Return the row groups with requests of bool ``[Q]``."""
        counts = np.diff(row_offsets(wanted)[self._group_requests])
        return np.flatnonzero(counts)

    def _load(self, groups: np.ndarray, wanted: np.ndarray) -> Block:
        """Read the requests of bool ``[Q]`` that lie in some row groups."""
        lists, borders = self.lists, self._group_requests
        found = [borders[group] + np.flatnonzero(wanted[borders[group] : borders[group + 1]]) for group in groups]
        requests = np.concatenate([np.zeros(0, np.int64), *found])
        starts = row_offsets(lists.lengths[requests])
        features = np.empty((starts[-1], len(self.file.feature_names)), dtype=np.float32)
        ends = starts[row_offsets([len(mine) for mine in found])]
        for group, mine, first, last in zip(groups, found, ends[:-1], ends[1:], strict=True):
            rows = lists.rows[ranges(lists.starts[mine], lists.lengths[mine])]
            features[first:last] = self.file.group(int(group)).features[rows - self.file.group_starts[group]]
        return Block(requests, starts[:-1], features)

    def _blocks(self, wanted: np.ndarray, generator: np.random.Generator | None) -> Iterator[Block]:
        if self._held is not None:
            yield Block(np.flatnonzero(wanted), self._held.first[wanted], self._held.features)
            return
        groups = self._groups(wanted)
        order = groups if generator is None else generator.permutation(groups)
        for start in range(0, len(order), BUFFER_GROUPS):
            yield self._load(order[start : start + BUFFER_GROUPS], wanted)

    def batches(self, wanted: np.ndarray, size: int, generator: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield batches of whole requests.

        Args:
            wanted: bool ``[Q]``, the requests.
            size: requests of a batch; the last one of the row groups in memory may have fewer.
            generator: shuffles the row groups, and the requests of those in memory; without it, requests come in the
                order of the lists.
        """
        for block in self._blocks(wanted, generator):
            n = len(block.requests)
            order = np.arange(n) if generator is None else generator.permutation(n)
            for start in range(0, n, size):
                yield self._batch(block, order[start : start + size])

    def _batch(self, block: Block, chosen: np.ndarray) -> Batch:
        lists, requests = self.lists, block.requests[chosen]
        lengths = lists.lengths[requests]
        rows = ranges(lists.starts[requests], lengths)
        request = np.repeat(np.arange(len(requests)), lengths)
        inputs = heavy_features(
            block.features[ranges(block.first[chosen], lengths)],
            lists.light_scores[rows],
            lists.light_ranks[rows],
            np.asarray(self.queries[lists.request_id[requests]])[request],
            np.asarray(self.vectors[lists.item_index[rows]]),
        )
        return Batch(
            inputs=torch.from_numpy(inputs),
            labels=torch.from_numpy(lists.labels[rows]),
            relevance=torch.from_numpy(lists.relevance[rows]),
            weight=torch.from_numpy(lists.weight[rows]),
            request=torch.from_numpy(request),
            place=torch.from_numpy(places_in_rows(lengths)),
            n_requests=len(requests),
        )

    def passes(self, wanted: np.ndarray) -> Iterator[Batch]:
        """Yield batches of the wanted requests in the order of the lists, for a pass that does not train."""
        return self.batches(wanted, _PASS_REQUESTS)

    def moments(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation ``[W]`` over the rows of requests; that of a constant column is 1.

        Args:
            wanted: bool ``[Q]``, the requests, at least one.
        """
        shift, total, squares = np.zeros((3, self.width))
        n_rows = 0
        for batch in self.passes(wanted):
            inputs = batch.inputs.numpy().astype(np.float64)
            if not n_rows:
                shift = inputs.mean(axis=0)
            inputs -= shift
            total += inputs.sum(axis=0)
            squares += np.einsum("nw,nw->w", inputs, inputs)
            n_rows += len(inputs)
        mean = total / n_rows
        std = np.sqrt(np.maximum(squares / n_rows - mean**2, 0.0))
        return mean + shift, np.where(std > 1e-6, std, 1.0)


def _check_vectors(lists: Lists, queries: np.ndarray, vectors: np.ndarray) -> None:
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(
            f"queries.npy {list(queries.shape)} and item_vectors.npy {list(vectors.shape)} must be [Q, D] and [N, D]"
        )
    for name, ids, known in (
        ("queries.npy", lists.request_id, len(queries)),
        ("item_vectors.npy", lists.item_index, len(vectors)),
    ):
        if len(ids) and not 0 <= ids.min() <= ids.max() < known:
            raise DataError(f"{name} has {known} rows, examples.parquet refers to {ids.min()} to {ids.max()}")
