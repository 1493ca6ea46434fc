"""The candidate stage at serving time: user tower in ONNX Runtime, index in Faiss, and the other generators.

Serving and the step ``retrieve`` use the same ``CandidateScorer`` and ``Blend``.

Shapes: B queries, D dimensions, L history length, N items, P periods. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from stages.candidate.generators.blend import Blend, Blended
from stages.candidate.generators.files import SOURCES_DIRECTORY, read_summary
from stages.candidate.generators.generator import CandidateRequest
from stages.candidate.generators.newcomers import popular_half_life
from stages.candidate.index.block_search import BlockSearch
from stages.candidate.index.search import ItemSearch
from stages.candidate.onnx_towers import UserTower, ranker_query
from stages.contracts.artifacts import made_by
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.newcomers import NewcomerList
from stages.contracts.release_check import CheckedArtifacts, check_steps
from stages.contracts.summaries import (
    INDEX_FILE,
    INDEX_JSON,
    TOWER_FILE,
    TOWER_JSON,
    VECTORS_FILE,
    IndexSummary,
    TowerSummary,
    load_vectors,
)
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs

__all__ = [
    "SOURCES_DIRECTORY",
    "Blend",
    "Blended",
    "CandidateRequest",
    "CandidateScorer",
    "UserTower",
    "newcomer_list",
    "popular_half_life",
    "ranker_query",
]


def newcomer_list(directory: Path, n_items: int) -> NewcomerList | None:
    """Return the list for users without history, as ``sources.json`` in a directory has it.

    Raises:
        ReleaseError: if the file is missing or malformed.
    """
    return read_summary(directory, n_items).newcomers


class CandidateScorer:
    """Embeds histories and finds the nearest items.

    Attributes:
        n_items: N.
        dim: D.
        tower_version: hex sha256 of the user tower.
        item_vectors: float32 ``[N, D]``, read-only.
        indexed: int64, items that can be found, ascending.
        features: the feature configuration (plain values) that the tower was trained with.
    """

    def __init__(
        self, tower: UserTower, index: Any, item_vectors: np.ndarray, summary: TowerSummary, refine: int = 1
    ) -> None:
        self._tower = tower
        self.item_vectors = item_vectors
        self.n_items, self.dim = item_vectors.shape
        self.tower_version = summary.tower_version
        self.features = summary.config.features
        self._search = ItemSearch(index, item_vectors, refine)
        self.indexed = self._search.indexed

    @classmethod
    def load(cls, candidate_dir: Path, index_dir: Path | None = None) -> CandidateScorer:
        """Load a tower with its vectors and index.

        Args:
            candidate_dir: holds ``user_tower.onnx``, ``item_vectors.npy`` and ``tower.json``.
            index_dir: holds ``index.faiss`` and ``index.json``; the same directory by default.

        Raises:
            ReleaseError: if a file is missing, corrupt or belongs to another tower.
        """
        directories = {"candidate": candidate_dir, "index": index_dir or candidate_dir}
        return cls.of(check_steps(made_by("candidate", "index"), directories))

    @classmethod
    def of(cls, artifacts: CheckedArtifacts) -> CandidateScorer:
        """Load a tower with its vectors and index, after the check that they belong together.

        Raises:
            ReleaseError: if one is not readable, or the index has another size than its summary says.
        """
        tower = artifacts.summary(TOWER_JSON, TowerSummary)
        described = artifacts.summary(INDEX_JSON, IndexSummary)
        vectors = load_vectors(artifacts.path(VECTORS_FILE), tower)
        path = artifacts.path(INDEX_FILE)
        index = _read_index(path)
        wanted = (described.n_indexed, vectors.shape[1])
        if (index.ntotal, index.d) != wanted or index.ntotal > len(vectors):
            raise ReleaseError(
                f"{path}: {index.ntotal} x {index.d}, {INDEX_JSON} and the vectors {vectors.shape} say {wanted}; "
                f"{described.AGAIN}"
            )
        return cls(UserTower(artifacts.path(TOWER_FILE)), index, vectors, tower, described.refine)

    def embed(self, inputs: TowerInputs) -> np.ndarray:
        """Return float32 ``[B, D]`` or ``[B, T, D]``; see ``UserTower.embed``.

        Raises:
            DataError: if a history holds an item beyond the table.
        """
        beyond = (inputs.items < 0) | (inputs.items > self.n_items)
        if beyond.any():
            raise DataError(
                f"history_items = {int(inputs.items[beyond][0])}: allowed are 0 to {self.n_items - 1}, and "
                f"{self.n_items} at padding"
            )
        return self._tower.embed(inputs)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Sequence[np.ndarray],
        filters: Sequence[np.ndarray | None] | None = None,
    ) -> list[ScoredItems]:
        """Return the best ``k`` items of each query by dot product, ties by item index.

        Fewer are returned only where fewer remain. Filters act inside the search (see ``index.search``).

        Args:
            queries: float32 ``[B, D]``, or ``[B, T, D]`` with T tastes of a user: the best counts.
            k: how many items, at least 1.
            exclude: for each query int64 item indices that must not be returned.
            filters: for each query bool ``[N]`` from ``ItemFilter``, or None for the whole index.
        """
        return self._search.search(queries, k, exclude, filters)

    def blocks(self, available_PN: np.ndarray) -> BlockSearch:
        """Return a search for many requests at a time.

        Args:
            available_PN: int64, from when each item may be recommended in each period.
        """
        return BlockSearch(self._search, available_PN)


def _read_index(path: Path) -> Any:
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:  # what Faiss raises for a file that is no index
        raise ReleaseError(f"{path} is not a readable index: {error}; {IndexSummary.AGAIN}") from None
