"""From un-sharded weights to what serving loads: ONNX towers and item vectors.

Shapes: B queries, D dimensions, K content dimensions, L history length, N items, T tastes, U users,
V context values, X context columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.export.item_tower import write_item_tower
from stages.candidate.export.onnx_export import State, closed, loaded, onnx_model, table_of
from stages.candidate.export.user_tower_tables import CONTEXT_SIZES, PROTOBUF_LIMIT, item_tables
from stages.candidate.onnx_towers import UserTower
from stages.candidate.towers.encoders import Histories
from stages.candidate.towers.two_tower import ItemTower, QueryTower, sizes_of
from stages.contracts.errors import DataError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.progress import progress_of
from stages.contracts.ragged import row_offsets
from stages.contracts.summaries import ITEM_TOWER_FILE, TOWER_FILE, TOWER_JSON, VECTORS_FILE, TowerConfig, TrainedTower
from stages.contracts.tower_code import tower_code
from stages.features.history import TowerInputs

PARITY = 1e-4
"""Largest difference between an exported vector and the sharded model's; vectors have unit length."""
_BLOCK = 1 << 16
"""Items that are embedded at a time."""


class PortableUserTower(nn.Module):  # type: ignore[misc]
    """The user tower without TorchRec: gathers from constant tables, then the trained modules.

    Only the tables with one row per item (``stages.candidate.export.user_tower_tables``) depend on the number of
    items, so that a refresh can append to them.

    Args:
        ids_ND: float32 ``[N + 1, D]`` item embeddings; the last row, of padding, is zero.
        content_NK: float32 ``[N + 1, K]``, what is known of the items beside their ids; last row likewise.
        tower: the trained encoder and correction.
        context_VD: float32 ``[V + 1, D]``, one vector per context value, zeros for one without training, then a row
            of zeros; None where the tower reads no context.
        context_sizes: values of each context column.
        user_UD: float32 ``[U + 1, D]``, one vector per user, then a row of zeros for all other users.
    """

    def __init__(
        self,
        ids_ND: np.ndarray,
        content_NK: np.ndarray,
        tower: QueryTower,
        context_VD: np.ndarray | None = None,
        context_sizes: np.ndarray | None = None,
        user_UD: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("ids", torch.from_numpy(ids_ND))
        self.register_buffer("content", torch.from_numpy(content_NK))
        is_item_N1 = torch.ones(len(ids_ND), 1)
        is_item_N1[-1] = 0.0
        self.register_buffer("is_item", is_item_N1)
        self.tower = tower
        self.register_buffer("contexts", None if context_VD is None else torch.from_numpy(context_VD))
        self.register_buffer("users", None if user_UD is None else torch.from_numpy(user_UD))
        sizes = np.zeros(0, dtype=np.int64) if context_sizes is None else context_sizes
        self.register_buffer("context_starts", torch.from_numpy(row_offsets(sizes)[:-1]))
        self.register_buffer(CONTEXT_SIZES, torch.from_numpy(sizes))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of ``forward`` that this tower takes, in order."""
        optional = [name for name, table in (("context", self.contexts), ("user", self.users)) if table is not None]
        return ("history_items", "history_signals", "history_ages", *optional)

    def forward(
        self,
        history_items: torch.Tensor,
        history_signals: torch.Tensor,
        history_ages: torch.Tensor,
        context: torch.Tensor | None = None,
        user: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return float32 ``[B, D]`` or ``[B, T, D]``.

        Args:
            history_items: int64 ``[B, L]``, newest first, padded with N.
            history_signals: int64 ``[B, L]``.
            history_ages: int64 ``[B, L]`` seconds.
            context: int64 ``[B, X]`` codes, 0 where nothing is known. A code beyond the column's size is that of a
                value that came after the training, and counts as 0.
            user: int64 ``[B]``; negative or beyond U for a user without a vector.
        """
        kept_BL = F.embedding(history_items, self.is_item)[..., 0] > 0
        histories = Histories(self.ids, self.content, history_items, history_signals, history_ages, kept_BL)
        extra = []
        if context is not None:
            is_known_BX = (context > 0) & (context <= self.context_sizes)
            rows_BX = torch.where(is_known_BX, context - 1 + self.context_starts, self.contexts.shape[0] - 1)
            extra.append(F.embedding(rows_BX, self.contexts).sum(dim=1))
        if user is not None:
            last = self.users.shape[0] - 1
            extra.append(F.embedding(torch.where(user < 0, last, user.clamp(max=last)), self.users))
        return self.tower(histories, sum(extra) if extra else None)


def export(directory: Path, work: Path, config: TrainCandidateConfig, catalogue: Catalogue) -> TrainedTower:
    """Write ``user_tower.onnx``, ``item_tower.onnx``, ``item_vectors.npy`` and ``tower.json``.

    Args:
        directory: where to write.
        work: what the ranks left: ``state/``, ``probe_*.npy`` and ``metrics.json``.
        config: of the training.
        catalogue: of the training.

    Returns:
        What ``tower.json`` holds.

    Raises:
        DataError: if a number of the model is not finite, the exported vectors differ from those of the sharded
            model, or the catalogue is too large for one ONNX file.
    """
    for path in sorted((work / "state").rglob("*.npy")):
        refuse_not_finite(str(path.relative_to(work)), np.load(path, allow_pickle=False))
    state = exported_weights(work / "state")
    content_NK = item_content(state, catalogue, config)
    tower = user_tower(state, content_NK, catalogue, config)
    write_onnx(tower, directory / TOWER_FILE, config.features.history_length)
    vectors_ND = item_vectors(state, content_NK, catalogue, config)
    refuse_not_finite(VECTORS_FILE, vectors_ND)
    np.save(directory / VECTORS_FILE, vectors_ND)
    write_item_tower(state, catalogue, config, directory / ITEM_TOWER_FILE)
    deviation = _deviation(directory, work, vectors_ND)
    if not deviation <= PARITY:
        raise DataError(f"{TOWER_FILE}: differs by {deviation:.2g} from the sharded model, allowed is {PARITY:g}")
    trained = read_json(work / "metrics.json")
    summary = TrainedTower(
        tower_version=sha256_file(directory / TOWER_FILE),
        code=tower_code(),
        item_vectors_sha256=sha256_file(directory / VECTORS_FILE),
        item_tower_sha256=sha256_file(directory / ITEM_TOWER_FILE),
        dim=config.candidate.model.dimension,
        inputs=tower.inputs,
        tastes=config.candidate.model.vectors_a_user,
        vectors_as_of_ms=int(catalogue.end_ms),
        n_items=len(catalogue),
        n_cold_items=int((catalogue.frequency == 0).sum()),
        history_length=config.features.history_length,
        config=TowerConfig.model_validate(config.model_dump(mode="json")),
        losses=tuple(trained["losses"]),
        device=trained["device"],
        export_deviation=deviation,
    )
    summary.write(directory / TOWER_JSON)
    return summary


def refuse_not_finite(name: str, values: np.ndarray) -> None:
    """Refuse an array with a number that is NaN or infinite.

    The last loss may be finite although the update after it was not.

    Raises:
        DataError: naming the array and how many of its numbers are NaN or infinite.
    """
    wrong = values.size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise DataError(
            f"candidate training: {wrong:,} of {values.size:,} numbers of {name} are NaN or infinite; lower the "
            "learning rates"
        )


def exported_weights(state: Path) -> State:
    """Return the weights by parameter; the moving average in place of a weight that has one."""
    files = {path.stem: path for kind in ("weights", "average") for path in sorted((state / kind).glob("*.npy"))}
    return {name: np.load(path, allow_pickle=False) for name, path in files.items()}


def item_content(state: State, catalogue: Catalogue, config: TrainCandidateConfig) -> np.ndarray:
    """Return float32 ``[N, K]``: mean embeddings of each item's categories and, if configured, words."""
    everything = np.arange(len(catalogue))
    parts = [_bag_means(table_of(state, "category"), *catalogue.category_bags(everything))]
    if config.candidate.model.word_buckets:
        parts.append(_bag_means(table_of(state, "word"), *catalogue.word_bags(everything)))
    return np.concatenate(parts, axis=1)


def _bag_means(table: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return float32 ``[n, K]``: the mean row of each bag; zeros where it is empty."""
    means_NK = np.zeros((len(counts), table.shape[1]), dtype=np.float32)
    shares = np.repeat(1.0 / np.maximum(counts, 1), counts).astype(np.float32)
    np.add.at(means_NK, np.repeat(np.arange(len(counts)), counts), table[codes] * shares[:, None])
    return means_NK


def user_tower(
    state: State, content_NK: np.ndarray, catalogue: Catalogue, config: TrainCandidateConfig
) -> PortableUserTower:
    """Return the portable user tower; items without training rows are represented by their content.

    Raises:
        DataError: if its tables are too large for one ONNX file.
    """
    settings = config.candidate.model
    ids_ND = table_of(state, "item" if settings.shared_item_table else "history")
    tables: dict[str, Any] = {
        "ids_ND": closed(ids_ND, catalogue.named_in_histories(settings.shared_item_table)),
        "content_NK": closed(content_NK),
        "context_VD": None,
        "user_UD": None,
    }
    if settings.context:
        tables["context_VD"] = _trained_rows(table_of(state, "context"), catalogue.trained_contexts)
    if settings.user_id:
        tables["user_UD"] = _trained_rows(table_of(state, "user"), catalogue.trained_users)
    if (size := sum(table.nbytes for table in tables.values() if table is not None)) > PROTOBUF_LIMIT:
        raise DataError(
            f"user tower: the tables of {len(catalogue)} items and {len(catalogue.trained_users)} users make {size} "
            f"bytes, one ONNX file holds {PROTOBUF_LIMIT}; lower candidate.model.dimension, "
            "candidate.model.category_dimension or candidate.model.word_dimension, or set candidate.model.user_id = "
            "false"
        )
    tower = loaded(QueryTower(sizes_of(catalogue, config), settings), state, "query_tower")
    portable: PortableUserTower = PortableUserTower(tower=tower, context_sizes=catalogue.context_sizes, **tables).eval()
    return portable


def _trained_rows(table: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Return the closed table with zeros in rows without training; a table has at least one row, even for nothing."""
    known = np.zeros(len(table), dtype=bool)
    known[: len(trained)] = trained
    return closed(table, known)


def item_vectors(
    state: State, content_NK: np.ndarray, catalogue: Catalogue, config: TrainCandidateConfig
) -> np.ndarray:
    """Return float32 ``[N, D]`` vectors of the whole catalogue, with ages at the end of the candidate period."""
    ids_ND = table_of(state, "item") * (catalogue.frequency > 0).astype(np.float32)[:, None]
    ages_N = catalogue.ages(np.arange(len(catalogue)), catalogue.end_ms)
    columns = [torch.from_numpy(each) for each in (ids_ND, content_NK, catalogue.log_duration, ages_N)]
    tower = loaded(ItemTower(config.candidate.model), state, "item_tower")
    vectors_ND = np.empty((len(catalogue), config.candidate.model.dimension), dtype=np.float32)
    with torch.inference_mode(), progress_of("embed items", len(catalogue), "item") as advance:
        for start in range(0, len(catalogue), _BLOCK):
            rows = slice(start, start + _BLOCK)
            vectors_ND[rows] = tower(*(column[rows] for column in columns)).numpy()
            advance(len(vectors_ND[rows]))
    return vectors_ND


def write_onnx(tower: PortableUserTower, path: Path, length: int) -> None:
    """Write the tower as one ONNX file with a dynamic batch.

    Raises:
        ReleaseError: if the exporter did not keep the tables that a refresh appends to.
    """
    n_items = tower.ids.shape[0] - 1
    values = {
        "history_items": torch.full((2, length), n_items, dtype=torch.int64),
        "history_signals": torch.zeros(2, length, dtype=torch.int64),
        "history_ages": torch.zeros(2, length, dtype=torch.int64),
        "context": torch.zeros(2, len(tower.context_starts), dtype=torch.int64),
        "user": torch.zeros(2, dtype=torch.int64),
    }
    dynamic = {name: {0: "batch"} for name in tower.inputs}
    model = onnx_model(tower, {name: values[name] for name in tower.inputs}, ["query"], dynamic)
    item_tables(model, n_items)
    onnx.save_model(model, str(path))


def _deviation(directory: Path, work: Path, vectors_ND: np.ndarray) -> float:
    """Return the largest difference from the sharded model's vectors on its probe batch.

    It is relative to the largest number of the model's vectors where that is above 1.
    """
    names = ("items", "signals", "ages", "users", "context", "candidates", "query", "vectors")
    probe = {name: np.load(work / f"probe_{name}.npy", allow_pickle=False) for name in names}
    inputs = TowerInputs(**{name: probe[name] for name in names[:5]})
    query_BD = UserTower(directory / TOWER_FILE).embed(inputs)
    gaps = [
        np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())
        for found, wanted in ((query_BD, probe["query"]), (vectors_ND[probe["candidates"]], probe["vectors"]))
    ]
    return float(max(gaps))
