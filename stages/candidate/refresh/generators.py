"""The step ``refresh_sources``: a release's sources follow a grown catalogue, nothing is fitted.

Shapes: N items of the release, M items of the snapshot (M >= N).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.candidate.artifacts import TOWER_JSON
from stages.candidate.generators.files import (
    SOURCES_DIRECTORY,
    SOURCES_JSON,
    Neighbours,
    load_neighbours,
    read_summary,
    write_neighbours,
    write_summary,
)
from stages.candidate.generators.neighbour_lists import content_neighbours
from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome


class RefreshSourcesConfig(Config):
    """Configuration of ``refresh_sources``: the release and the snapshot say everything."""


def refresh_sources(config: RefreshSourcesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Make the sources of a release fit the catalogue that a snapshot has grown to.

    Content neighbours are found anew, so that new items are named at once. EASE and implicit ALS keep what
    they were fitted to, and know nothing of new items. Co-visitation and trends live in the state. Quotas stay.

    Args:
        config: nothing.
        inputs: ``champion``, a release directory, ``snapshot``, and ``candidate``, its refreshed tower.
        directory: receives ``sources/``; stays empty where the release has none.

    Raises:
        ReleaseError: if the release's files do not belong together, or the snapshot has fewer items.
    """
    released = inputs["champion"] / SOURCES_DIRECTORY
    if not (released / SOURCES_JSON).is_file():
        return {"sources": 1.0}, {"names": []}
    snapshot = Snapshot(inputs["snapshot"])
    items, n_released = snapshot.items(), len(Snapshot(inputs["champion"]).items())
    if len(items) < n_released:
        raise ReleaseError(
            f"{released}: of {n_released} items, the snapshot has {len(items)}; it must extend the release"
        )
    summary = read_summary(released, n_released)
    target = directory / SOURCES_DIRECTORY
    target.mkdir()
    files: dict[str, str] = {}
    for name in sorted({path.rsplit("_", 1)[0] for path in summary.files}):
        if name == "content":
            found = content_neighbours(items, summary.config.neighbours, items.recommendable())
        else:
            found = extended(load_neighbours(released, name, summary), len(items))
        files |= write_neighbours(target, name, found)
    changes = {
        "n_items": len(items),
        "tower_version": read_json(inputs["candidate"] / TOWER_JSON)["tower_version"],
        "data_fingerprint": snapshot.meta.fingerprint,
        "files": files,
    }
    write_summary(target, summary.model_copy(update=changes))
    return {"sources": float(len(summary.names))}, {"names": list(summary.names)}


def extended(neighbours: Neighbours, n_items: int) -> Neighbours:
    """Return the neighbours of ``n_items`` items: those behind the known ones have none."""
    offsets, items, weights = neighbours
    missing = n_items + 1 - len(offsets)
    return np.concatenate([offsets, np.full(missing, offsets[-1], dtype=np.int64)]), items, weights
