"""The step ``refresh_vectors``: a released tower embeds a grown catalogue, nothing is trained.

Shapes: D dimensions, K content dimensions, N items of the release, M items of the snapshot (M >= N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from stages.candidate.export.user_tower_tables import content_of, extended
from stages.candidate.onnx_towers import PortableItemTower
from stages.contracts.artifacts import made_by
from stages.contracts.config import Config
from stages.contracts.errors import DataError
from stages.contracts.files import sha256_file
from stages.contracts.release_check import check_steps
from stages.contracts.snapshot import ItemTable, Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.summaries import (
    ITEM_TOWER_FILE,
    TOWER_FILE,
    TOWER_JSON,
    VECTORS_FILE,
    TrainedTower,
    load_vectors,
    read_summary,
)

ROUNDING = 1e-5
"""Vectors of one item from two runtimes differ by less, relative to the largest number (1 for unit vectors)."""


class RefreshVectorsConfig(Config):
    """Configuration of ``refresh_vectors``: empty, since the release and the snapshot define everything."""


def refresh_vectors(config: RefreshVectorsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Embed every item of a snapshot that extends a release, with that release's item tower.

    An item of the release keeps its id embedding. Its vector and content are computed again, because its
    categories or title may have changed, and its age has. A new item is embedded from its content alone.
    The user tower's tables grow by rows for the new items, which it reads in histories through their
    content. Ages are those at the snapshot's as-of time. New users have no vector of their own.

    Args:
        config: nothing.
        inputs: ``champion``, a release directory, and ``snapshot``.
        directory: receives ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy``, ``tower.json``.

    Raises:
        ReleaseError: if the release has no item tower, or its files do not belong together.
        DataError: if the snapshot does not extend the release, or is too large for one ONNX file.
    """
    champion, snapshot = inputs["champion"], Snapshot(inputs["snapshot"])
    summary = _released_tower(champion)
    items, n_old = snapshot.items(), summary.n_items
    _check_extends(snapshot, items, Snapshot(champion), summary.inputs)
    at_ms = snapshot.meta.borders.as_of_ms
    vectors_MD, content_MK = PortableItemTower(champion / ITEM_TOWER_FILE).embed(items, at_ms)
    changed = _settle(vectors_MD, load_vectors(champion / VECTORS_FILE, summary))
    np.save(directory / VECTORS_FILE, vectors_MD)
    model = onnx.load_model(str(champion / TOWER_FILE))
    _settle(content_MK, content_of(model, n_old))
    onnx.save_model(extended(model, n_old, content_MK), str(directory / TOWER_FILE))
    (directory / ITEM_TOWER_FILE).write_bytes((champion / ITEM_TOWER_FILE).read_bytes())
    refreshed = summary.model_copy(
        update={
            "tower_version": sha256_file(directory / TOWER_FILE),
            "item_vectors_sha256": sha256_file(directory / VECTORS_FILE),
            "vectors_as_of_ms": at_ms,
            "n_items": len(items),
            "n_cold_items": summary.n_cold_items + len(items) - n_old,
            "refreshed_from": summary.tower_version,
            "trained_version": summary.trained,
        }
    )
    refreshed.write(directory / TOWER_JSON)
    metrics = {"items": len(items), "new_items": len(items) - n_old, "changed_items": changed}
    return {name: float(value) for name, value in metrics.items()}, {"tower_version": refreshed.tower_version}


def _released_tower(champion: Path) -> TrainedTower:
    """Return the release's ``tower.json``, after checking that it describes the release's towers and vectors."""
    check_steps(made_by("candidate", served_only=False), {"candidate": champion})
    return read_summary(champion / TOWER_JSON, TrainedTower)


def _check_extends(snapshot: Snapshot, items: ItemTable, released: Snapshot, reads: Sequence[str]) -> None:
    """Refuse a snapshot whose rows or codes mean something else than the tower's; the error lists all differences."""
    old, new, old_ids = released.meta, snapshot.meta, released.items().item_id
    faults = []
    if items.item_id[: len(old_ids)].tolist() != old_ids.tolist():
        faults.append(f"the snapshot's {len(items)} items do not begin with the release's {len(old_ids)}")
    if "user" in reads:
        users = released.user_ids()
        if snapshot.user_ids()[: len(users)].tolist() != users.tolist():
            faults.append(f"its users do not begin with the release's {len(users)}")
    if new.categories[: len(old.categories)] != old.categories:
        faults.append(f"its categories do not begin with the release's {len(old.categories)}")
    if new.signals != old.signals:
        faults.append(f"its signals are {list(new.signals)}, the release's {list(old.signals)}")
    if "context" in reads and new.context != old.context:
        faults.append("its context columns or their values are not the release's; train a new release")
    if faults:
        raise DataError("; ".join(faults))


def _settle(new_MD: np.ndarray, old_ND: np.ndarray) -> int:
    """Put the old rows back where the new ones differ by rounding alone; return how many differ by more.

    So a refresh without changes gives the same bytes.
    """
    limit = ROUNDING * max(1.0, float(np.abs(old_ND).max(initial=0.0)))
    is_same_N = np.abs(new_MD[: len(old_ND)] - old_ND).max(axis=1) <= limit
    new_MD[: len(old_ND)][is_same_N] = old_ND[is_same_N]
    return int((~is_same_N).sum())
