"""The names of a release's files, and the contents of the JSON files among them, the summaries.

A summary is a JSON file beside large files. It holds their sha256 and what they belong to; ``read_summary`` is the only
reader. ``stages.contracts.artifacts`` lists all artifacts of a release.

Shapes: N items, D vector dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from stages.contracts.arrays import load_npy
from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.files import write_json
from stages.contracts.newcomers import NewcomerList

TOWER_FILE, TOWER_JSON, VECTORS_FILE = "user_tower.onnx", "tower.json", "item_vectors.npy"
ITEM_TOWER_FILE = "item_tower.onnx"
INDEX_FILE, INDEX_JSON = "index.faiss", "index.json"
SOURCES_JSON, SCHEMA_FILE, STATE_JSON = "sources/sources.json", "feature_schema.json", "state/state.json"
SNAPSHOT_FILE, ITEMS_FILE = "snapshot.json", "items.parquet"
CONFIG_FILE, FALLBACK_FILE = "config.json", "fallback.json"
LIGHT_FILE, LIGHT_JSON = "light_ranker.txt", "light_ranker.json"
HEAVY_FILE, HEAVY_JSON = "heavy_ranker.onnx", "heavy_ranker.json"

RECALL_FLOOR = 0.95
"""No index is published below this recall against exact search, whatever a recipe says."""

AGAIN = {
    "": "assemble the release again",
    "snapshot": "build the snapshot again",
    "candidate": "train the two-tower model again",
    "index": "build the index again",
    "sources": "train the sources again",
    "examples": "build the examples again",
    "evaluate": "evaluate again",
}
"""What to do where an artifact is missing or wrong, by the step that makes it."""

_SHOWN = 60
"""Characters of a wrong value that an error shows."""


class Summary(Config):
    """A JSON file that describes an artifact; unknown keys are kept as they are.

    Attributes:
        AGAIN: what to do where a key is missing.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    AGAIN: ClassVar[str]

    def says(self) -> dict[str, Any]:
        """Return the values that other files must agree with, by name; see ``stages.contracts.release_check``."""
        return {}

    def write(self, path: Path) -> None:
        """Write the fields that were set."""
        write_json(path, self.model_dump(mode="json", exclude_unset=True))


SummaryT = TypeVar("SummaryT", bound=Summary)


class TowerConfig(Summary):
    """The configuration of the training, as far as ``tower.json`` keeps it.

    Attributes:
        features: configuration of the features, as plain values.
    """

    features: dict[str, Any]


class TowerSummary(Summary):
    """``tower.json``: the fields that a server reads.

    Attributes:
        tower_version: sha256 of ``user_tower.onnx``.
        item_vectors_sha256: of ``item_vectors.npy``.
        item_tower_sha256: of ``item_tower.onnx``; the oldest releases have none.
        n_items: N.
        dim: D.
        config: of the training.
        code: digest of the code that makes the tower's inputs, None where it was not recorded.
        trained_version: for a refreshed tower, the version of the tower that was trained.
    """

    AGAIN: ClassVar[str] = AGAIN["candidate"]

    tower_version: str
    item_vectors_sha256: str
    item_tower_sha256: str | None = None
    n_items: int = Field(ge=0)
    dim: int = Field(ge=1)
    config: TowerConfig
    code: str | None = None
    trained_version: str | None = None

    @property
    def trained(self) -> str:
        """The version of the tower that was trained; a refresh does not change it."""
        return self.trained_version or self.tower_version

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        named = ("tower_version", "item_vectors_sha256", "item_tower_sha256", "n_items", "dim")
        return {name: getattr(self, name) for name in named}


class TrainedTower(TowerSummary):
    """``tower.json``, as this version writes it and a refresh reads it.

    Attributes:
        item_tower_sha256: of ``item_tower.onnx``.
        inputs: names of the user tower's inputs.
        tastes: number of vectors of a user.
        history_length: L, items of a history at most.
        vectors_as_of_ms: time at which the items' ages were taken, int ms UTC.
        n_cold_items: items without training rows.
        losses: mean loss of each epoch.
        device: device that trained it.
        export_deviation: largest difference from the vectors of the sharded model.
        refreshed_from: version of the tower that a refresh started from, None for a trained tower.
    """

    item_tower_sha256: str
    inputs: tuple[str, ...]
    tastes: int
    history_length: int
    vectors_as_of_ms: int
    n_cold_items: int = Field(ge=0)
    losses: tuple[float, ...]
    device: str
    export_deviation: float
    refreshed_from: str | None = None


class IndexSummary(Summary):
    """``index.json``.

    Attributes:
        tower_version, item_vectors_sha256: of the tower and the vectors that it was built of.
        index_sha256: of ``index.faiss``.
        n_indexed: how many items can be found.
        recall: measured against exact search.
        refine: ``refine * k`` items are fetched and scored again.
        n_items, dim: N and D; None in older releases.
    """

    AGAIN: ClassVar[str] = AGAIN["index"]

    tower_version: str
    item_vectors_sha256: str
    index_sha256: str
    n_indexed: int = Field(ge=0)
    recall: float
    refine: int = Field(default=1, ge=1)
    n_items: int | None = None
    dim: int | None = None

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        named = ("tower_version", "item_vectors_sha256", "index_sha256", "n_items", "dim")
        return {name: getattr(self, name) for name in named}


