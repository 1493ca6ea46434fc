"""From un-sharded weights to what serving loads: an ONNX user tower and item vectors.

Shapes: B queries, D dimensions, K category dimensions, L history length, N items, W = D + K.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.data import Catalogue
from stages.candidate.item_tower import ITEM_TOWER_FILE
from stages.candidate.item_tower_export import ItemTowerModule, item_tower_program, save_item_tower
from stages.candidate.model import Tower
from stages.candidate.scorer import TOWER_FILE, TOWER_JSON, VECTORS_FILE, UserTower
from stages.contracts.errors import DataError
from stages.contracts.files import read_json, sha256_file, write_json

PARITY = 1e-4
"""Largest difference between an exported vector and the sharded model's; vectors have unit length."""
_PROTOBUF_LIMIT = 2**31 - 2**20


class PortableUserTower(nn.Module):  # type: ignore[misc]
    """The user tower without TorchRec: one gather, a weighted sum and the tower's layers.

    Args:
        table: float32 ``[N + 1, W]``, each item's embedding beside the mean of its categories'; the
            last row, of padding, is zero.
        tower: the trained layers.
        dimension: D.
    """

    def __init__(self, table: np.ndarray, tower: Tower, dimension: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(table))
        self.tower, self._dimension = tower, dimension

    def forward(self, history_items: torch.Tensor, history_weights: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, D]`` from items int64 ``[B, L]`` and weights float32 ``[B, L]``."""
        rows_BLW = self.table[history_items]
        pooled_BW = (rows_BLW * history_weights.unsqueeze(-1)).sum(dim=1)
        return self.tower(pooled_BW[:, : self._dimension], pooled_BW)


def export(directory: Path, work: Path, config: TrainCandidateConfig, catalogue: Catalogue) -> dict[str, Any]:
    """Write ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy`` and ``tower.json``.

    Args:
        directory: where to write.
        work: what the ranks left: ``state/``, ``probe_*.npy`` and ``metrics.json``.
        config: of the training.
        catalogue: of the training.

    Returns:
        What ``tower.json`` holds.

    Raises:
        DataError: if the exported vectors differ from those of the sharded model, or the catalogue is
            too large for one ONNX file.
    """
    state = {path.stem: np.load(path, allow_pickle=False) for path in sorted((work / "state").glob("*.npy"))}
    means_NK = category_means(state["embeddings.embedding_bags.category.weight"], catalogue)
    tower = user_tower(state, means_NK, catalogue, config)
    write_onnx(tower, directory / TOWER_FILE, config.features.history_length)
    vectors_ND = item_vectors(state, means_NK, catalogue, config)
    np.save(directory / VECTORS_FILE, vectors_ND)
    write_item_tower(state, catalogue, config, directory / ITEM_TOWER_FILE)
    deviation = _deviation(directory, work, vectors_ND, catalogue)
    if not deviation <= PARITY:
        raise DataError(f"{TOWER_FILE}: differs by {deviation:.2g} from the sharded model, allowed is {PARITY:g}")
    trained = read_json(work / "metrics.json")
    summary = {
        "tower_version": sha256_file(directory / TOWER_FILE),
        "item_vectors_sha256": sha256_file(directory / VECTORS_FILE),
        "item_tower_sha256": sha256_file(directory / ITEM_TOWER_FILE),
        "dim": config.candidate.dimension,
        "n_items": len(catalogue),
        "n_cold_items": int((catalogue.frequency == 0).sum()),
        "history_length": config.features.history_length,
        "config": config.model_dump(mode="json"),
        "losses": trained["losses"],
        "device": trained["device"],
        "export_deviation": deviation,
    }
    write_json(directory / TOWER_JSON, summary)
    return summary


def category_means(table_CK: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """Return float32 ``[N, K]``, the mean embedding of each item's categories; zeros without any."""
    n_items = len(catalogue)
    codes, shares, counts = catalogue.category_bags(np.arange(n_items), np.ones(n_items, dtype=np.float32))
    means_NK = np.zeros((n_items, table_CK.shape[1]), dtype=np.float32)
    np.add.at(means_NK, np.repeat(np.arange(n_items), counts), table_CK[codes] * shares[:, None])
    return means_NK


