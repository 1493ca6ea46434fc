"""From a batch of arrays to what the model reads: one jagged tensor of distinct ids, and slots in it.

Shapes: B queries, C candidates or distinct codes, L history length, M codes, N items, U distinct items, S slots of
them, X context columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.config import ModelConfig
from stages.candidate.data.item_features import Catalogue
from stages.candidate.towers.encoders import Histories
from stages.candidate.towers.inputs import CATEGORY, CONTEXT, HISTORY, ITEM, USER, WORD, ModelInputs, Pooling
from stages.candidate.towers.table_parts import dealt, parts
from stages.candidate.training.batches import Batch
from stages.contracts.ragged import places_in_rows, row_offsets

_EMPTY = torch.zeros(0)


class InputMaker:
    """Makes ``ModelInputs`` of batches; keeps scratch memory of the catalogue's size."""

    def __init__(self, catalogue: Catalogue, config: ModelConfig, device: torch.device) -> None:
        self._catalogue, self._config, self._device = catalogue, config, device
        self._slot_N = np.zeros(len(catalogue) + 1, dtype=np.int32)
        self._content = {CATEGORY: (_Distinguisher(catalogue.n_categories), catalogue.category_bags)}
        if config.word_buckets:
            self._content[WORD] = (_Distinguisher(config.word_buckets), catalogue.word_bags)
        self._contexts = _Distinguisher(int(catalogue.context_sizes.sum()))
        self._parts = parts(config.parts_of(len(catalogue)))
        self._context_starts = row_offsets(catalogue.context_sizes)[:-1]

    def __call__(self, batch: Batch) -> ModelInputs:
        """Return the tensors of ``batch`` on the device."""
        distinct = self._distinct(batch)
        content, content_bags = self._of_items(distinct)
        of_query, query_bags = self._of_queries(batch)
        histories = Histories(
            ids=_EMPTY,
            content=_EMPTY,
            slots=self._tensor(self._slot_N.take(batch.history).astype(np.int64)),
            signals=self._tensor(batch.signals),
            ages=self._tensor(batch.ages),
            kept=self._tensor(batch.kept),
            named=self._tensor(batch.named),
        )
        return ModelInputs(
            features=self._features([*self._item_bags(distinct), *content_bags, *query_bags]),
            histories=histories,
            query_row=None if batch.query_row is None else self._tensor(batch.query_row),
            query_place=None if batch.query_place is None else self._tensor(batch.query_place),
            candidate_slot=self._tensor(self._slot_N[batch.items].astype(np.int64)),
            candidate_named=self._tensor(batch.item_named.astype(np.float32)),
            log_duration=self._tensor(self._catalogue.log_duration[batch.items]),
            item_age_s=self._tensor(batch.item_ages),
            content=content,
            of_query=of_query,
        )

    def _distinct(self, batch: Batch) -> _Distinct:
        """Return the batch's distinct items, and remember the slot of each; padding has the first empty slot."""
        named = np.concatenate([batch.history[batch.kept], batch.items])
        places = np.arange(len(named), dtype=np.int32)
        # Only the batch's items are read and written: a search or a fill would pass over the whole catalogue.
        self._slot_N[named] = places
        items_U = np.sort(named[self._slot_N[named] == places])
        n_parts = len(self._parts)
        part_U = (items_U % n_parts).astype(np.uint16)
        sizes_P = np.bincount(part_U, minlength=n_parts)
        if n_parts > 1:
            order_U = np.argsort(part_U, kind="stable")
            items_U, part_U = items_U[order_U], part_U[order_U]
        slots_U = places_in_rows(sizes_P) * n_parts + part_U
        self._slot_N[batch.history[~batch.kept]] = sizes_P[0] * n_parts
        self._slot_N[items_U] = slots_U
        return _Distinct(items_U, slots_U, sizes_P)

    def _item_bags(self, distinct: _Distinct) -> list[_Bags]:
        ids = distinct.items // len(self._parts)
        keys = (ITEM,) if self._config.shared_item_table else (ITEM, HISTORY)
        return [_Bags([part.name(key) for part in self._parts], ids, distinct.sizes) for key in keys]

    def _of_items(self, distinct: _Distinct) -> tuple[dict[str, Pooling], list[_Bags]]:
        """Return by key the pooling of distinct codes into items, and the bags of the codes by partition."""
        found, bags, n_slots = {}, [], int(distinct.sizes.max() + 1) * len(self._parts)
        for key, (distinguish, of) in self._content.items():
            codes_M, counts_U = of(distinct.items)
            codes_C, number_M = distinguish(codes_M)
            to = dealt(distinguish.n, len(self._parts))
            sizes = np.array([part.size(len(codes_C)) for part in to])
            bags.append(
                _Bags([part.name(key) for part in to], np.concatenate([codes_C[part.rows] for part in to]), sizes)
            )
            found[key] = self._pooling(number_M, counts_U, distinct.slots, n_slots, len(codes_C), mean=True)
        return found, bags

    def _of_queries(self, batch: Batch) -> tuple[dict[str, Pooling], list[_Bags]]:
        """Return by key the pooling of known users and distinct contexts into queries, and the bags of both."""
        found: dict[str, Pooling] = {}
        bags, n = [], batch.n_queries

        def add(key: str, codes_C: np.ndarray, number_M: np.ndarray, counts_B: np.ndarray) -> None:
            bags.append(_Bags([key], codes_C, np.array([len(codes_C)])))
            found[key] = self._pooling(number_M, counts_B, np.arange(n), n, len(codes_C), mean=False)

        if self._config.user_id:
            known_B = batch.users >= 0
            users = batch.users[known_B]
            add(USER, users, np.arange(len(users)), known_B.astype(np.int64))
        if self._config.context:
            known_BX = batch.context > 0
            add(CONTEXT, *self._contexts((batch.context - 1 + self._context_starts)[known_BX]), known_BX.sum(axis=1))
        return found, bags

    def _pooling(
        self,
        number_M: np.ndarray,
        counts_U: np.ndarray,
        slots_U: np.ndarray,
        n_slots: int,
        n_codes: int,
        mean: bool,
    ) -> Pooling:
        """Return the pooling of ``n_codes`` distinct codes; slot ``slots_U[u]`` has the next ``counts_U[u]`` ones."""
        if (counts_U <= 1).all():
            code_S = np.full(n_slots, n_codes)  # an empty bag for slots without a code
            code_S[slots_U[counts_U == 1]] = number_M
            return Pooling(self._tensor(code_S), None, None, n_slots)
        weights_U = 1.0 / np.maximum(counts_U, 1) if mean else np.ones(len(counts_U))
        slots_M, weights_M = np.repeat(slots_U, counts_U), np.repeat(weights_U, counts_U).astype(np.float32)
        return Pooling(self._tensor(number_M), self._tensor(slots_M), self._tensor(weights_M), n_slots)

    def _features(self, bags: list[_Bags]) -> KeyedJaggedTensor:
        """Return the bags of all features, each feature filled up with empty bags to a common number."""
        sizes = np.concatenate([each.sizes for each in bags])
        lengths = np.arange(sizes.max() + 1) < sizes[:, None]
        return KeyedJaggedTensor(
            keys=[name for each in bags for name in each.names],
            values=self._tensor(np.concatenate([each.values for each in bags])),
            lengths=self._tensor(lengths.reshape(-1).astype(np.int64)),
            length_per_key=sizes.tolist(),  # else they are copied back from the device
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


class _Distinguisher:
    """Finds distinct numbers below a small ``n``; keeps scratch memory."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._is_present, self._number = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct values, ascending, and the place of each of ``values`` among them."""
        self._is_present[values] = True
        distinct = np.flatnonzero(self._is_present)
        self._is_present[distinct] = False
        self._number[distinct] = np.arange(len(distinct))
        return distinct, self._number[values]


@dataclass(frozen=True)
class _Distinct:
    """Distinct items of a batch: int64 ``[U]`` by partition and number, their slots, and each partition's size."""

    items: np.ndarray
    slots: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class _Bags:
    """Bags of one or more features: one int64 value per bag, and how many bags each feature has."""

    names: list[str]
    values: np.ndarray
    sizes: np.ndarray