class SourcesIdentity(Summary):
    """``sources/sources.json``, as far as other artifacts must agree with it.

    Attributes:
        names: the candidate generators in use.
        candidate_k: number of candidates that their quotas are shares of.
        n_items: N.
        tower_version: of the tower that the quotas were made with.
        data_fingerprint: of the snapshot.
        files: sha256 by name, of the files beside it.
        newcomers: the list for users without history; None in older releases.
    """

    AGAIN: ClassVar[str] = AGAIN["sources"]

    names: tuple[str, ...]
    candidate_k: int
    n_items: int
    tower_version: str
    data_fingerprint: str
    files: dict[str, str] = {}
    newcomers: NewcomerList | None = None

    def says(self) -> dict[str, Any]:
        """See ``Summary``; features distinguish generators only where there are several."""
        named = ("candidate_k", "n_items", "tower_version", "data_fingerprint")
        directory = SOURCES_JSON.rpartition("/")[0]
        return {
            **{name: getattr(self, name) for name in named},
            "sources": list(self.names) if len(self.names) > 1 else [],
            **{f"sha256 of {directory}/{name}": sha256 for name, sha256 in self.files.items()},
        }


class SchemaSummary(Summary):
    """``feature_schema.json``.

    Attributes:
        hash: of the ranking features' names and configuration.
        names: of the features; the examples' columns.
        sources: the candidate generators that features distinguish; None in older releases.
        code: digest of the code that computes the features, None where it was not recorded.
    """

    AGAIN: ClassVar[str] = AGAIN["examples"]

    hash: str
    names: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = None
    code: str | None = None

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        sources = None if self.sources is None else list(self.sources)
        return {"feature_schema_hash": self.hash, "sources": sources}


class StateSummary(Summary):
    """``state/state.json``, as far as other artifacts must agree with it.

    Attributes:
        n_items: N.
    """

    AGAIN: ClassVar[str] = AGAIN["examples"]

    n_items: int

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        return {"n_items": self.n_items}


class SnapshotBorders(Summary):
    """``borders`` of ``snapshot.json``.

    Attributes:
        as_of_ms: events before it are in the snapshot.
    """

    as_of_ms: int


class SnapshotSummary(Summary):
    """``snapshot.json``, as far as other artifacts must agree with it.

    Attributes:
        fingerprint: of the data.
        borders: time borders of the snapshot.
    """

    AGAIN: ClassVar[str] = AGAIN["snapshot"]

    fingerprint: str
    borders: SnapshotBorders

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        return {"data_fingerprint": self.fingerprint, "as_of_ms": self.borders.as_of_ms}


class RankerSummary(Summary):
    """The fields that the summary of every ranking stage has.

    Attributes:
        feature_schema_hash: of the ranking features that it was trained on.
        vector_dim: D where the stage reads vectors, else None.
        tasks: names of its predictions, where a score is their weighted sum.
        objective: weight of each task in training.
        metrics: of its training.
    """

    feature_schema_hash: str
    vector_dim: int | None = None
    tasks: tuple[str, ...] = ()
    objective: dict[str, float] = {}
    metrics: dict[str, float] = {}

    def says(self) -> dict[str, Any]:
        """See ``Summary``."""
        return {"feature_schema_hash": self.feature_schema_hash, "dim": self.vector_dim}


class LightSummary(RankerSummary):
    """``light_ranker.json``.

    Attributes:
        n_features: columns that the model reads.
        rounds: trees, None in older releases.
        importance: share of the gain by feature.
    """

    AGAIN: ClassVar[str] = "train the light ranker again"

    n_features: int = Field(ge=1)
    rounds: int | None = None
    importance: dict[str, float] = {}


class HeavySummary(RankerSummary):
    """``heavy_ranker.json``.

    Attributes:
        input_width: columns that the model reads.
        light_k: largest number of rows of a request in training; None in older releases.
        tasks, objective: see ``RankerSummary``; this stage always has them.
    """

    AGAIN: ClassVar[str] = "train the heavy ranker again"

    input_width: int = Field(ge=1)
    light_k: int | None = None
    tasks: tuple[str, ...]
    objective: dict[str, float]


def read_summary(path: Path, model: type[SummaryT]) -> SummaryT:
    """Read a summary.

    Args:
        path: of the JSON file.
        model: class of the summary.

    Raises:
        ReleaseError: naming the file, every key that is missing or of a wrong type, and what to do.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{path}: {error.strerror or error}; {model.AGAIN}") from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ReleaseError(
            f"{path} {_in_words(error)}; an older version wrote it, or it is damaged: {model.AGAIN}"
        ) from None


def _in_words(error: ValidationError) -> str:
    """Return which keys are missing, and which have a value that is not allowed."""
    missing, wrong = [], []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "missing":
            missing.append(key)
        elif key:
            wrong.append(f"{key} = {str(fault['input'])[:_SHOWN]!r}: {fault['msg'].lower()}")
        else:  # not JSON, or not a JSON object
            wrong.append(f"is not a JSON object: {fault['msg'].lower()}")
    return "; ".join([*([f"lacks {', '.join(missing)}"] if missing else []), *wrong])


def load_vectors(path: Path, summary: TowerSummary) -> np.ndarray:
    """Read the item vectors, float32 ``[N, D]``; a large file is mapped.

    Args:
        path: of ``item_vectors.npy``.
        summary: the tower that they belong to.

    Raises:
        ReleaseError: if the file is unreadable or has another shape or type than ``tower.json`` says.
    """
    try:
        vectors = load_npy(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}; {summary.AGAIN}") from None
    wanted = (summary.n_items, summary.dim)
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ReleaseError(
            f"{path}: {vectors.dtype} {vectors.shape}, {TOWER_JSON} says float32 {wanted}; {summary.AGAIN}"
        )
    return vectors
