"""The step ``refresh_vectors``: released towers embed a grown catalogue, nothing is trained.

Shapes: D dimensions, K content dimensions, N items of the release, M items of the snapshot (M >= N).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from stages.candidate.config import FoldInConfig, RefreshVectorsConfig
from stages.candidate.export.user_tower_tables import IDS, content_of, extended, reads_new_values, table_of
from stages.candidate.onnx_towers import PortableItemTower, UserTower
from stages.candidate.refresh.fold_in import fold_in, snapshot_touches
from stages.contracts.artifacts import made_by
from stages.contracts.errors import DataError
from stages.contracts.files import sha256_file
from stages.contracts.release_check import check_steps
from stages.contracts.snapshot import ItemTable, Snapshot, context_faults
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


def refresh_vectors(config: RefreshVectorsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Embed every item of a snapshot that extends a release, with that release's item tower.

    An item of the release keeps its id embedding. Its vector and content are computed again, because its
    categories or title may have changed, and its age has. An item that was not trained is embedded from its first
    touches and its content (``fold_in``), or from its content alone where it has no touch.
    The user tower's tables grow by rows for the new items, which it reads in histories through their
    content. Ages are those at the snapshot's as-of time. New users, and new values of context columns, have no vector
    of their own: both count as unknown until a training gives them one.

    Args:
        config: how touched items are embedded.
        inputs: ``champion``, a release directory, and ``snapshot``.
        directory: receives ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy``, ``tower.json``.

    Raises:
        ReleaseError: if the release has no item tower, or its files do not belong together.
        DataError: if the snapshot does not extend the release, or is too large for one ONNX file.
    """
    champion, snapshot = inputs["champion"], Snapshot(inputs["snapshot"])
    summary = _released_tower(champion)
    items, n_old = snapshot.items(), summary.n_items
    model = onnx.load_model(str(champion / TOWER_FILE))
    _check_extends(snapshot, items, Snapshot(champion), summary.inputs, reads_new_values(model))
    at_ms = snapshot.meta.borders.as_of_ms
    vectors_MD, content_MK = PortableItemTower(champion / ITEM_TOWER_FILE).embed(items, at_ms)
    _settle(content_MK, content_of(model, n_old))
    onnx.save_model(extended(model, n_old, content_MK), str(directory / TOWER_FILE))
    folded = _fold_in(config.fold_in, champion, snapshot, directory, vectors_MD, summary)
    changed = _settle(vectors_MD, load_vectors(champion / VECTORS_FILE, summary))
    np.save(directory / VECTORS_FILE, vectors_MD)
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
    metrics = {"items": len(items), "new_items": len(items) - n_old, "changed_items": changed, **folded}
    return {name: float(value) for name, value in metrics.items()}, {"tower_version": refreshed.tower_version}


def _fold_in(
    config: FoldInConfig,
    champion: Path,
    snapshot: Snapshot,
    directory: Path,
    vectors_MD: np.ndarray,
    summary: TrainedTower,
) -> dict[str, float]:
    """Overwrite the vectors of touched items without a trained row; the user tower is already in ``directory``."""
    if not config.touches:
        return {"folded_items": 0.0}
    item_tower = onnx.load_model(str(champion / ITEM_TOWER_FILE))
    is_trained_N = np.any(table_of(item_tower, IDS)[:-1], axis=1)
    is_known_M = np.zeros(len(vectors_MD), dtype=bool)
    is_known_M[: len(is_trained_N)] = is_trained_N
    content_MD, _ = PortableItemTower(champion / ITEM_TOWER_FILE).embed(
        snapshot.items(), snapshot.meta.borders.as_of_ms, named=False
    )
    tower = UserTower(directory / TOWER_FILE)
    given = (vectors_MD, content_MD, is_known_M, summary.history_length, config)
    return fold_in(snapshot_touches(snapshot, "context" in tower.inputs), tower, *given)


def _released_tower(champion: Path) -> TrainedTower:
    """Return the release's ``tower.json``, after checking that it describes the release's towers and vectors."""
    check_steps(made_by("candidate", served_only=False), {"candidate": champion})
    return read_summary(champion / TOWER_JSON, TrainedTower)


def _check_extends(
    snapshot: Snapshot, items: ItemTable, released: Snapshot, reads: Sequence[str], values_may_grow: bool
) -> None:
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
    if "context" in reads:
        names = [[column.name for column in meta.context] for meta in (new, old)]
        if names[0] != names[1]:
            faults.append(f"its context columns are {names[0]}, the release's {names[1]}; train a new release")
        else:
            faults += [f"of the release, {fault}" for fault in context_faults(old.context, new.context)]
            if new.context != old.context and not values_may_grow:
                faults.append(
                    "it has new values of context columns, and the release's user tower, of an older version, does not "
                    "tell them from others; train a new release"
                )
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
