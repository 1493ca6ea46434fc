"""The two towers on TorchRec's embedding tables.

Shapes: B queries, R histories (B of them, or windows of sequences), C candidates, D dimensions, K content
dimensions, L history length, N items, S slots of a batch's distinct items, T tastes.

The user tower reads the history and, if configured, the context and a user id. Without these two, it serves
a user without training rows from events alone. Both towers add a learnt correction to item embeddings
(``normalise(x + mlp(...))``). The towers begin as a factorised item-to-item model, and with little data the
correction stays small.

Tables are looked up once for each distinct item, category and word of a batch; histories and candidates gather from
there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stages.candidate.config import ModelConfig, TrainCandidateConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.towers.encoders import ENCODERS, N_AGES, Histories, Sizes, age_buckets
from stages.candidate.towers.inputs import CATEGORY, CONTEXT, HISTORY, ITEM, USER, WORD, ModelInputs
from stages.candidate.towers.table_parts import dealt, parts

AGE_DIMENSION = 8


def sizes_of(catalogue: Catalogue, settings: TrainCandidateConfig) -> Sizes:
    """Return the sizes of a model of ``catalogue``; a table has at least one row."""
    config = settings.candidate.model
    return Sizes(
        items=len(catalogue),
        item_parts=config.parts_of(len(catalogue)),
        categories=catalogue.n_categories,
        words=config.word_buckets,
        users=max(1, len(catalogue.trained_users)) if config.user_id else 0,
        context_values=max(1, int(catalogue.context_sizes.sum())) if config.context else 0,
        signals=catalogue.n_signals,
        history_length=settings.features.history_length,
        history_decay=settings.features.history_decay,
    )


def content_width(config: ModelConfig) -> int:
    """Return K, the width of what is known of an item beside its id."""
    return config.category_dimension + (config.word_dimension if config.word_buckets else 0)


class Tower(nn.Module):  # type: ignore[misc]
    """``base + mlp(inputs)``, on the unit sphere unless ``normalised`` says otherwise."""

    def __init__(self, width: int, hidden: tuple[int, ...], dimension: int, normalised: bool = True) -> None:
        super().__init__()
        self._normalised = normalised
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        last = nn.Linear(width, dimension)
        # Small initial weights: the towers begin near the plain embeddings.
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, base_BD: torch.Tensor, inputs_BW: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[B, D]`` (or ``[B, T, D]``), of unit length if normalised."""
        out_BD = base_BD + self.mlp(inputs_BW)
        return F.normalize(out_BD, dim=-1, eps=1e-6) if self._normalised else out_BD


