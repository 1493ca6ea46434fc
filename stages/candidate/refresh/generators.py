"""The step ``refresh_sources``: the candidate generators of a release follow a grown catalogue; nothing is fitted.

Shapes: N items of the release, M items of the snapshot (M >= N).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from stages.candidate.generators.files import (
    MIXTURE_FILE,
    SOURCES_DIRECTORY,
    SOURCES_JSON,
    load_arrays,
    load_mixture,
    read_summary,
    write_arrays,
    write_summary,
)
from stages.candidate.generators.table import TOWER, generator_class
from stages.contracts import summaries
from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome


class RefreshSourcesConfig(Config):
    """Configuration of ``refresh_sources``: empty, since the release and the snapshot define everything."""


def refresh_sources(config: RefreshSourcesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Make the generators of a release fit the catalogue of a larger snapshot.

    Each generator's ``refresh`` extends its arrays. Generators that read the state have none. Quotas, or the learned
    mixture, stay.

    Args:
        config: nothing.
        inputs: ``champion``, a release directory, ``snapshot``, and ``candidate``, its refreshed tower.
        directory: receives ``sources/``; stays empty where the release has no generators.

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
    tower = summaries.read_summary(inputs["candidate"] / summaries.TOWER_JSON, summaries.TowerSummary)
    target = directory / SOURCES_DIRECTORY
    target.mkdir()
    files: dict[str, str] = {}
    for name in summary.names:
        if name != TOWER:
            kind = generator_class(name)
            found = kind.refresh(summary.config, load_arrays(released, kind, summary), items)
            files |= write_arrays(target, kind, found)
    if load_mixture(released, summary) is not None:
        shutil.copyfile(released / MIXTURE_FILE, target / MIXTURE_FILE)
        files[MIXTURE_FILE] = summary.files[MIXTURE_FILE]
    changes = {
        "n_items": len(items),
        "tower_version": tower.tower_version,
        "data_fingerprint": snapshot.meta.fingerprint,
        "files": files,
    }
    write_summary(target, summary.model_copy(update=changes))
    return {"sources": float(len(summary.names))}, {"names": list(summary.names)}
