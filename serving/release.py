"""Loads a release: every file is checked before the first request is answered."""

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

from stages.candidate.scorer import SOURCES_DIRECTORY, Blend, CandidateScorer, newcomer_list, popular_half_life
from stages.contracts.artifacts import Artifact
from stages.contracts.config import parse_config
from stages.contracts.errors import ReleaseError, SluiceError
from stages.contracts.files import read_json
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.manifest import MANIFEST_FILE, ReleaseManifest, VerifiedRelease, verified_release
from stages.contracts.newcomers import NewcomerList
from stages.contracts.ranking_stages import (
    RANKING_STAGES,
    needed_stages,
    release_artifacts,
    unknown_stages,
)
from stages.contracts.release_check import CheckedArtifacts, Claim, check_together, refuse_disagreements
from stages.contracts.release_code import check_code
from stages.contracts.snapshot import ItemTable, SnapshotMeta, read_items
from stages.contracts.stage_runs import LoadedStage
from stages.contracts.summaries import (
    AGAIN,
    CONFIG_FILE,
    SCHEMA_FILE,
    SOURCES_JSON,
    TOWER_JSON,
    SchemaSummary,
    TowerSummary,
)
from stages.contracts.tables import ScoredItems
from stages.contracts.value_ranges import ValueRange
from stages.features.config import FeatureConfig
from stages.features.ranking import FeatureSchema, feature_schema
from stages.features.state import FunnelState
from stages.features.state_files import observed_ranges


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
        blend: the candidate generators beside its index, None without any.
        newcomers: the list for users without history, with its measurement; None in older releases.
        popular_half_life: position of the popular list's half-life in the state; None counts the touches of all time.
        fallback: the popular list as of ``manifest.as_of_ms``, for a state without live popularity.
        stages: the ranking stages that the funnel needs, in the order in which they run.
        files: every file, with its hash and the stamp that was taken before it was hashed.
        value_ranges: allowed values of a posted event, by signal.
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
    newcomers: NewcomerList | None
    popular_half_life: int | None
    fallback: ScoredItems
    stages: tuple[LoadedStage, ...]
    files: HashedFiles
    value_ranges: dict[str, ValueRange]


def load_release(release: Path | VerifiedRelease) -> LoadedRelease:
    """Verify and load a release; one that was verified before is not hashed again.

    Args:
        release: its directory, or the result of ``verified_release``.

    Raises:
        ReleaseError: if a file is missing, changed or unreadable, if two do not belong together, or
            if other code than this computed the features; the message names both values and what to do.
    """
    verified = release if isinstance(release, VerifiedRelease) else verified_release(release)
    directory, manifest = verified.directory, verified.manifest
    _check_listed(verified)
    check_code(directory)
    checked = _check_together(verified)
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
    blend, newcomers = _blend(verified, len(items))
    schema = feature_schema(config, meta.tasks, meta.context, () if blend is None else blend.names)
    with _reading(directory, "the candidate generator"):
        candidate = CandidateScorer.of(checked)
        refuse_disagreements(_claims(checked, schema, config))
    trending = None if blend is None else blend.trending
    with _reading(directory, "state/"):
        state = FunnelState.load(directory / "state", items, config, meta.signals, meta.tasks, meta.context, trending)
    item_index = _item_index(directory, items, aliases, blocked)
    with _reading(directory, "the sources"):
        half_life = popular_half_life(newcomers, config)
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
        newcomers=newcomers,
        popular_half_life=half_life,
        fallback=_fallback(directory, item_index),
        stages=_stages(directory, manifest, schema),
        files=verified.files,
        value_ranges=_value_ranges(directory, meta, config),
    )