class QueryTower(nn.Module):  # type: ignore[misc]
    """The user tower: an encoder of the history, then the correction, then what else is known.

    The same module is exported: beside item rows it needs only its own parameters.
    """

    def __init__(self, sizes: Sizes, config: ModelConfig) -> None:
        super().__init__()
        width = config.dimension + content_width(config)
        self._dimension, self._normalised = config.dimension, config.normalisation == "cosine"
        self.encoder = ENCODERS[config.encoder](sizes, config, width)
        self.correction = Tower(width, config.hidden, config.dimension, False) if self.encoder.corrected else None

    def forward(
        self,
        histories: Histories,
        extra_BD: torch.Tensor | None = None,
        row_B: torch.Tensor | None = None,
        place_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return queries ``[B, D]``, or ``[B, T, D]`` of T tastes.

        Args:
            histories: R of them.
            extra_BD: vectors of users and contexts, added before the normalisation.
            row_B: int64, history of each query; None means query b has history b.
            place_B: int64, newest entry of that history that the query may see; with ``row_B``.
        """
        # Only attention has a query at every entry; the configuration allows no other encoder here.
        query_BD = self.encoder(histories) if row_B is None else self.encoder.sequence(histories)[row_B, place_B]
        if self.correction is not None:
            query_BD = self.correction(query_BD[..., : self._dimension], query_BD)
        if extra_BD is not None:
            query_BD = query_BD + (extra_BD if query_BD.dim() == 2 else extra_BD.unsqueeze(1))
        return F.normalize(query_BD, dim=-1, eps=1e-6) if self._normalised else query_BD


class ItemTower(nn.Module):  # type: ignore[misc]
    """The item tower: id, content, duration and, if configured, the item's age."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.age_AE = nn.Parameter(torch.zeros(N_AGES, AGE_DIMENSION)) if config.item_age else None
        width = config.dimension + content_width(config) + 1 + (AGE_DIMENSION if config.item_age else 0)
        self.tower = Tower(width, config.hidden, config.dimension, config.normalisation == "cosine")

    def forward(
        self, ids_CD: torch.Tensor, content_CK: torch.Tensor, log_duration_C: torch.Tensor, age_s_C: torch.Tensor
    ) -> torch.Tensor:
        """Return ``[C, D]``; ages are int64 seconds."""
        inputs = [ids_CD, content_CK, log_duration_C[:, None]]
        if self.age_AE is not None:
            inputs.append(F.embedding(age_buckets(age_s_C), self.age_AE))
        return self.tower(ids_CD, torch.cat(inputs, dim=1))


class TwoTower(nn.Module):  # type: ignore[misc]
    """Both towers over one ``EmbeddingBagCollection``.

    Args:
        sizes: of the tables and the encoder.
        config: of the model.
        device: of the tables; ``meta`` leaves their storage to the sharder.
        log_temperature: first value of a learned temperature's logarithm, which the loss reads; None learns none.
    """

    def __init__(
        self,
        sizes: Sizes,
        config: ModelConfig,
        device: torch.device | None = None,
        log_temperature: float | None = None,
    ) -> None:
        super().__init__()
        n_items, of_item = sizes.items, parts(sizes.item_parts)
        self._parts = {ITEM: of_item, HISTORY: of_item}
        of_items = [("item", ITEM)] if config.shared_item_table else [("item", ITEM), ("history", HISTORY)]
        tables = [
            _table(part.name(name), part.size(n_items), config.dimension, [part.name(key)], config.initial_deviation)
            for name, key in of_items
            for part in of_item
        ]
        of_content = [("category", sizes.categories, config.category_dimension, CATEGORY)]
        if sizes.words:
            of_content.append(("word", sizes.words, config.word_dimension, WORD))
        for name, n, dimension, key in of_content:
            self._parts[key] = dealt(n, sizes.item_parts)
            tables.append(_table(name, n, dimension, [part.name(key) for part in self._parts[key]]))
        if sizes.users:
            tables.append(_table("user", sizes.users, config.dimension, [USER]))
        if sizes.context_values:
            tables.append(_table("context", sizes.context_values, config.dimension, [CONTEXT]))
        self.embeddings = EmbeddingBagCollection(tables=tables, device=device)
        self.query_tower = QueryTower(sizes, config)
        self.item_tower = ItemTower(config)
        if log_temperature is not None:
            self.log_temperature = nn.Parameter(torch.tensor(log_temperature))

    def forward(
        self, inputs: ModelInputs, send: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries float32 ``[B, D]`` or ``[B, T, D]`` and candidates float32 ``[C, D]``.

        Args:
            inputs: of this rank.
            send: called with the candidates as soon as they are computed, before the queries; its result replaces
                them.
        """
        # Split by feature in one operation, so that the gradients are joined in one as well.
        pooled = (self.embeddings(inputs.features) if inputs.rows is None else inputs.rows).to_dict()
        ids_SD = self._in_order(pooled, ITEM)
        content_SK = torch.cat([own(self._in_order(pooled, key)) for key, own in inputs.content.items()], dim=1)
        history_SD = self._in_order(pooled, HISTORY) if self._parts[HISTORY][0].name(HISTORY) in pooled else ids_SD
        extra = [own(pooled[key]) for key, own in inputs.of_query.items()]
        ids_CD = F.embedding(inputs.candidate_slot, ids_SD) * inputs.candidate_named[:, None]
        content_CK = F.embedding(inputs.candidate_slot, content_SK)
        candidate_CD = self.item_tower(ids_CD, content_CK, inputs.log_duration, inputs.item_age_s)
        if send is not None:
            candidate_CD = send(candidate_CD)
        histories = dataclasses.replace(inputs.histories, ids=history_SD, content=content_SK)
        query_BD = self.query_tower(histories, sum(extra) if extra else None, inputs.query_row, inputs.query_place)
        return query_BD, candidate_CD

    def _in_order(self, pooled: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
        """Return the rows of all partitions of ``key``, interleaved."""
        rows = [pooled[part.name(key)] for part in self._parts[key]]
        return rows[0] if len(rows) == 1 else torch.stack(rows, dim=1).flatten(0, 1)


def _table(
    name: str, rows: int, dimension: int, features: list[str], deviation: float | None = None
) -> EmbeddingBagConfig:
    # Rows have a length of about one for any size of the table; by default it shrinks with the number of rows.
    spread = dimension**-0.5 if deviation is None else deviation
    return EmbeddingBagConfig(
        name=name,
        num_embeddings=rows,
        embedding_dim=dimension,
        feature_names=features,
        pooling=PoolingType.SUM,
        init_fn=lambda weight: nn.init.normal_(weight, std=spread),
    )
