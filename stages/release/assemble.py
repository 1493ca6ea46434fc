"""Assemble one release: copy the parts, check that they belong together, write the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import canonical_json, read_json, sha256_text, sha256_tree, write_json
from stages.contracts.ledger import HELD_OUT_FILE, LEDGER_FILE, RANKING_STAGES, ledger_metrics
from stages.contracts.manifest import MANIFEST_FILE, FunnelSpec, ReleaseManifest
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.tables import DAY_MS, SERVING
from stages.contracts.top_k import top_k
from stages.contracts.touches import first_touches
from stages.release.parts import check_parts

RELEASE_DIRECTORY = "release"

PARTS = {
    "snapshot": ("snapshot.json", "items.parquet", "users.parquet", "aliases.parquet", "blocked.parquet"),
    "candidate": ("user_tower.onnx", "item_tower.onnx", "item_vectors.npy", "tower.json"),
    "index": ("index.faiss", "index.json"),
    "sources": ("sources",),
    "examples": ("feature_schema.json", "state"),
    "light": ("light_ranker.txt", "light_ranker.json"),
    "heavy": ("heavy_ranker.onnx", "heavy_ranker.json"),
    "evaluate": (LEDGER_FILE, HELD_OUT_FILE),
}
"""What a release takes from each input; ``state`` and ``sources`` are directories."""

NOT_IN_OLD = (HELD_OUT_FILE,)
"""Files that releases of older versions, which a refresh takes parts from, do not have."""

IF_GIVEN = ("sources",)
"""Inputs that may be absent: without them the two-tower index is the only source."""


class AssembleConfig(Config):
    """What the release is made of besides its parts.

    Attributes:
        funnel: sizes, stages asked for, objective weights (empty: those the heavy ranker was trained for). The
            ledger says which of the stages are served; of the others nothing is in the release.
        resolved: the whole resolved configuration of the run, kept in the release.
        trained_as_of_ms: as-of time of what trained the models, where they are those of an earlier release.
        fallback_k: length of the popular list.
        fallback_half_life_days: of a touch's weight in the popular list, None counts all alike.
    """

    funnel: FunnelSpec = FunnelSpec()
    resolved: dict[str, Any] = {}
    trained_as_of_ms: int | None = None
    fallback_k: int = Field(default=200, ge=1)
    fallback_half_life_days: float | None = Field(default=30.0, gt=0)


def assemble(config: AssembleConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Write a release to ``directory / "release"``.

    The id depends on the as-of time, the parts, the funnel and the metrics alone: assembling the
    same inputs again gives the same id.

    Args:
        config: see ``AssembleConfig``.
        inputs: directories ``snapshot``, ``candidate``, ``index``, ``sources``, ``examples``, ``light``,
            ``heavy`` and ``evaluate``.
        directory: where the release goes.

    Returns:
        The ledger's metrics, and the release id.

    Raises:
        ReleaseError: if a part is missing, two parts do not belong together, or the ledger serves a stage that
            the funnel does not ask for.
        ConfigError: if the funnel names an unknown stage or task.
    """
    funnel, bypassed = _served(config.funnel, inputs)
    needed = _needed(funnel, inputs)
    target = directory / RELEASE_DIRECTORY
    target.mkdir()
    for name in needed:
        for file in PARTS[name]:
            if file not in NOT_IN_OLD or (inputs[name] / file).is_file():
                _place(inputs[name] / file, target / file)
    snapshot = Snapshot(inputs["snapshot"])
    write_json(target / "config.json", config.resolved)
    write_json(target / "fallback.json", popular_list(snapshot, config.fallback_k, config.fallback_half_life_days))
    identity = check_parts(target)
    metrics = ledger_metrics(read_json(target / LEDGER_FILE))
    body = {
        "as_of_ms": snapshot.meta.borders.as_of_ms,
        "trained_as_of_ms": config.trained_as_of_ms,
        "parts": sha256_tree(target),
        "feature_schema_hash": identity.feature_schema_hash,
        "tower_version": identity.tower_version,
        "data_fingerprint": snapshot.meta.fingerprint,
        "funnel": _with_objective(funnel, target).model_dump(mode="json"),
        "metrics": metrics,
        "bypassed": bypassed,
    }
    manifest = ReleaseManifest.model_validate({"release_id": release_id(body), **body})
    write_json(target / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return metrics, {"release_id": manifest.release_id}


def release_id(body: Mapping[str, Any]) -> str:
    """Return ``<as-of date, UTC>-<12 hex>``, the hash being over everything the manifest says."""
    date = datetime.fromtimestamp(body["as_of_ms"] / 1000, tz=UTC)
    return f"{date:%Y%m%d}-{sha256_text(canonical_json(dict(body)))[:12]}"


def popular_list(snapshot: Snapshot, k: int, half_life_days: float | None) -> list[dict[str, Any]]:
    """Return the most popular items as of the snapshot's as-of time, ``{item_id, score}``, best first.

    The score of an item is the number of users that touched it (``stages.contracts.touches``), each weighted by
    2 ** (-age of the first touch / half-life). Items not yet born or withheld are left out; ties go to the lower
    item index.
    """
    events, items, as_of_ms = snapshot.events(), snapshot.items(), snapshot.meta.borders.as_of_ms
    events = events.take(events.event_time_ms < as_of_ms)
    first = first_touches(events, snapshot.meta.touching)
    weights = np.ones(len(first))
    if half_life_days is not None:
        weights = np.exp2((events.event_time_ms[first] - as_of_ms) / (half_life_days * DAY_MS))
    scores = np.bincount(events.item_index[first], weights=weights, minlength=len(items))
    born = np.flatnonzero(items.available_from_ms(SERVING) <= as_of_ms)
    best = born[top_k(scores[born], k)]
    return [{"item_id": str(items.item_id[item]), "score": float(scores[item])} for item in best]


def _served(funnel: FunnelSpec, inputs: Mapping[str, Path]) -> tuple[FunnelSpec, dict[str, str]]:
    """Return the funnel with the stages that the ledger serves, and why the others are bypassed."""
    unknown = [stage for stage in funnel.stages if stage not in RANKING_STAGES]
    if unknown:
        raise ConfigError(f"funnel.stages: unknown {unknown}, allowed are {list(RANKING_STAGES)}")
    ledger = read_json(inputs["evaluate"] / LEDGER_FILE) if "evaluate" in inputs else {}
    served = ledger.get("served")
    if served is None:  # a ledger of an older version: what is asked for is served
        return funnel, {}
    if not set(served["stages"]) <= set(funnel.stages):
        raise ReleaseError(
            f"{LEDGER_FILE} serves the stages {served['stages']}, funnel.stages asks for {list(funnel.stages)}; "
            "evaluate again with the funnel's stages"
        )
    return funnel.model_copy(update={"stages": tuple(served["stages"])}), dict(served["bypassed"])


def _needed(funnel: FunnelSpec, inputs: Mapping[str, Path]) -> list[str]:
    """Return the inputs that the release takes parts from; the heavy ranker reads the light one's scores."""
    rankers = {*funnel.stages, *(("light",) if "heavy" in funnel.stages else ())}
    needed = [name for name in PARTS if name not in (*RANKING_STAGES, *IF_GIVEN) or name in rankers]
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise ReleaseError(f"assemble: inputs {missing} are missing; this funnel needs {needed}")
    return [*needed, *(name for name in IF_GIVEN if name in inputs)]


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, or a directory's files, and copy where links are not possible."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                _place(path, target / path.relative_to(source))
        return
    if not source.is_file():
        raise ReleaseError(f"{source}: missing; a release needs {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _with_objective(funnel: FunnelSpec, target: Path) -> FunnelSpec:
    """Write the weights out, so that a release does not depend on another file's defaults."""
    if "heavy" not in funnel.stages:
        return funnel
    meta = read_json(target / "heavy_ranker.json")
    unknown = sorted(set(funnel.objective) - set(meta["tasks"]))
    if unknown:
        raise ConfigError(f"funnel.objective: unknown tasks {unknown}, the heavy ranker predicts {meta['tasks']}")
    return funnel if funnel.objective else funnel.model_copy(update={"objective": meta["objective"]})