def user_tower(
    state: dict[str, np.ndarray], means_NK: np.ndarray, catalogue: Catalogue, config: TrainCandidateConfig
) -> PortableUserTower:
    """Return the portable user tower; items without training rows speak through their categories."""
    settings = config.candidate
    name = "item" if settings.shared_item_table else "history"
    targets = (catalogue.frequency > 0) & settings.shared_item_table
    trained = (catalogue.in_histories | targets).astype(np.float32)
    ids_ND = state[f"embeddings.embedding_bags.{name}.weight"] * trained[:, None]
    width = settings.dimension + settings.category_dimension
    if (size := 4 * (len(catalogue) + 1) * width) > _PROTOBUF_LIMIT:
        raise DataError(
            f"user tower: {len(catalogue)} items x {width} dimensions make {size} bytes, "
            f"one ONNX file holds {_PROTOBUF_LIMIT}; lower candidate.dimension or candidate.category_dimension"
        )
    table = np.zeros((len(catalogue) + 1, width), dtype=np.float32)
    table[:-1] = np.concatenate([ids_ND, means_NK], axis=1)
    tower = _load_tower(state, "query_tower", width, config)
    portable: PortableUserTower = PortableUserTower(table, tower, settings.dimension).eval()
    return portable


def item_vectors(
    state: dict[str, np.ndarray], means_NK: np.ndarray, catalogue: Catalogue, config: TrainCandidateConfig
) -> np.ndarray:
    """Return float32 ``[N, D]`` unit vectors of the whole catalogue."""
    settings = config.candidate
    ids_ND = state["embeddings.embedding_bags.item.weight"] * (catalogue.frequency > 0).astype(np.float32)[:, None]
    inputs_NW = np.concatenate([ids_ND, means_NK, catalogue.log_duration[:, None]], axis=1)
    tower = _load_tower(state, "item_tower", inputs_NW.shape[1], config)
    vectors_ND = np.empty((len(catalogue), settings.dimension), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(catalogue), 1 << 16):
            rows = slice(start, start + (1 << 16))
            vectors_ND[rows] = tower(torch.from_numpy(ids_ND[rows]), torch.from_numpy(inputs_NW[rows])).numpy()
    return vectors_ND


def write_item_tower(
    state: dict[str, np.ndarray], catalogue: Catalogue, config: TrainCandidateConfig, path: Path
) -> None:
    """Write the item tower with the same weights that ``item_vectors`` uses."""
    ids_ND = state["embeddings.embedding_bags.item.weight"] * (catalogue.frequency > 0).astype(np.float32)[:, None]
    categories_CK = state["embeddings.embedding_bags.category.weight"]
    width = ids_ND.shape[1] + categories_CK.shape[1] + 1
    tower = _load_tower(state, "item_tower", width, config)
    module = ItemTowerModule(ids_ND, categories_CK, tower, catalogue.duration_scale)
    with _quiet():
        model = item_tower_program(module)
    _strip(model)
    save_item_tower(model, len(ids_ND), len(categories_CK), path)


def write_onnx(tower: PortableUserTower, path: Path, length: int) -> None:
    """Write the tower as one ONNX file with a dynamic batch.

    The exporter on ``torch.export`` is used: it takes some seconds where the older tracing one takes
    a tenth, but that one is deprecated and on its way out. Its notes on where each node comes from in
    the source are removed, so that equal weights give equal bytes on every machine.
    """
    items = torch.full((2, length), tower.table.shape[0] - 1, dtype=torch.int64)
    with _quiet():
        program = torch.onnx.export(
            tower,
            (items, torch.zeros(2, length)),
            input_names=["history_items", "history_weights"],
            output_names=["query"],
            dynamic_shapes={"history_items": {0: "batch"}, "history_weights": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    _strip(model)
    onnx.save_model(model, str(path))


def _strip(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    graph = model.graph
    for value in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress lines and its notes on other packages' deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _load_tower(state: dict[str, np.ndarray], name: str, width: int, config: TrainCandidateConfig) -> Tower:
    tower: Tower = Tower(width, config.candidate.hidden, config.candidate.dimension).eval()
    own = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
    tower.load_state_dict({key.removeprefix(f"{name}."): torch.from_numpy(value) for key, value in own.items()})
    return tower


def _deviation(directory: Path, work: Path, vectors_ND: np.ndarray, catalogue: Catalogue) -> float:
    """Return the largest difference from the sharded model's vectors on its probe batch."""
    probe = {
        name: np.load(work / f"probe_{name}.npy", allow_pickle=False)
        for name in ("history", "weights", "items", "query", "candidate")
    }
    query_BD = UserTower(directory / TOWER_FILE).embed(probe["history"], probe["weights"])
    query_gap = np.abs(query_BD - probe["query"]).max()
    item_gap = np.abs(vectors_ND[probe["items"]] - probe["candidate"]).max()
    return float(max(query_gap, item_gap))
