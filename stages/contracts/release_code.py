"""The code that a release needs: what trained its models, and has to feed them ever after."""

from __future__ import annotations

from pathlib import Path

from stages.contracts.code import code_digest
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.tower_code import tower_code

SHARED = (
    "stages.features",
    "stages.candidate.scorer",
    "stages.candidate.refresh.vectors",
    "stages.candidate.refresh.generators",
    "stages.light_ranker.scorer",
    "stages.heavy_ranker.scorer",
)
"""What computes features, tower inputs, candidates and scores in training, and then in serving or a refresh as well.

A step that imports this module depends on all of it, see ``code_digest``: whoever writes the digest down runs
again when it changes.
"""

SCHEMA_FILE, TOWER_JSON = "feature_schema.json", "tower.json"
"""Parts of a release whose key ``code`` holds the digest of the code that they were made with."""


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
    for file, what, own in ((SCHEMA_FILE, "features", shared_code()), (TOWER_JSON, "tower's inputs", tower_code())):
        try:
            found = read_json(release / file).get("code")
        except (OSError, ValueError, AttributeError) as error:
            raise ReleaseError(f"{release / file} is not readable: {error}") from None
        if found == own:
            continue
        made_by = "a version that did not note its code" if found is None else f"other code ({str(found)[:12]}…)"
        raise ReleaseError(
            f"release {release}: its {what} were computed by {made_by}, and this version's code ({own[:12]}…) may "
            "compute others; train again with this version, or use the release with the version that made it"
        )
