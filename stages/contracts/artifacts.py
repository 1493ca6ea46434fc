"""The table of a release's artifacts: their names, which step makes each, and what describes them.

``stages.contracts.ranking_stages`` lists the artifacts of the ranking stages, ``stages.contracts.release_check``
compares all artifacts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.contracts.errors import ReleaseError
from stages.contracts.ledger import HELD_OUT_FILE, LEDGER_FILE
from stages.contracts.summaries import (
    AGAIN,
    CONFIG_FILE,
    FALLBACK_FILE,
    INDEX_FILE,
    INDEX_JSON,
    ITEM_TOWER_FILE,
    ITEMS_FILE,
    SCHEMA_FILE,
    SNAPSHOT_FILE,
    SOURCES_JSON,
    STATE_JSON,
    TOWER_FILE,
    TOWER_JSON,
    VECTORS_FILE,
    IndexSummary,
    SchemaSummary,
    SnapshotSummary,
    SourcesIdentity,
    StateSummary,
    Summary,
    TowerSummary,
)


@dataclass(frozen=True)
class Artifact:
    """One row of ``ARTIFACTS``.

    Attributes:
        name: relative posix path, the same in a release and in its step's directory; a directory ends with a slash.
        step: input of ``assemble`` that it is taken from; empty for what ``assemble`` itself writes.
        summary: the class that reads it, where it is a summary.
        described: (summary file, key) that hold this file's sha256; None where only the manifest holds it.
        is_served: whether a server needs it.
        is_optional: whether a release may lack it, as older releases and those with one candidate generator do.
        again: what to do where it is missing or wrong; empty takes the advice of its step.
    """

    name: str
    step: str
    summary: type[Summary] | None = None
    described: tuple[str, str] | None = None
    is_served: bool = True
    is_optional: bool = False
    again: str = ""

    @property
    def remedy(self) -> str:
        """What to do where it is missing or wrong."""
        return self.again or AGAIN[self.step]


ARTIFACTS: tuple[Artifact, ...] = (
    Artifact(SNAPSHOT_FILE, "snapshot", SnapshotSummary),
    Artifact(ITEMS_FILE, "snapshot"),
    Artifact("users.parquet", "snapshot"),
    Artifact("aliases.parquet", "snapshot"),
    Artifact("blocked.parquet", "snapshot"),
    Artifact(TOWER_FILE, "candidate", described=(TOWER_JSON, "tower_version")),
    Artifact(ITEM_TOWER_FILE, "candidate", described=(TOWER_JSON, "item_tower_sha256"), is_served=False),
    Artifact(VECTORS_FILE, "candidate", described=(TOWER_JSON, "item_vectors_sha256")),
    Artifact(TOWER_JSON, "candidate", TowerSummary),
    Artifact(INDEX_FILE, "index", described=(INDEX_JSON, "index_sha256")),
    Artifact(INDEX_JSON, "index", IndexSummary),
    Artifact("sources/", "sources", is_optional=True),
    Artifact(SOURCES_JSON, "sources", SourcesIdentity, is_optional=True),
    Artifact(SCHEMA_FILE, "examples", SchemaSummary),
    Artifact("state/", "examples"),
    Artifact(STATE_JSON, "examples", StateSummary),
    Artifact(LEDGER_FILE, "evaluate", is_served=False),
    Artifact(HELD_OUT_FILE, "evaluate", is_served=False, is_optional=True),
    Artifact(CONFIG_FILE, ""),
    Artifact(FALLBACK_FILE, ""),
)
"""Every artifact of a release except those of its ranking stages; ``state/`` and ``sources/`` are directories."""


def made_by(*steps: str, served_only: bool = True) -> tuple[Artifact, ...]:
    """Return the rows of some steps.

    Args:
        steps: by the names of ``assemble``'s inputs.
        served_only: leaves out what a server does not read.
    """
    rows = (artifact for artifact in ARTIFACTS if artifact.step in steps)
    return tuple(artifact for artifact in rows if artifact.is_served or not served_only)


def collect(artifacts: Iterable[Artifact], directories: Mapping[str, Path]) -> dict[str, Path]:
    """Return the path of each artifact by name; for a directory, of every file in it.

    Args:
        artifacts: rows of the table.
        directories: of the finished steps, by the names of ``assemble``'s inputs; optional artifacts of a step that
            is not named are left out.

    Raises:
        ReleaseError: naming the first that is missing, and what to do.
    """
    found: dict[str, Path] = {}
    for artifact in artifacts:
        if artifact.is_optional and artifact.step not in directories:
            continue
        path = directories[artifact.step] / artifact.name
        if artifact.name.endswith("/"):
            inside = sorted(each for each in path.rglob("*") if each.is_file())
            found |= {f"{artifact.name}{each.relative_to(path).as_posix()}": each for each in inside}
        elif path.is_file():
            found[artifact.name] = path
        elif not artifact.is_optional:
            raise ReleaseError(f"{path}: missing; {artifact.remedy}")
    return found
