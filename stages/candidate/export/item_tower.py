"""Writes ``item_tower.onnx`` from un-sharded weights.

Shapes: B items, C rows of a table of bags, D dimensions, K content dimensions (of one table, or of all of them
together), M entries of a bag at most, N items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.export.onnx_export import State, closed, loaded, onnx_model, table_of
from stages.candidate.export.user_tower_tables import PROTOBUF_LIMIT
from stages.candidate.onnx_towers import OUTPUTS, SIZES
from stages.candidate.towers.two_tower import ItemTower
from stages.contracts.errors import DataError


class PortableItemModule(nn.Module):  # type: ignore[misc]
    """The item tower without TorchRec: gathers from constant tables, then the trained layers.

    Args:
        ids_ND: float32 ``[N + 1, D]``, zeros for items that no example had as its target, and in the last row.
        categories_CK: float32 ``[C + 1, K + 1]``, see ``counted``.
        words_CK: likewise; None where the tower reads no words.
        tower: the trained layers.
        duration_scale: as ``Catalogue.duration_scale``.
        reads_age: whether the tower reads the items' ages.
    """

    def __init__(
        self,
        ids_ND: np.ndarray,
        categories_CK: np.ndarray,
        words_CK: np.ndarray | None,
        tower: ItemTower,
        duration_scale: np.ndarray,
        reads_age: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("ids", torch.from_numpy(ids_ND))
        self.register_buffer("categories", torch.from_numpy(categories_CK))
        self.register_buffer("words", None if words_CK is None else torch.from_numpy(words_CK))
        self.tower = tower
        self._mean, self._deviation = (float(value) for value in duration_scale)
        self._reads_age = reads_age

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of ``forward`` that this tower takes, in order."""
        optional = [name for name, read in (("word_codes", self.words is not None), ("age_s", self._reads_age)) if read]
        return ("item_rows", "category_codes", "duration_s", *optional)

    def forward(
        self,
        item_rows: torch.Tensor,
        category_codes: torch.Tensor,
        duration_s: torch.Tensor,
        word_codes: torch.Tensor | None = None,
        age_s: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors float32 ``[B, D]`` and content float32 ``[B, K]``.

        Args:
            item_rows: int64 ``[B]``, N for an item without a row.
            category_codes: int64 ``[B, M]``, padded with the number of categories.
            duration_s: float32 ``[B]`` seconds; NaN, infinite or negative where unknown.
            word_codes: int64 ``[B, M]``, padded with the number of buckets.
            age_s: int64 ``[B]`` seconds.
        """
        parts = [_bag_means(category_codes, self.categories)]
        if word_codes is not None:
            parts.append(_bag_means(word_codes, self.words))
        content_BK = torch.cat(parts, dim=1)
        ages_B = torch.zeros_like(item_rows) if age_s is None else age_s
        return self.tower(
            F.embedding(item_rows, self.ids), content_BK, self._log_duration(duration_s), ages_B
        ), content_BK

    def _log_duration(self, duration_s: torch.Tensor) -> torch.Tensor:
        """``item_features.standardised_log``, in float64 as there: a small deviation amplifies rounding."""
        known_B = (duration_s >= 0) & (duration_s <= torch.finfo(torch.float32).max)  # false for NaN as well
        logs_B = torch.log1p(torch.where(known_B, duration_s, 0.0).to(torch.float64))
        scaled_B = ((logs_B - self._mean) / self._deviation).to(torch.float32)
        return torch.where(known_B, scaled_B, 0.0)


def _bag_means(codes_BM: torch.Tensor, table_CK: torch.Tensor) -> torch.Tensor:
    """Return ``[B, K]``, means over the entries that count; zeros where none does."""
    sums_BK = F.embedding(codes_BM, table_CK).sum(dim=1)
    return sums_BK[:, :-1] / sums_BK[:, -1:].clamp(min=1.0)


def counted(table_CK: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the table as float32 ``[C + 1, K + 1]``; its last column is 1 for rows that count, else 0.

    A row that no training item has (mostly a word bucket) was never trained. It becomes zero and does not count,
    like the new last row, which is for padding.

    Args:
        table_CK: the table.
        codes: int64, of all items of the training.
    """
    is_used_C = np.bincount(codes, minlength=len(table_CK)) > 0
    return closed(np.concatenate([table_CK, np.ones((len(table_CK), 1), dtype=np.float32)], axis=1), is_used_C)


def portable_item_tower(state: State, catalogue: Catalogue, config: TrainCandidateConfig) -> PortableItemModule:
    """Return the item tower with the weights that ``user_tower.item_vectors`` uses.

    Raises:
        DataError: if its tables are too large for one ONNX file.
    """
    settings = config.candidate.model
    ids_ND = closed(table_of(state, "item"), catalogue.frequency > 0)
    categories_CK = counted(table_of(state, "category"), catalogue.codes)
    words_CK = counted(table_of(state, "word"), catalogue.word_codes) if settings.word_buckets else None
    size = ids_ND.nbytes + categories_CK.nbytes + (0 if words_CK is None else words_CK.nbytes)
    if size > PROTOBUF_LIMIT:
        raise DataError(
            f"item tower: the tables of {len(catalogue)} items make {size} bytes, one file holds {PROTOBUF_LIMIT}; "
            "lower candidate.model.dimension or candidate.model.word_buckets"
        )
    tower = loaded(ItemTower(settings), state, "item_tower")
    module: PortableItemModule = PortableItemModule(
        ids_ND, categories_CK, words_CK, tower, catalogue.duration_scale, settings.item_age
    ).eval()
    return module


def write_item_tower(state: State, catalogue: Catalogue, config: TrainCandidateConfig, path: Path) -> None:
    """Write the item tower as one ONNX file, whose metadata hold the sizes that padding needs.

    Raises:
        DataError: if its tables are too large for one ONNX file.
    """
    module = portable_item_tower(state, catalogue, config)
    sizes = {
        "n_rows": len(catalogue),
        "n_categories": module.categories.shape[0] - 1,
        "n_words": 0 if module.words is None else module.words.shape[0] - 1,
    }
    values = {
        "item_rows": torch.full((3,), sizes["n_rows"]),
        "category_codes": torch.full((3, 2), sizes["n_categories"]),
        "duration_s": torch.zeros(3),
        "word_codes": torch.full((3, 4), sizes["n_words"]),
        "age_s": torch.zeros(3, dtype=torch.int64),
    }
    dynamic = {name: {0: "batch"} for name in module.inputs}
    for name, width in (("category_codes", "categories"), ("word_codes", "words")):
        if name in dynamic:
            dynamic[name][1] = width
    model = onnx_model(module, {name: values[name] for name in module.inputs}, OUTPUTS, dynamic)
    for name in SIZES:
        model.metadata_props.add(key=name, value=str(sizes[name]))
    onnx.save_model(model, str(path))
