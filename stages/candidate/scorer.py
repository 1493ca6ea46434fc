"""The candidate generator at serving time: user tower in ONNX Runtime, index in Faiss.

Shapes: B queries, D dimensions, L history length, N items. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime

from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.tables import ScoredItems
from stages.features.history import TowerInputs

TOWER_FILE, TOWER_JSON, VECTORS_FILE = "user_tower.onnx", "tower.json", "item_vectors.npy"
INPUTS = ("history_items", "history_signals", "history_ages", "context", "user")
"""What a tower may read, by the names of its ONNX inputs; see ``TowerInputs``."""
INDEX_FILE, INDEX_JSON = "index.faiss", "index.json"

_OVERFETCH = 512
"""Up to so many excluded items a query are searched for and dropped; more are masked in the search."""


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
        item_vectors: float32 ``[N, D]``, memory-mapped.
        indexed: int64, items that can be found, ascending.
        features: the feature configuration (plain values) that the tower was trained with.
    """

    def __init__(self, tower: UserTower, index: Any, item_vectors: np.ndarray, summary: dict[str, Any]) -> None:
        self._tower, self._index = tower, index
        self.item_vectors = item_vectors
        self.n_items, self.dim = item_vectors.shape
        self.tower_version: str = summary["tower_version"]
        self.features: dict[str, Any] = summary["config"]["features"]
        self.indexed = _ids(index, self.n_items)
        self._is_indexed = np.zeros(self.n_items, dtype=bool)
        self._is_indexed[self.indexed] = True
        self._n_lists = getattr(index, "nlist", None)
        self._n_probe = getattr(index, "nprobe", None)

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
        described = _read_summary(index_dir / INDEX_JSON, ("tower_version", "index_sha256", "n_indexed"))
        _check_hash(candidate_dir / TOWER_FILE, summary["tower_version"], TOWER_JSON)
        _check_hash(candidate_dir / VECTORS_FILE, summary["item_vectors_sha256"], TOWER_JSON)
        _check_hash(index_dir / INDEX_FILE, described["index_sha256"], INDEX_JSON)
        if described["tower_version"] != summary["tower_version"]:
            raise ReleaseError(
                f"{index_dir / INDEX_JSON}: tower_version {described['tower_version'][:12]}…, "
                f"the tower in {candidate_dir} is {summary['tower_version'][:12]}…; build the index again"
            )
        vectors = load_vectors(candidate_dir, summary)
        index = faiss.read_index(str(index_dir / INDEX_FILE))
        wanted = (described["n_indexed"], vectors.shape[1])
        if (index.ntotal, index.d) != wanted or index.ntotal > len(vectors):
            raise ReleaseError(
                f"{index_dir / INDEX_FILE}: {index.ntotal} x {index.d}, {INDEX_JSON} and the vectors {vectors.shape} "
                f"say {wanted}"
            )
        return cls(UserTower(candidate_dir / TOWER_FILE), index, vectors, summary)

    def embed(self, inputs: TowerInputs) -> np.ndarray:
        """Return float32 ``[B, D]`` or ``[B, T, D]``; see ``UserTower.embed``."""
        return self._tower.embed(inputs)

    def search(self, queries: np.ndarray, k: int, exclude: Sequence[np.ndarray]) -> list[ScoredItems]:
        """Return the best ``k`` items of each query by dot product, ties by item index.

        An approximate index is searched wider until ``k`` items are found, so that fewer come back
        only where fewer remain.

        Args:
            queries: float32 ``[B, D]``.
            k: how many items, at least 1.
            exclude: for each query int64 item indices that must not be returned.
        """
        faiss.omp_set_num_threads(1)  # the setting belongs to the calling thread, and servers have many
        found: list[ScoredItems | None] = [None] * len(queries)
        exclude = [items[self._is_indexed[items]] for items in exclude]
        small = [row for row, items in enumerate(exclude) if len(items) <= _OVERFETCH]
        if small:
            margin = max(len(exclude[row]) for row in small)
            scores_BK, ids_BK = self._index.search(
                np.ascontiguousarray(queries[small]), min(k + margin, len(self.indexed))
            )
            for row, scores, ids in zip(small, scores_BK, ids_BK, strict=True):
                found[row] = self._complete(scores, ids, k, exclude[row])
        return [
            self._search_masked(queries[row], k, exclude[row]) if items is None else items
            for row, items in enumerate(found)
        ]

    def _complete(self, scores: np.ndarray, ids: np.ndarray, k: int, exclude: np.ndarray) -> ScoredItems | None:
        """Drop excluded items; None if the search found too few although more may remain."""
        kept = (ids >= 0) & ~np.isin(ids, exclude)
        remaining = len(self.indexed) - len(np.unique(exclude))
        return _sorted(ids[kept], scores[kept], k) if kept.sum() >= min(k, remaining) else None

    def _search_masked(self, query: np.ndarray, k: int, exclude: np.ndarray) -> ScoredItems:
        """Search one query among the items that remain, in more and more lists until enough are found."""
        allowed = self._is_indexed.copy()
        allowed[exclude] = False
        wanted = min(k, int(allowed.sum()))
        if wanted == 0:
            return _sorted(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), k)
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(self.n_items, faiss.swig_ptr(bits))
        n_probe = self._n_probe
        while True:
            scores_1K, ids_1K = self._index.search(query[None], wanted, params=self._parameters(selector, n_probe))
            if ids_1K[0, -1] >= 0 or n_probe is None or n_probe >= self._n_lists:
                kept = ids_1K[0] >= 0
                return _sorted(ids_1K[0][kept], scores_1K[0][kept], k)
            n_probe = min(2 * n_probe, self._n_lists)

    def _parameters(self, selector: Any, n_probe: int | None) -> Any:
        if n_probe is None:
            return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        return faiss.SearchParametersIVF(sel=selector, nprobe=n_probe)  # type: ignore[call-arg]


def _ids(index: Any, n_items: int) -> np.ndarray:
    """Return the int64 ids in an index, ascending."""
    if index.ntotal == n_items:
        return np.arange(n_items, dtype=np.int64)
    if hasattr(index, "id_map"):
        return np.sort(faiss.vector_to_array(index.id_map))
    lists = index.invlists
    ids = [faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)) for number in range(index.nlist)]
    return np.sort(np.concatenate([np.array(each, dtype=np.int64) for each in ids]))


def load_vectors(candidate_dir: Path, summary: dict[str, Any]) -> np.ndarray:
    """Map the item vectors into memory.

    Raises:
        ReleaseError: if the file is unreadable or has another shape or type than ``tower.json`` says.
    """
    path = candidate_dir / VECTORS_FILE
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    wanted = (summary["n_items"], summary["dim"])
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ReleaseError(f"{path}: {vectors.dtype} {vectors.shape}, {TOWER_JSON} says float32 {wanted}")
    return vectors


def _sorted(ids: np.ndarray, scores: np.ndarray, k: int) -> ScoredItems:
    order = np.lexsort((ids, -scores))[:k]
    return ScoredItems(ids=ids[order].astype(np.int64), scores=scores[order].astype(np.float32))


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
