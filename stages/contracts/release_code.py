"""The code that a release depends on: it made the inputs of its models in training, and makes them in serving."""

from __future__ import annotations

from pathlib import Path

from stages.contracts.code import code_digest
from stages.contracts.errors import ReleaseError
from stages.contracts.ranking_stages import RANKING_STAGES
from stages.contracts.summaries import SCHEMA_FILE, TOWER_JSON, SchemaSummary, TowerSummary, read_summary
from stages.contracts.tower_code import tower_code

SHARED = (
    "stages.features.build",
    "stages.features.reading",
    "stages.candidate.scorer",
    "stages.candidate.refresh.vectors",
    "stages.candidate.refresh.generators",
    *(stage.module for stage in RANKING_STAGES.values()),
)
"""The modules that compute features, tower inputs, candidates and scores in training, and in serving or a refresh.

A step that imports this module depends on all of them, see ``code_digest``: a step that records the digest runs again
when it changes.
"""


def shared_code() -> str:
    """Return the digest of ``SHARED``."""
    return code_digest(*SHARED)


def check_code(release: Path) -> None:
    """Refuse a release whose features or tower inputs were computed by other code than this.

    Args:
        release: its directory.

    Raises:
        ReleaseError: naming both digests and what to do.
    """
    schema = read_summary(release / SCHEMA_FILE, SchemaSummary)
    tower = read_summary(release / TOWER_JSON, TowerSummary)
    for what, found, own in (
        ("features", schema.code, shared_code()),
        ("tower's inputs", tower.code, tower_code()),
    ):
        if found == own:
            continue
        made_by = "a version that did not note its code" if found is None else f"other code ({found[:12]}…)"
        raise ReleaseError(
            f"release {release}: its {what} were computed by {made_by}, and this version's code ({own[:12]}…) may "
            "compute others; train again with this version, or use the release with the version that made it"
        )