def _check_listed(release: VerifiedRelease) -> None:
    """Refuse unknown stages, files that changed since they were hashed, and files that nobody listed."""
    directory, manifest = release.directory, release.manifest
    if unknown := unknown_stages(manifest.funnel.stages):
        allowed = list(RANKING_STAGES)
        raise ReleaseError(f"release {directory}: manifest.funnel.stages has {unknown}, allowed are {allowed}")
    if changed := release.files.changed():
        raise ReleaseError(
            f"release {directory}: {', '.join(changed[:5])} changed after the release was verified; copy or pull the "
            "release again"
        )
    missing = sorted(
        artifact.name
        for artifact in _served(manifest)
        if not (artifact.is_optional or artifact.name.endswith("/") or artifact.name in manifest.parts)
    )
    if missing:
        raise ReleaseError(
            f"release {directory}: the manifest does not list {missing}, which the funnel needs; assemble the release "
            "again"
        )


def _served(manifest: ReleaseManifest) -> list[Artifact]:
    return [artifact for artifact in release_artifacts(manifest.funnel.stages) if artifact.is_served]


def _check_together(release: VerifiedRelease) -> CheckedArtifacts:
    manifest, again = release.manifest, AGAIN[""]
    said = {
        "tower_version": manifest.tower_version,
        "feature_schema_hash": manifest.feature_schema_hash,
        "data_fingerprint": manifest.data_fingerprint,
        "as_of_ms": manifest.as_of_ms,
        "candidate_k": manifest.funnel.candidate_k,
    }
    claims = [Claim(what, MANIFEST_FILE, value, again) for what, value in said.items()]
    with _reading(release.directory, "its files"):
        return check_together(release.files, _served(manifest), claims)


def _claims(checked: CheckedArtifacts, schema: FeatureSchema, config: FeatureConfig) -> list[Claim]:
    """Return the values that this code derives from the configuration, and the same values as the files state them."""
    tower, written = checked.summary(TOWER_JSON, TowerSummary), checked.summary(SCHEMA_FILE, SchemaSummary)
    trained = parse_config(FeatureConfig, tower.config.features, f"{TOWER_JSON}, config.features")
    return [
        Claim("feature_schema_hash", "this version's features", schema.hash),
        Claim("feature_schema_hash", SCHEMA_FILE, written.hash, written.AGAIN),
        Claim("history_length", CONFIG_FILE, config.history_length),
        Claim("history_length", TOWER_JSON, trained.history_length, tower.AGAIN),
        Claim("history_decay", CONFIG_FILE, config.history_decay),
        Claim("history_decay", TOWER_JSON, trained.history_decay, tower.AGAIN),
    ]


def _blend(release: VerifiedRelease, n_items: int) -> tuple[Blend | None, NewcomerList | None]:
    """Load the candidate generators beside the index, and the list for users without history.

    An older release without further generators has no such directory.
    """
    if SOURCES_JSON not in release.files.paths:
        return None, None
    with _reading(release.directory, "the sources"):
        directory = release.directory / SOURCES_DIRECTORY
        return Blend.load(directory, n_items, release.files.hashes), newcomer_list(directory, n_items)


def _stages(directory: Path, manifest: ReleaseManifest, schema: FeatureSchema) -> tuple[LoadedStage, ...]:
    """Load the ranking stages that the funnel needs; their scorers are imported by the table's names."""
    stages = []
    for row in needed_stages(manifest.funnel.stages):
        with _reading(directory, row.model_file):
            is_used = row.name in manifest.funnel.stages
            stages.append(LoadedStage.load(row, directory, schema.hash, manifest.funnel.objective, is_used))
    return tuple(stages)


def _value_ranges(directory: Path, meta: SnapshotMeta, config: FeatureConfig) -> dict[str, ValueRange]:
    """Return the range of every signal's values; exposures without one are left out, since their values are not read.

    A release of an older version holds no ranges: they are taken from the values in its histories.
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
    """Return the row of every item and duplicate by its id; for a retired item, the row of its replacement."""
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
    """Name the release and the file in errors of reading it."""
    try:
        yield
    except SluiceError as error:
        raise ReleaseError(f"release {directory}, {part}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ValidationError, pa.ArrowException) as error:
        kind = "not valid JSON" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ReleaseError(f"release {directory}, {part}: unreadable ({kind}: {error})") from error
