"""The step ``refresh_vectors``: a released tower embeds a grown catalogue, nothing is trained.

Shapes: D dimensions, K content dimensions, N items of the release, M items of the snapshot (M >= N).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from stages.candidate.item_tower import ITEM_TOWER_FILE, PortableItemTower
from stages.candidate.scorer import TOWER_FILE, TOWER_JSON, VECTORS_FILE, load_vectors
from stages.contracts.config import Config
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome


class RefreshVectorsConfig(Config):
    """Configuration of ``refresh_vectors``: the release and the snapshot say everything."""


def refresh_vectors(config: RefreshVectorsConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Embed every item of a snapshot that extends a release, with that release's item tower.

    An item of the release keeps its id embedding, and has its vector made anew, for its categories may
    have changed; a new item is embedded from what is known beside its id. The user tower reads new items
    in histories through their content: its table grows by their rows.

    Args:
        config: nothing.
        inputs: ``champion``, a release directory, and ``snapshot``.
        directory: receives ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy``, ``tower.json``.

    Raises:
        ReleaseError: if the release has no item tower, or its parts do not belong together.
        DataError: if the snapshot does not extend the release.
    """
    champion = inputs["champion"]
    summary = read_json(champion / TOWER_JSON)
    if not (champion / ITEM_TOWER_FILE).is_file():
        raise ReleaseError(f"{champion}: no {ITEM_TOWER_FILE}; this release is older than the refresh, train a new one")
    if (found := sha256_file(champion / ITEM_TOWER_FILE)) != summary["item_tower_sha256"]:
        raise ReleaseError(f"{champion / ITEM_TOWER_FILE}: sha256 {found[:12]}…, {TOWER_JSON} says another one")
    old_ND = load_vectors(champion, summary)
    items, released = Snapshot(inputs["snapshot"]).items(), Snapshot(champion).items()
    if items.item_id[: len(released)].tolist() != released.item_id.tolist():
        raise DataError(f"the snapshot's {len(items)} items do not begin with the release's {len(released)}")
    vectors_MD, content_MK = PortableItemTower(champion / ITEM_TOWER_FILE).embed(items)
    np.save(directory / VECTORS_FILE, vectors_MD)
    model = extended(onnx.load_model(str(champion / TOWER_FILE)), len(released), content_MK[len(released) :])
    onnx.save_model(model, str(directory / TOWER_FILE))
    (directory / ITEM_TOWER_FILE).write_bytes((champion / ITEM_TOWER_FILE).read_bytes())
    refreshed = {
        "tower_version": sha256_file(directory / TOWER_FILE),
        "item_vectors_sha256": sha256_file(directory / VECTORS_FILE),
        "n_items": len(items),
        "refreshed_from": summary["tower_version"],
    }
    write_json(directory / TOWER_JSON, {**summary, **refreshed})
    moved = np.abs(vectors_MD[: len(old_ND)] - old_ND).max(axis=1) > 1e-4
    metrics = {"items": len(items), "new_items": len(items) - len(released), "changed_items": moved.sum()}
    return {name: float(value) for name, value in metrics.items()}, {"tower_version": refreshed["tower_version"]}


def extended(model: onnx.ModelProto, n_items: int, content_MK: np.ndarray) -> onnx.ModelProto:
    """Insert rows for new items before the padding row of the user tower's table.

    Args:
        model: whose table has N + 1 rows: id embeddings beside content, the last row zero.
        n_items: N.
        content_MK: float32, of the new items only.

    Raises:
        ReleaseError: if there is not exactly one such table.
    """
    tables = [entry for entry in model.graph.initializer if list(entry.dims[:1]) == [n_items + 1]]
    if len(tables) != 1 or len(tables[0].dims) != 2:
        found = {entry.name: list(entry.dims) for entry in model.graph.initializer}
        raise ReleaseError(f"{TOWER_FILE}: one table of {n_items + 1} rows is expected, found {found}")
    table = numpy_helper.to_array(tables[0])
    new = np.zeros((len(content_MK), table.shape[1]), dtype=np.float32)
    new[:, table.shape[1] - content_MK.shape[1] :] = content_MK
    grown = np.concatenate([table[:-1], new, table[-1:]])
    tables[0].CopyFrom(numpy_helper.from_array(grown, tables[0].name))
    for value in model.graph.value_info:
        if value.name == tables[0].name:
            value.type.tensor_type.shape.dim[0].dim_value = len(grown)
    return model
