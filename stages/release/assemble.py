"""Assemble one release: copy the artifacts, check that they belong together, write the manifest last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stages.contracts.artifacts import Artifact, collect
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import canonical_json, read_json, sha256_text, write_json
from stages.contracts.hashed_files import HashedFiles
from stages.contracts.ledger import LEDGER_FILE, ledger_metrics
from stages.contracts.manifest import MANIFEST_FILE, FunnelSpec, ReleaseManifest
from stages.contracts.ranking_stages import RANKING_STAGES, release_artifacts, unknown_stages
from stages.contracts.release_check import CheckedArtifacts, Claim, check_together
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.summaries import (
    CONFIG_FILE,
    FALLBACK_FILE,
    SCHEMA_FILE,
    SOURCES_JSON,
    TOWER_JSON,
    RankerSummary,
    SchemaSummary,
    SourcesIdentity,
    TowerSummary,
    read_summary,
)
from stages.contracts.tables import DAY_MS, SERVING
from stages.contracts.top_k import top_k
from stages.contracts.touches import first_touches

RELEASE_DIRECTORY = "release"


class AssembleConfig(Config):
    """What the release is made of besides its artifacts.

    Attributes:
        funnel: sizes, requested stages, objective weights (empty: those that the heavy ranker was trained for). The
            ledger says which of the stages are served; the release holds nothing of the others.
        resolved: the whole resolved configuration of the run, kept in the release.
        trained_as_of_ms: as-of time of the models' training data, int ms UTC, where the models are those of an earlier
            release.
        fallback_k: length of the popular list.
        fallback_half_life_days: of a touch's weight in the popular list, None counts all alike; where the sources say
            which list users without history get, its half-life counts.
    """

    funnel: FunnelSpec = FunnelSpec()
    resolved: dict[str, Any] = {}
    trained_as_of_ms: int | None = None
    fallback_k: int = Field(default=200, ge=1)
    fallback_half_life_days: float | None = Field(default=30.0, gt=0)


def assemble(config: AssembleConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Write a release to ``directory / "release"``.

    The id depends only on the as-of time, the artifacts, the funnel and the metrics: assembling the same inputs again
    gives the same id.

    Args:
        config: see ``AssembleConfig``.
        inputs: directories of the steps in the table of artifacts, and of the ranking stages in use.
        directory: where the release goes.

    Returns:
        The ledger's metrics, and the release id.

    Raises:
        ReleaseError: if an artifact is missing, two artifacts do not belong together, or the ledger serves a stage that
            the funnel does not request.
        ConfigError: if the funnel names an unknown stage or task.
    """
    funnel, bypassed = _served(config.funnel, inputs)
    artifacts = release_artifacts(funnel.stages)
    _check_inputs(artifacts, inputs)
    target = directory / RELEASE_DIRECTORY
    target.mkdir()
    for name, path in collect((each for each in artifacts if each.step), inputs).items():
        _place(path, target / name)
    snapshot = Snapshot(inputs["snapshot"])
    write_json(target / CONFIG_FILE, config.resolved)
    half_life_days = config.fallback_half_life_days
    if (target / SOURCES_JSON).is_file():
        chosen = read_summary(target / SOURCES_JSON, SourcesIdentity).newcomers
        half_life_days = half_life_days if chosen is None else chosen.half_life_days
    write_json(target / FALLBACK_FILE, popular_list(snapshot, config.fallback_k, half_life_days))
    asked = Claim("candidate_k", "funnel", funnel.candidate_k)
    checked = check_together(HashedFiles.below(target), artifacts, [asked])
    metrics = ledger_metrics(read_json(target / LEDGER_FILE))
    body = {
        "as_of_ms": snapshot.meta.borders.as_of_ms,
        "trained_as_of_ms": config.trained_as_of_ms,
        "parts": dict(checked.files.hashes),
        "feature_schema_hash": checked.summary(SCHEMA_FILE, SchemaSummary).hash,
        "tower_version": checked.summary(TOWER_JSON, TowerSummary).tower_version,
        "data_fingerprint": snapshot.meta.fingerprint,
        "funnel": _with_objective(funnel, checked).model_dump(mode="json"),
        "metrics": metrics,
        "bypassed": bypassed,
    }
    manifest = ReleaseManifest.model_validate({"release_id": release_id(body), **body})
    write_json(target / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return metrics, {"release_id": manifest.release_id}


def release_id(body: Mapping[str, Any]) -> str:
    """Return ``<as-of date, UTC>-<12 hex>``, a hash over all other fields of the manifest."""
    date = datetime.fromtimestamp(body["as_of_ms"] / 1000, tz=UTC)
    return f"{date:%Y%m%d}-{sha256_text(canonical_json(dict(body)))[:12]}"


def popular_list(snapshot: Snapshot, k: int, half_life_days: float | None) -> list[dict[str, Any]]:
    """Return the most popular items as of the snapshot's as-of time, ``{item_id, score}``, best first.

    The score of an item is the number of users that touched it (``stages.contracts.touches``), each weighted by
    2 ** (-age of the first touch / half-life). Items that are not yet created, or withheld, are left out; ties go to
    the lower item index.
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
    if unknown := unknown_stages(funnel.stages):
        raise ConfigError(f"funnel.stages: unknown {unknown}, allowed are {list(RANKING_STAGES)}")
    ledger = read_json(inputs["evaluate"] / LEDGER_FILE) if "evaluate" in inputs else {}
    served = ledger.get("served")
    if served is None:  # a ledger of an older version: the requested stages are served
        return funnel, {}
    if not set(served["stages"]) <= set(funnel.stages):
        raise ReleaseError(
            f"{LEDGER_FILE} serves the stages {served['stages']}, funnel.stages asks for {list(funnel.stages)}; "
            "evaluate again with the funnel's stages"
        )
    return funnel.model_copy(update={"stages": tuple(served["stages"])}), dict(served["bypassed"])


def _check_inputs(artifacts: Sequence[Artifact], inputs: Mapping[str, Path]) -> None:
    """Refuse inputs that lack a step whose artifacts the release needs."""
    needed = list(dict.fromkeys(each.step for each in artifacts if each.step and not each.is_optional))
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise ReleaseError(f"assemble: inputs {missing} are missing; this funnel needs {needed}")


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, and copy where links are not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _with_objective(funnel: FunnelSpec, checked: CheckedArtifacts) -> FunnelSpec:
    """Write the weights out, so that a release does not depend on another file's defaults."""
    for name in funnel.stages:
        summary = _summary(name, checked)
        if not summary.tasks:
            continue
        unknown = sorted(set(funnel.objective) - set(summary.tasks))
        if unknown:
            known = list(summary.tasks)
            raise ConfigError(f"funnel.objective: unknown tasks {unknown}, the {name} ranker predicts {known}")
        funnel = funnel if funnel.objective else funnel.model_copy(update={"objective": summary.objective})
    return funnel


def _summary(stage: str, checked: CheckedArtifacts) -> RankerSummary:
    row = RANKING_STAGES[stage]
    return checked.summary(row.summary_file, row.summary)
