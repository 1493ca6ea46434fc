"""Writes ``item_tower.onnx`` from un-sharded weights.

Shapes: B items, C categories, D dimensions, K content dimensions, M categories an item at most, N items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from stages.candidate.item_tower import INPUTS


class ItemTowerModule(nn.Module):  # type: ignore[misc]
    """The item tower without TorchRec: gathers from constant tables, then the trained layers.

    Args:
        ids_ND: float32, id embeddings, zeros for items that no example had as its target.
        categories_CK: float32.
        tower: the trained layers: (ids ``[B, D]``, inputs ``[B, D + K + 1]``) to unit vectors.
        duration_scale: mean and deviation of ``log1p`` of the durations in training.
    """

    def __init__(
        self, ids_ND: np.ndarray, categories_CK: np.ndarray, tower: nn.Module, duration_scale: np.ndarray
    ) -> None:
        super().__init__()
        self.register_buffer("ids", torch.from_numpy(_closed(ids_ND)))
        self.register_buffer("categories", torch.from_numpy(_closed(categories_CK)))
        self.tower = tower
        self._mean, self._deviation = (float(value) for value in duration_scale)

    def forward(
        self, item_rows: torch.Tensor, category_codes: torch.Tensor, duration_s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vectors float32 ``[B, D]`` and content ``[B, K]``.

        Args:
            item_rows: int64 ``[B]``, N for an item without a row.
            category_codes: int64 ``[B, M]``, padded with C.
            duration_s: float32 ``[B]``, NaN or negative where unknown.
        """
        known_BM = (category_codes < self.categories.shape[0] - 1).to(torch.float32)
        content_BK = self.categories[category_codes].sum(dim=1) / known_BM.sum(dim=1).clamp(min=1.0).unsqueeze(1)
        known_B = duration_s >= 0  # false for NaN as well
        logs_B = torch.log1p(torch.where(known_B, duration_s, torch.zeros_like(duration_s)))
        scaled_B = (logs_B - self._mean) / self._deviation
        log_duration_B = torch.where(known_B, scaled_B, torch.zeros_like(scaled_B))
        ids_BD = self.ids[item_rows]
        return self.tower(ids_BD, torch.cat([ids_BD, content_BK, log_duration_B.unsqueeze(1)], dim=1)), content_BK


def item_tower_program(module: ItemTowerModule) -> onnx.ModelProto:
    """Return the tower as an ONNX model with a dynamic batch, its sizes among its metadata."""
    n_rows, n_categories = module.ids.shape[0] - 1, module.categories.shape[0] - 1
    example = torch.full((3,), n_rows), torch.full((3, 2), n_categories), torch.zeros(3)
    batch, width = torch.export.Dim("batch"), torch.export.Dim("width")
    program = torch.onnx.export(
        module.eval(),
        example,
        input_names=INPUTS,
        output_names=["vector", "content"],
        dynamic_shapes={"item_rows": {0: batch}, "category_codes": {0: batch, 1: width}, "duration_s": {0: batch}},
        dynamo=True,
        verbose=False,
    )
    return program.model_proto


def save_item_tower(model: onnx.ModelProto, n_rows: int, n_categories: int, path: Path) -> None:
    """Write the model with its sizes, which a reader needs."""
    for key, value in (("n_rows", n_rows), ("n_categories", n_categories)):
        model.metadata_props.add(key=key, value=str(value))
    onnx.save_model(model, str(path))


def _closed(table: np.ndarray) -> np.ndarray:
    """Return ``table`` with a last row of zeros, for what has none of its own."""
    closed: np.ndarray = np.concatenate([table, np.zeros((1, table.shape[1]), dtype=table.dtype)])
    return closed
