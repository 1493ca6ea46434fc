"""From a batch of arrays to what the model reads: one jagged tensor of distinct ids, and slots in it.

Shapes: B queries, R histories, C candidates, L history length, N items, U distinct items, S slots of them, X context
columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchrec.distributed.embedding_types import KJTList
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

from stages.candidate.batches import Batch
from stages.candidate.catalogue import Catalogue
from stages.candidate.config import CandidateConfig
from stages.candidate.encoders import Histories
from stages.candidate.parts import parts

ITEM, HISTORY, CATEGORY, WORD, USER, CONTEXT = "item", "history", "category", "word", "user", "context"
_EMPTY = torch.zeros(0)


@dataclass(frozen=True)
class SentFeatures:
    """Features of all ranks for the tables of this one, as TorchRec's ``input_dist`` brought them.

    Attributes:
        context: of the sharded collection, made for this batch.
        features: what it looks up.
    """

    context: Multistreamable
    features: KJTList


@dataclass(frozen=True)
class Content:
    """Which rows of a content table make up what is known of the items: their mean.

    Attributes:
        codes: int64 ``[M]``, place of each code's row among those that were looked up.
        slots: int64 ``[M]``, slot that each belongs to; None where there is one a slot, in order.
        shares: float32 ``[M]``, one by the number of codes of the slot; None as ``slots``.
        n_slots: S.
    """

    codes: torch.Tensor
    slots: torch.Tensor | None
    shares: torch.Tensor | None
    n_slots: int

    def means(self, rows_CK: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[S, K]``, zeros where a slot has no code.

        Args:
            rows_CK: distinct codes' rows.
        """
        rows_MK = rows_CK.index_select(0, self.codes)
        if self.slots is None or self.shares is None:
            return rows_MK
        zeros_SK = rows_CK.new_zeros(self.n_slots, rows_CK.shape[1])
        return zeros_SK.index_add(0, self.slots, rows_MK * self.shares[:, None])


@dataclass(frozen=True)
class ModelInputs:
    """Tensors of one step.

    Attributes:
        features: bags of the tables' rows: distinct items, categories and words, each a feature for each of P parts
            and one row a bag; users and contexts by query. Bag b of part p of the items is slot b * P + p. Behind
            the last bag of each feature there is an empty one: a row of zeros, the first of which padding has.
        n_queries: B.
        histories: without their tables, which the lookup fills in.
        query_row, query_place: int64 ``[B]`` or None, as for ``QueryTower``.
        candidate_slot: int64 ``[C]``, slot of each candidate.
        candidate_named: float32 ``[C]``, 0 hides a candidate's id.
        log_duration: float32 ``[C]``; item_age_s: int64 ``[C]`` seconds.
        content: by key, which of the rows looked up for it are a slot's content.
        sent: ``features`` where they have been sent ahead; see ``ahead``.
        rows: waits for what the tables hold, by feature, where it has been asked for; see ``rows.RowExchange``.
    """

    features: KeyedJaggedTensor
    n_queries: int
    histories: Histories
    query_row: torch.Tensor | None
    query_place: torch.Tensor | None
    candidate_slot: torch.Tensor
    candidate_named: torch.Tensor
    log_duration: torch.Tensor
    item_age_s: torch.Tensor
    content: Mapping[str, Content]
    sent: SentFeatures | None = None
    rows: Callable[[], dict[str, torch.Tensor]] | None = None


