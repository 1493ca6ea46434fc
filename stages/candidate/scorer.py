"""The candidate generator at serving time: user tower in ONNX Runtime, index in Faiss, and the other sources.

Serving and the step ``retrieve`` use the same ``CandidateScorer`` and, for a blend, the same ``Blend``.

Shapes: B queries, D dimensions, L history length, N items. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime

from stages.candidate.generators.blend import Blend, Blended
from stages.candidate.generators.files import SOURCES_DIRECTORY
from stages.candidate.generators.generators import Asked
from stages.candidate.index.search import ItemSearch
from stages.contracts.arrays import load_npy
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs

__all__ = ["SOURCES_DIRECTORY", "Asked", "Blend", "Blended", "CandidateScorer", "UserTower", "ranker_query"]

TOWER_FILE, TOWER_JSON, VECTORS_FILE = "user_tower.onnx", "tower.json", "item_vectors.npy"
INPUTS = ("history_items", "history_signals", "history_ages", "context", "user")
"""What a tower may read, by the names of its ONNX inputs; see ``TowerInputs``."""
INDEX_FILE, INDEX_JSON = "index.faiss", "index.json"


class UserTower:
    """The exported user tower on one thread.

    Attributes:
        inputs: which of ``INPUTS`` it reads.

    Raises:
        ReleaseError: if the file is not a loadable ONNX model with the expected inputs.
    """

    def __init__(self, path: Path) -> None:
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a class of its own for each kind of fault
            raise ReleaseError(f"{path} is not a loadable ONNX model: {error}") from None
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        if "history_items" not in self.inputs or not set(self.inputs) <= set(INPUTS):
            raise ReleaseError(f"{path}: inputs {list(self.inputs)}, expected history_items and some of {list(INPUTS)}")

    def embed(self, inputs: TowerInputs) -> np.ndarray:
        """Return float32 queries ``[B, D]``, or ``[B, T, D]`` of a tower with T tastes a user."""
        named = inputs.named()
        query_BD: np.ndarray = self._session.run(["query"], {name: named[name] for name in self.inputs})[0]
        return query_BD


def ranker_query(query_BD: np.ndarray) -> np.ndarray:
    """Return float32 ``[B, D]``, the one vector a user that rankers read: the mean over tastes."""
    mean_BD: np.ndarray = query_BD if query_BD.ndim == 2 else query_BD.mean(axis=1)
    return mean_BD


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
        summary = _read_summary(candidate_dir / TOWER_JSON, ("tower_version", "item_vectors_sha256", "n_items", "dim"))
        described = _read_summary(
            index_dir / INDEX_JSON, ("tower_version", "item_vectors_sha256", "index_sha256", "n_indexed")
        )
        _check_hash(candidate_dir / TOWER_FILE, summary["tower_version"], TOWER_JSON)
        _check_hash(candidate_dir / VECTORS_FILE, summary["item_vectors_sha256"], TOWER_JSON)
        _check_hash(index_dir / INDEX_FILE, described["index_sha256"], INDEX_JSON)
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

        Fewer come back only where fewer remain. Filters act inside the search (see ``item_search``).

        Args:
            queries: float32 ``[B, D]``, or ``[B, T, D]`` with T tastes of a user: the best counts.
            k: how many items, at least 1.
            exclude: for each query int64 item indices that must not be returned.
            filters: for each query bool ``[N]`` from ``ItemFilter``, or None for the whole index.
        """
        return self._search.search(queries, k, exclude, filters)


def load_vectors(candidate_dir: Path, summary: dict[str, Any]) -> np.ndarray:
    """Read the item vectors; a large file is mapped.

    Raises:
        ReleaseError: if the file is unreadable or has another shape or type than ``tower.json`` says.
    """
    path = candidate_dir / VECTORS_FILE
    try:
        vectors = load_npy(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    wanted = (summary["n_items"], summary["dim"])
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ReleaseError(f"{path}: {vectors.dtype} {vectors.shape}, {TOWER_JSON} says float32 {wanted}")
    return vectors


def _read_summary(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        summary = read_json(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not readable: {error}") from None
    missing = [key for key in keys if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ReleaseError(f"{path} lacks {missing}")
    return dict(summary)


def _check_hash(path: Path, wanted: str, origin: str) -> None:
    if not path.is_file():
        raise ReleaseError(f"{path}: missing")
    if (found := sha256_file(path)) != wanted:
        raise ReleaseError(f"{path}: sha256 {found[:12]}…, {origin} says {wanted[:12]}…")
