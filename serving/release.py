"""Loads a release: every part is checked before the first request sees any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from serving.parts import Stamps, stamp
from stages.candidate.scorer import SOURCES_DIRECTORY, Blend, CandidateScorer
from stages.contracts.config import parse_config
from stages.contracts.errors import ReleaseError, SluiceError
from stages.contracts.files import read_json
from stages.contracts.manifest import MANIFEST_FILE, ReleaseManifest, read_manifest, verify_release
from stages.contracts.release_code import check_code
from stages.contracts.snapshot import ItemTable, SnapshotMeta, read_items
from stages.contracts.tables import ScoredItems
from stages.contracts.value_ranges import ValueRange
from stages.features.config import FeatureConfig
from stages.features.ranking import FeatureSchema, feature_schema
from stages.features.state import FunnelState
from stages.features.state_files import observed_ranges
from stages.heavy_ranker.scorer import HeavyScorer
from stages.light_ranker.scorer import LightScorer

STAGES = ("light", "heavy")
_REQUIRED = (
    "config.json",
    "snapshot.json",
    "items.parquet",
    "users.parquet",
    "blocked.parquet",
    "aliases.parquet",
    "feature_schema.json",
    "user_tower.onnx",
    "item_vectors.npy",
    "tower.json",
    "index.faiss",
    "index.json",
    "fallback.json",
)
_RANKER_PARTS = {
    "light": ("light_ranker.txt", "light_ranker.json"),
    "heavy": ("heavy_ranker.onnx", "heavy_ranker.json", "light_ranker.txt", "light_ranker.json"),
}


@dataclass(frozen=True)
class LoadedRelease:
    """One release in memory; N items.

    Attributes:
        directory: where it was loaded from; arrays may be mapped from its files.
        manifest, meta, config: as they were written.
        schema: the ranking features that this code computes; its hash equals the release's.
        items: the catalogue.
        item_index: item id, aliases included, to canonical item index.
        user_index: user id to user index.
        blocked: reason by the id of an item that the content policy keeps out of everything.
        state: histories and counters as of ``manifest.as_of_ms``; posted events advance it.
        candidate: the candidate generator.
        blend: the sources beside its index, None without any.
        fallback: the popular list as of ``manifest.as_of_ms``, for a state without live popularity.
        light, heavy: the rankers, None where the funnel does not need them. A heavy ranker reads the
            light ranker's score, so that it needs both.
        stamps: what the file system said of every file before it was verified.
        value_ranges: what a posted event's value may be, by signal.
    """

    directory: Path
    manifest: ReleaseManifest
    meta: SnapshotMeta
    config: FeatureConfig
    schema: FeatureSchema
    items: ItemTable
    item_index: dict[str, int]
    user_index: dict[str, int]
    blocked: dict[str, str]
    state: FunnelState
    candidate: CandidateScorer
    blend: Blend | None
    fallback: ScoredItems
    light: LightScorer | None
    heavy: HeavyScorer | None
    stamps: Stamps
    value_ranges: dict[str, ValueRange]


def load_release(directory: Path) -> LoadedRelease:
    """Verify and load a release directory.

    Raises:
        ReleaseError: if a part is missing, changed or unreadable, if two parts do not belong together, or
            if other code than this computed the features; the message names both values.
    """
    stamps = stamp(directory, [MANIFEST_FILE, *read_manifest(directory).parts])
    manifest = verify_release(directory)
    _check_parts(directory, manifest)
    check_code(directory)
    with _reading(directory, "snapshot.json"):
        meta = SnapshotMeta.model_validate(read_json(directory / "snapshot.json"))
    with _reading(directory, "config.json"):
        features = read_json(directory / "config.json")["features"]
        config = parse_config(FeatureConfig, features, "config.json, section features")
    with _reading(directory, "items.parquet, users.parquet, aliases.parquet, blocked.parquet"):
        items = read_items(directory / "items.parquet", len(meta.categories))
        aliases = _pairs(directory / "aliases.parquet", "item_id", "item_index")
        users = _pairs(directory / "users.parquet", "user_id", "user_index")
        blocked = _pairs(directory / "blocked.parquet", "item_id", "reason")
    blend = _blend(directory, manifest, len(items))
    schema = feature_schema(config, meta.tasks, meta.context, () if blend is None else blend.names)
    _check_equal(directory, _claims(directory, manifest, meta, schema))
    with _reading(directory, "the candidate generator"):
        candidate = CandidateScorer.load(directory)
        claims = _tower_claims(manifest, items, config, candidate)
    _check_equal(directory, claims)
    trending = None if blend is None else blend.trending
    with _reading(directory, "state/"):
        state = FunnelState.load(directory / "state", items, config, meta.signals, meta.tasks, meta.context, trending)
    light, heavy = _rankers(directory, manifest, schema)
    item_index = _item_index(directory, items, aliases, blocked)
    return LoadedRelease(
        directory=directory,
        manifest=manifest,
        meta=meta,
        config=config,
        schema=schema,
        items=items,
        item_index=item_index,
        user_index=users,
        blocked=blocked,
        state=state,
        candidate=candidate,
        blend=blend,
        fallback=_fallback(directory, item_index),
        light=light,
        heavy=heavy,
        stamps=stamps,
        value_ranges=_value_ranges(directory, meta, config),
    )


Claim = tuple[str, str, Any, str, Any]
"""(what, first source, its value, second source, its value): the values have to be equal."""


def _claims(directory: Path, manifest: ReleaseManifest, meta: SnapshotMeta, schema: FeatureSchema) -> list[Claim]:
    with _reading(directory, "feature_schema.json"):
        written = read_json(directory / "feature_schema.json")["hash"]
    return [
        ("feature schema hash", "manifest.json", manifest.feature_schema_hash, "feature_schema.json", written),
        ("feature schema hash", "manifest.json", manifest.feature_schema_hash, "this version's features", schema.hash),
        ("data fingerprint", "manifest.json", manifest.data_fingerprint, "snapshot.json", meta.fingerprint),
        ("as_of_ms", "manifest.json", manifest.as_of_ms, "snapshot.json", meta.borders.as_of_ms),
    ]


def _tower_claims(
    manifest: ReleaseManifest, items: ItemTable, config: FeatureConfig, candidate: CandidateScorer
) -> list[Claim]:
    vectors = len(candidate.item_vectors)
    trained = parse_config(FeatureConfig, candidate.features, "tower.json, config.features")
    return [
        ("tower_version", "manifest.json", manifest.tower_version, "tower.json", candidate.tower_version),
        ("number of items", "items.parquet", len(items), "index.faiss", candidate.n_items),
        ("number of items", "items.parquet", len(items), "item_vectors.npy", vectors),
        ("history_length", "config.json", config.history_length, "tower.json", trained.history_length),
        ("history_decay", "config.json", config.history_decay, "tower.json", trained.history_decay),
    ]


def _check_equal(directory: Path, claims: list[Claim]) -> None:
    faults = [
        f"{what}: {first} says {a!r}, {second} says {b!r}; they must be equal"
        for what, first, a, second, b in claims
        if a != b
    ]
    if faults:
        raise ReleaseError(f"release {directory}: " + "; ".join(faults))


def _check_parts(directory: Path, manifest: ReleaseManifest) -> None:
    """Refuse unknown stages, and parts that the funnel needs but nobody listed."""
    unknown = [stage for stage in manifest.funnel.stages if stage not in STAGES]
    if unknown:
        raise ReleaseError(f"release {directory}: manifest.funnel.stages has {unknown}, allowed are {list(STAGES)}")
    needed = {*_REQUIRED, *(part for stage in manifest.funnel.stages for part in _RANKER_PARTS[stage])}
    missing = sorted(needed - set(manifest.parts))
    if missing:
        raise ReleaseError(f"release {directory}: the manifest does not list {missing}, which the funnel needs")


def _blend(directory: Path, manifest: ReleaseManifest, n_items: int) -> Blend | None:
    """Load the sources beside the index; a release without any, such as an older one, has no such directory."""
    if not any(part.startswith(f"{SOURCES_DIRECTORY}/") for part in manifest.parts):
        return None
    with _reading(directory, "the sources"):
        blend = Blend.load(directory / SOURCES_DIRECTORY, n_items)
    if blend is not None:
        said, k = blend.summary, manifest.funnel.candidate_k
        pairs = (
            ("candidate_k", k, said.candidate_k),
            ("tower_version", manifest.tower_version, said.tower_version),
            ("data fingerprint", manifest.data_fingerprint, said.data_fingerprint),
        )
        _check_equal(directory, [(what, "manifest.json", a, "sources.json", b) for what, a, b in pairs])
    return blend


def _rankers(
    directory: Path, manifest: ReleaseManifest, schema: FeatureSchema
) -> tuple[LightScorer | None, HeavyScorer | None]:
    light, heavy = None, None
    if manifest.funnel.stages:
        with _reading(directory, "light_ranker.txt"):
            light = LightScorer.load(directory, schema.hash)
    if "heavy" in manifest.funnel.stages:
        with _reading(directory, "heavy_ranker.onnx"):
            heavy = HeavyScorer.load(directory, schema.hash, manifest.funnel.objective)
    return light, heavy


def _value_ranges(directory: Path, meta: SnapshotMeta, config: FeatureConfig) -> dict[str, ValueRange]:
    """Return the range of every signal's values, except of exposures that have none: their values are not read.

    A release of an older version does not hold them: what its histories hold stands for it.
    """
    known = {entry.signal: entry for entry in meta.value_ranges}
    if not known:
        with _reading(directory, "state/"):
            known = observed_ranges(directory / "state", meta.signals, meta.values)
    unread = set(config.exposure_signals)
    return {
        name: known.get(name, ValueRange.of_nothing(name))
        for name in meta.signals
        if name in known or name not in unread
    }


def _item_index(
    directory: Path, items: ItemTable, aliases: dict[str, int], blocked: Mapping[str, str]
) -> dict[str, int]:
    """Return the row by the id of every item and duplicate; of a retired row, that of what replaced it."""
    wrong = [f"{name} -> {index}" for name, index in aliases.items() if not 0 <= index < len(items)]
    if wrong:
        raise ReleaseError(f"release {directory}: aliases.parquet has {wrong[:5]}, allowed are 0 to {len(items) - 1}")
    own = {name: index for index, name in enumerate(items.item_id.tolist()) if name not in blocked}
    return {**own, **aliases}


def _fallback(directory: Path, item_index: dict[str, int]) -> ScoredItems:
    with _reading(directory, "fallback.json"):
        rows = read_json(directory / "fallback.json")
        ids = np.array([item_index[row["item_id"]] for row in rows], dtype=np.int64)
        return ScoredItems(ids, np.array([row["score"] for row in rows], dtype=np.float32))


def _pairs(path: Path, key: str, value: str) -> dict[str, Any]:
    table = pq.read_table(path, columns=[key, value])  # type: ignore[no-untyped-call]
    return dict(zip(table[key].to_pylist(), table[value].to_pylist(), strict=True))


@contextmanager
def _reading(directory: Path, part: str) -> Iterator[None]:
    """Say which part of which release could not be read."""
    try:
        yield
    except SluiceError as error:
        raise ReleaseError(f"release {directory}, {part}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError, pa.ArrowException) as error:
        kind = "not valid JSON" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ReleaseError(f"release {directory}, {part}: unreadable ({kind}: {error})") from error
