"""Whether the parts of a release belong together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.manifest import RECALL_FLOOR

SOURCES = "sources/sources.json"


@dataclass(frozen=True)
class PartsIdentity:
    """What all parts of a release agree on.

    Attributes:
        tower_version: hex sha256 of ``user_tower.onnx``.
        feature_schema_hash: of the ranking features.
        n_items: size of the catalogue.
    """

    tower_version: str
    feature_schema_hash: str
    n_items: int


def check_parts(release: Path) -> PartsIdentity:
    """Compare what the parts of a release say about one another.

    Raises:
        ReleaseError: naming, for every disagreement, each file and the value it holds.
    """
    names = ("tower.json", "index.json", "feature_schema.json", "state/state.json")
    metas = {name: _json(release / name) for name in names}
    for name in ("light_ranker.json", "heavy_ranker.json", SOURCES):
        if (release / name).is_file():
            metas[name] = _json(release / name)
    vectors = np.load(release / "item_vectors.npy", mmap_mode="r", allow_pickle=False)
    tower_versions = {
        "user_tower.onnx": sha256_file(release / "user_tower.onnx"),
        **_values(metas, "tower_version", required=("tower.json", "index.json")),
    }
    schemas = {
        "feature_schema.json": _value(metas["feature_schema.json"], "hash", "feature_schema.json"),
        **_values(metas, "feature_schema_hash", required=[name for name in metas if name.endswith("_ranker.json")]),
    }
    counts = {
        "items.parquet": pq.read_metadata(release / "items.parquet").num_rows,  # type: ignore[no-untyped-call]
        "item_vectors.npy": vectors.shape[0],
        **_values(metas, "n_items", required=("tower.json", "state/state.json")),
    }
    dims = {
        "item_vectors.npy": vectors.shape[1],
        **_values(metas, "dim", required=("tower.json",)),
        **_values(metas, "vector_dim"),
    }
    faults = [
        *_disagreement("tower_version", tower_versions),
        *_disagreement("feature_schema_hash", schemas),
        *_disagreement("n_items", counts),
        *_disagreement("vector dimension", dims),
        *_hash_fault(release / "item_vectors.npy", "tower.json", metas["tower.json"], "item_vectors_sha256"),
        *_disagreement(
            "item_vectors_sha256", _values(metas, "item_vectors_sha256", required=("tower.json", "index.json"))
        ),
        *_recall_fault(metas["index.json"]),
        *_hash_fault(release / "item_tower.onnx", "tower.json", metas["tower.json"], "item_tower_sha256"),
        *_hash_fault(release / "index.faiss", "index.json", metas["index.json"], "index_sha256"),
        *_source_faults(release, metas),
    ]
    if faults:
        raise ReleaseError("the parts do not belong together: " + "; ".join(faults))
    return PartsIdentity(
        tower_version=tower_versions["tower.json"],
        feature_schema_hash=schemas["feature_schema.json"],
        n_items=counts["items.parquet"],
    )


def _values(metas: Mapping[str, dict[str, Any]], key: str, required: Iterable[str] = ()) -> dict[str, Any]:
    """Return ``{file: value}`` of each file that has ``key``; the ``required`` ones must have it."""
    found = {name: meta[key] for name, meta in metas.items() if key in meta}
    return found | {name: _value(metas[name], key, name) for name in required}


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = read_json(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise ReleaseError(f"{path} must hold a JSON object, found {type(loaded).__name__}")
    return loaded


def _value(meta: Mapping[str, Any], key: str, file: str) -> Any:
    if key not in meta:
        raise ReleaseError(f"{file} lacks the key {key!r}, found {sorted(meta)}")
    return meta[key]


def _disagreement(what: str, values: Mapping[str, Any]) -> list[str]:
    if all(value == next(iter(values.values())) for value in values.values()):
        return []
    return [f"{what} is " + ", ".join(f"{value!r} in {file}" for file, value in values.items())]


def _hash_fault(path: Path, file: str, meta: Mapping[str, Any], key: str) -> list[str]:
    wanted, found = _value(meta, key, file), sha256_file(path)
    return [] if found == wanted else [f"sha256 of {path.name} is {found!r}, {key} in {file} is {wanted!r}"]


def _source_faults(release: Path, metas: Mapping[str, dict[str, Any]]) -> list[str]:
    """Compare the sources with the features that tell them apart, the snapshot and their own files."""
    told_apart = metas["feature_schema.json"].get("sources", [])
    if SOURCES not in metas:
        return (
            []
            if not told_apart
            else [f"feature_schema.json tells the sources {told_apart} apart, {SOURCES} is missing"]
        )
    meta, snapshot = metas[SOURCES], _json(release / "snapshot.json")
    names = list(_value(meta, "names", SOURCES))
    faults = [
        *_disagreement("sources", {"feature_schema.json": told_apart, SOURCES: names if len(names) > 1 else []}),
        *_disagreement(
            "data_fingerprint",
            {
                "snapshot.json": _value(snapshot, "fingerprint", "snapshot.json"),
                SOURCES: _value(meta, "data_fingerprint", SOURCES),
            },
        ),
    ]
    for name, wanted in _value(meta, "files", SOURCES).items():
        path = (release / SOURCES).with_name(name)
        if not path.is_file():
            faults.append(f"{path.name} is missing, {SOURCES} names it")
        elif (found := sha256_file(path)) != wanted:
            faults.append(f"sha256 of {path.name} is {found!r} in the file, {wanted!r} in {SOURCES}")
    return faults


def _recall_fault(meta: Mapping[str, Any]) -> list[str]:
    recall = _value(meta, "recall", "index.json")
    return [] if recall >= RECALL_FLOOR else [f"recall is {recall} in index.json, allowed is {RECALL_FLOOR} or more"]
