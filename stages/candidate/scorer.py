"""The candidate stage at serving time: user tower in ONNX Runtime, index in Faiss, and the other generators.

Serving and the step ``retrieve`` use the same ``CandidateScorer`` and ``Blend``.

Shapes: B queries, D dimensions, L history length, N items. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from stages.candidate.artifacts import (
    INDEX_FILE,
    INDEX_JSON,
    TOWER_FILE,
    TOWER_JSON,
    VECTORS_FILE,
    check_hash,
    load_vectors,
    read_summary,
)
from stages.candidate.generators.blend import Blend, Blended
from stages.candidate.generators.files import SOURCES_DIRECTORY
from stages.candidate.generators.generator import CandidateRequest
from stages.candidate.index.search import ItemSearch
from stages.candidate.onnx_towers import UserTower, ranker_query
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs

__all__ = ["SOURCES_DIRECTORY", "Blend", "Blended", "CandidateRequest", "CandidateScorer", "UserTower", "ranker_query"]


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
        self, tower: UserTower, index: Any, item_vectors: np.ndarray, summary: dict[str, Any], refine: int = 1
    ) -> None:
        self._tower = tower
        self.item_vectors = item_vectors
        self.n_items, self.dim = item_vectors.shape
        self.tower_version: str = summary["tower_version"]
        self.features: dict[str, Any] = summary["config"]["features"]
        self._search = ItemSearch(index, item_vectors, refine)
        self.indexed = self._search.indexed

    @classmethod
    def load(cls, candidate_dir: Path, index_dir: Path | None = None) -> CandidateScorer:
        """Load a tower with its vectors and index.

        Args:
            candidate_dir: holds ``user_tower.onnx``, ``item_vectors.npy`` and ``tower.json``.
            index_dir: holds ``index.faiss`` and ``index.json``; the same directory by default.

        Raises:
            ReleaseError: if a part is missing, corrupt or belongs to another tower.
        """
        index_dir = candidate_dir if index_dir is None else index_dir
        summary = read_summary(candidate_dir / TOWER_JSON, ("tower_version", "item_vectors_sha256", "n_items", "dim"))
        described = read_summary(
            index_dir / INDEX_JSON, ("tower_version", "item_vectors_sha256", "index_sha256", "n_indexed")
        )
        check_hash(candidate_dir / TOWER_FILE, summary["tower_version"], TOWER_JSON)
        check_hash(candidate_dir / VECTORS_FILE, summary["item_vectors_sha256"], TOWER_JSON)
        check_hash(index_dir / INDEX_FILE, described["index_sha256"], INDEX_JSON)
        if described["tower_version"] != summary["tower_version"]:
            raise ReleaseError(
                f"{index_dir / INDEX_JSON}: tower_version {described['tower_version'][:12]}…, "
                f"the tower in {candidate_dir} is {summary['tower_version'][:12]}…; build the index again"
            )
        if described["item_vectors_sha256"] != summary["item_vectors_sha256"]:
            raise ReleaseError(f"{index_dir / INDEX_JSON}: made of other item vectors; build the index again")
        vectors = load_vectors(candidate_dir, summary)
        index = faiss.read_index(str(index_dir / INDEX_FILE))
        wanted = (described["n_indexed"], vectors.shape[1])
        if (index.ntotal, index.d) != wanted or index.ntotal > len(vectors):
            raise ReleaseError(
                f"{index_dir / INDEX_FILE}: {index.ntotal} x {index.d}, {INDEX_JSON} and the vectors {vectors.shape} "
                f"say {wanted}"
            )
        return cls(UserTower(candidate_dir / TOWER_FILE), index, vectors, summary, described.get("refine", 1))

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

        Fewer come back only where fewer remain. Filters act inside the search (see ``index.search``).

        Args:
            queries: float32 ``[B, D]``, or ``[B, T, D]`` with T tastes of a user: the best counts.
            k: how many items, at least 1.
            exclude: for each query int64 item indices that must not be returned.
            filters: for each query bool ``[N]`` from ``ItemFilter``, or None for the whole index.
        """
        return self._search.search(queries, k, exclude, filters)