class InputMaker:
    """Makes ``ModelInputs`` of batches; keeps scratch memory of the catalogue's size."""

    def __init__(self, catalogue: Catalogue, config: CandidateConfig, device: torch.device) -> None:
        self._catalogue, self._config, self._device = catalogue, config, device
        self._items, self._slot_N = _Distinguisher(len(catalogue)), np.zeros(len(catalogue) + 1, dtype=np.int32)
        self._codes = {CATEGORY: _Distinguisher(catalogue.n_categories)}
        if config.word_buckets:
            self._codes[WORD] = _Distinguisher(config.word_buckets)
        self._parts = parts(config.parts_of(len(catalogue)))
        self._context_starts = np.concatenate([[0], np.cumsum(catalogue.context_sizes)])[:-1]

    def __call__(self, batch: Batch) -> ModelInputs:
        """Return the tensors of ``batch`` on the device."""
        distinct = self._distinct(batch)
        features, content = self._features(batch, distinct)
        histories = Histories(
            ids=_EMPTY,
            content=_EMPTY,
            slots=self._tensor(self._slot_N[batch.history].astype(np.int64)),
            signals=self._tensor(batch.signals),
            ages=self._tensor(batch.ages),
            kept=self._tensor(batch.kept),
            named=self._tensor(batch.named),
        )
        return ModelInputs(
            features=features,
            n_queries=batch.n_queries,
            histories=histories,
            query_row=None if batch.query_row is None else self._tensor(batch.query_row),
            query_place=None if batch.query_place is None else self._tensor(batch.query_place),
            candidate_slot=self._tensor(self._slot_N[batch.items].astype(np.int64)),
            candidate_named=self._tensor(batch.item_named.astype(np.float32)),
            log_duration=self._tensor(self._catalogue.log_duration[batch.items]),
            item_age_s=self._tensor(batch.item_ages),
            content=content,
        )

    def _distinct(self, batch: Batch) -> _Distinct:
        """Return the batch's distinct items, and remember the slot of each; padding's is the first empty one."""
        items_U = self._items(batch.history[batch.kept], batch.items)
        n_parts = len(self._parts)
        part_U = (items_U % n_parts).astype(np.uint16)
        sizes_P = np.bincount(part_U, minlength=n_parts)
        if n_parts > 1:
            order_U = np.argsort(part_U, kind="stable")
            items_U, part_U = items_U[order_U], part_U[order_U]
        within_U = np.arange(len(items_U)) - np.repeat(np.cumsum(sizes_P) - sizes_P, sizes_P)
        slots_U = within_U * n_parts + part_U
        # Only what the batch names is read: a fill would pass over the whole catalogue.
        self._slot_N[batch.history] = sizes_P[0] * n_parts
        self._slot_N[items_U] = slots_U
        return _Distinct(items_U, slots_U, sizes_P)

    def _features(self, batch: Batch, distinct: _Distinct) -> tuple[KeyedJaggedTensor, dict[str, Content]]:
        """Return what to look up, and by key of content who has which of it."""
        ids = distinct.items // len(self._parts)
        keys = (ITEM,) if self._config.shared_item_table else (ITEM, HISTORY)
        bags = [_Bags(self._names(key), ids, np.ones_like(ids), distinct.sizes) for key in keys]
        content = {}
        for key in self._codes:
            of = self._catalogue.category_bags if key == CATEGORY else self._catalogue.word_bags
            found, content[key] = self._content(key, *of(distinct.items), distinct)
            bags.append(found)
        if self._config.user_id:
            bags.append(_known(USER, batch.users[:, None], batch.users[:, None] >= 0))
        if self._config.context:
            bags.append(_known(CONTEXT, batch.context - 1 + self._context_starts, batch.context > 0))
        counts = [own for each in bags for own in each.split()]
        stride = 1 + max(len(own) for own in counts)
        features = KeyedJaggedTensor(
            keys=[name for each in bags for name in each.names],
            values=self._tensor(np.concatenate([each.values for each in bags])),
            lengths=self._tensor(np.concatenate([np.pad(own, (0, stride - len(own))) for own in counts])),
            length_per_key=[int(own.sum()) for own in counts],  # else they come back from the device
        )
        return features, content

    def _content(
        self, key: str, codes_M: np.ndarray, counts_U: np.ndarray, distinct: _Distinct
    ) -> tuple[_Bags, Content]:
        """Return bags of the distinct codes, one each, dealt out to the parts, and who has which."""
        codes_C = self._codes[key](codes_M)
        number_M = self._codes[key].numbers(codes_C, codes_M)
        sizes_P = np.array([part.size(len(codes_C)) for part in self._parts])
        dealt_C = np.concatenate([codes_C[part.rows] for part in self._parts])
        bags = _Bags(self._names(key), dealt_C, np.ones_like(dealt_C), sizes_P)
        n_slots = int(distinct.sizes.max() + 1) * len(self._parts)
        if (counts_U == 1).all():
            code_S = np.full(n_slots, len(codes_C))  # of what is no item's slot: an empty bag
            code_S[distinct.slots] = number_M
            return bags, Content(self._tensor(code_S), None, None, n_slots)
        slots_M = np.repeat(distinct.slots, counts_U)
        shares_M = np.repeat(1.0 / np.maximum(counts_U, 1), counts_U).astype(np.float32)
        return bags, Content(self._tensor(number_M), self._tensor(slots_M), self._tensor(shares_M), n_slots)

    def _names(self, key: str) -> list[str]:
        return [part.name(key) for part in self._parts]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def alone() -> bool:
    """Return whether there is no other rank."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def alike_on_all_ranks(inputs: ModelInputs) -> ModelInputs:
    """Return the inputs with the stride of the rank that has the largest: sharded lookups want it equal.

    Ranks meet different numbers of distinct items. A collective: every rank calls it at the same step.
    """
    if inputs.sent is not None or alone():
        return inputs
    return with_stride(inputs, largest_stride(inputs.features)())


def largest_stride(features: KeyedJaggedTensor) -> Callable[[], int]:
    """Ask for the largest stride over the ranks, and return what waits for the answer; a collective."""
    largest = torch.tensor([features.stride()], device=features.lengths().device)
    work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

    def answer() -> int:
        work.wait()
        return int(largest)

    return answer


def with_stride(inputs: ModelInputs, stride: int) -> ModelInputs:
    """Return the inputs with empty bags up to ``stride``."""
    features = inputs.features
    missing = stride - features.stride()
    if not missing:
        return inputs
    lengths = F.pad(features.lengths().view(len(features.keys()), -1), (0, missing))
    padded = KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        lengths=lengths.reshape(-1),
        length_per_key=features.length_per_key(),
    )
    return dataclasses.replace(inputs, features=padded)


class _Distinguisher:
    """Finds distinct numbers below ``n``, in passes over what it is given only; keeps scratch memory."""

    def __init__(self, n: int) -> None:
        self._is_present = np.zeros(n, dtype=bool)

    @cached_property
    def _number(self) -> np.ndarray:
        return np.zeros(len(self._is_present), dtype=np.int64)

    def __call__(self, *values: np.ndarray) -> np.ndarray:
        """Return the distinct ones of all arrays, ascending."""
        for each in values:
            self._is_present[each] = True
        distinct = np.flatnonzero(self._is_present)
        self._is_present[distinct] = False
        return distinct

    def numbers(self, distinct: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the place of each of ``values`` in ``distinct``."""
        self._number[distinct] = np.arange(len(distinct))
        found: np.ndarray = self._number[values]
        return found


@dataclass(frozen=True)
class _Distinct:
    """Distinct items of a batch: int64 ``[U]`` by part and number, their slots, and how many are in each part."""

    items: np.ndarray
    slots: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class _Bags:
    """Bags of one or more features: all values int64, how many are in each bag, and how many bags a feature has."""

    names: list[str]
    values: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray

    def split(self) -> list[np.ndarray]:
        """Return the counts of each feature."""
        return np.split(self.counts, np.cumsum(self.sizes)[:-1])


def _known(name: str, values_BX: np.ndarray, known_BX: np.ndarray) -> _Bags:
    counts_B = known_BX.sum(axis=1).astype(np.int64)
    return _Bags([name], values_BX[known_BX].astype(np.int64), counts_B, np.array([len(counts_B)]))
