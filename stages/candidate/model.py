"""The two towers on TorchRec's embedding tables.

Shapes: B queries, C candidates (C >= B), D dimensions, K category dimensions, L history length, N items.

The user tower reads the history only, never a user id, so that a user without training rows is served
from events alone. Both towers add a learnt correction to the item embeddings that they stand on
(``normalise(x + mlp(...))``): with little data the correction stays small and the towers begin as a
factorised item-to-item model.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stages.candidate.config import CandidateConfig
from stages.candidate.data import Catalogue

HISTORY, ITEM, HISTORY_CATEGORY, ITEM_CATEGORY = "history", "item", "history_category", "item_category"
KEYS = (HISTORY, ITEM, HISTORY_CATEGORY, ITEM_CATEGORY)


class Tower(nn.Module):  # type: ignore[misc]
    """``normalise(base + mlp(inputs))``, on the unit sphere."""

    def __init__(self, width: int, hidden: tuple[int, ...], dimension: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        last = nn.Linear(width, dimension)
        # A small start: the towers begin near the plain embeddings and learn to leave them.
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, base_BD: torch.Tensor, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, D]`` of unit length."""
        return F.normalize(base_BD + self.mlp(inputs_BW), dim=1, eps=1e-6)


class TwoTower(nn.Module):  # type: ignore[misc]
    """Both towers over one weighted ``EmbeddingBagCollection``.

    Args:
        n_items: rows of the item table.
        n_categories: rows of the category table; a table has at least one row.
        config: widths and whether histories share the candidates' item table.
        device: of the tables; ``meta`` leaves their storage to the sharder.
    """

    def __init__(
        self, n_items: int, n_categories: int, config: CandidateConfig, device: torch.device | None = None
    ) -> None:
        super().__init__()
        item, category = config.dimension, config.category_dimension
        if config.shared_item_table:
            tables = [_table("item", n_items, item, [HISTORY, ITEM])]
        else:
            tables = [_table("history", n_items, item, [HISTORY]), _table("item", n_items, item, [ITEM])]
        tables.append(_table("category", max(1, n_categories), category, [HISTORY_CATEGORY, ITEM_CATEGORY]))
        self.embeddings = EmbeddingBagCollection(tables=tables, is_weighted=True, device=device)
        self.query_tower = Tower(item + category, config.hidden, item)
        self.item_tower = Tower(item + category + 1, config.hidden, item)

    def forward(
        self, features: KeyedJaggedTensor, log_duration_C: torch.Tensor, n_queries: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries float32 ``[B, D]`` and candidates float32 ``[C, D]``.

        Args:
            features: keys as in ``KEYS``, stride C; histories of the rows from B on are empty.
            log_duration_C: float32, of the candidates.
            n_queries: B.
        """
        pooled: KeyedTensor = self.embeddings(features)
        history_BD, history_BK = pooled[HISTORY][:n_queries], pooled[HISTORY_CATEGORY][:n_queries]
        query_BD = self.query_tower(history_BD, torch.cat([history_BD, history_BK], dim=1))
        item_CD = pooled[ITEM]
        inputs_CW = torch.cat([item_CD, pooled[ITEM_CATEGORY], log_duration_C[:, None]], dim=1)
        return query_BD, self.item_tower(item_CD, inputs_CW)


def jagged_features(
    history_BL: np.ndarray,
    weights_BL: np.ndarray,
    id_weights_BL: np.ndarray,
    items_C: np.ndarray,
    id_weights_C: np.ndarray,
    catalogue: Catalogue,
    device: torch.device,
) -> KeyedJaggedTensor:
    """Return the features of one batch, stride C.

    Queries and candidates differ in number, but a ``KeyedJaggedTensor`` has one stride: the histories
    of rows B to C are empty bags, which cost nothing.

    Args:
        history_BL: int64 items, padded with N.
        weights_BL: float32, 0 at padding; what the categories get.
        id_weights_BL: float32, 0 at padding; what the ids get.
        items_C: int64 candidates.
        id_weights_C: float32, 0 hides a candidate's id.
        catalogue: categories of the items.
        device: where the tensors go.
    """
    kept_BL = history_BL < len(catalogue)
    rest = np.zeros(len(items_C) - len(history_BL), dtype=np.int64)
    counts_B = kept_BL.sum(axis=1)
    history = history_BL[kept_BL]
    codes_h, shares_h, n_codes = catalogue.category_bags(history, weights_BL[kept_BL])
    n_codes_B = np.bincount(np.repeat(np.arange(len(counts_B)), counts_B), n_codes, len(counts_B)).astype(np.int64)
    codes_c, shares_c, n_codes_C = catalogue.category_bags(items_C, np.ones(len(items_C), dtype=np.float32))
    values = np.concatenate([history, items_C, codes_h, codes_c])
    weights = np.concatenate([id_weights_BL[kept_BL], id_weights_C, shares_h, shares_c])
    lengths = np.concatenate([counts_B, rest, np.ones(len(items_C), np.int64), n_codes_B, rest, n_codes_C])
    return KeyedJaggedTensor(
        keys=list(KEYS),
        values=torch.from_numpy(values).to(device),
        weights=torch.from_numpy(weights.astype(np.float32)).to(device),
        lengths=torch.from_numpy(lengths).to(device),
    )


def _table(name: str, rows: int, dimension: int, features: list[str]) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=dimension,
        feature_names=features,
        pooling=PoolingType.SUM,
        # Of length about one whatever the table's size; the default shrinks with the number of rows.
        init_fn=lambda weight: nn.init.normal_(weight, std=dimension**-0.5),
    )
