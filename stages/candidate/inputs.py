"""From a batch of arrays to what the model reads: one jagged tensor of distinct ids, and slots in it.

Shapes: B queries, R histories, C candidates, L history length, N items, U distinct items, X context columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor
from torchrec.streamable import Multistreamable

from stages.candidate.batches import Batch
from stages.candidate.catalogue import Catalogue
from stages.candidate.config import CandidateConfig
from stages.candidate.encoders import Histories

ITEM, HISTORY, CATEGORY, WORD, USER, CONTEXT = "item", "history", "category", "word", "user", "context"
Bags = tuple[np.ndarray, np.ndarray, np.ndarray]
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
class ModelInputs:
    """Tensors of one step.

    Attributes:
        features: bags of the tables' rows: item tables and content by distinct item, users and contexts
            by query; its stride is the larger of U + 1 and B.
        n_queries: B.
        histories: without their tables, which the lookup fills in.
        query_row, query_place: int64 ``[B]`` or None, as for ``QueryTower``.
        candidate_slot: int64 ``[C]``, distinct item of each candidate.
        candidate_named: float32 ``[C]``, 0 hides a candidate's id.
        log_duration: float32 ``[C]``; item_age_s: int64 ``[C]`` seconds.
        sent: ``features`` where they have been sent ahead; see ``ahead``.
        rows: what the tables hold of ``features``, where it has been asked for.
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
    sent: SentFeatures | None = None
    rows: LazyAwaitable[KeyedTensor] | None = None


class InputMaker:
    """Makes ``ModelInputs`` of batches; keeps scratch memory of the catalogue's size."""

    def __init__(self, catalogue: Catalogue, config: CandidateConfig, device: torch.device) -> None:
        self._catalogue, self._config, self._device = catalogue, config, device
        self._is_present_N = np.zeros(len(catalogue), dtype=bool)
        self._slot_N = np.zeros(len(catalogue) + 1, dtype=np.int64)
        self._context_starts = np.concatenate([[0], np.cumsum(catalogue.context_sizes)])[:-1]

    def __call__(self, batch: Batch) -> ModelInputs:
        """Return the tensors of ``batch`` on the device."""
        distinct_U = self._distinct(batch)
        features = self._features(batch, distinct_U)
        histories = Histories(
            ids=_EMPTY,
            content=_EMPTY,
            slots=self._tensor(self._slot_N[batch.history]),
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
            candidate_slot=self._tensor(self._slot_N[batch.items]),
            candidate_named=self._tensor(batch.item_named.astype(np.float32)),
            log_duration=self._tensor(self._catalogue.log_duration[batch.items]),
            item_age_s=self._tensor(batch.item_ages),
        )

    def _distinct(self, batch: Batch) -> np.ndarray:
        """Return the batch's distinct items, and remember the slot of each; padding's is U."""
        kept = batch.history[batch.kept]
        self._is_present_N[kept] = True
        self._is_present_N[batch.items] = True
        distinct_U = np.flatnonzero(self._is_present_N)
        self._is_present_N[distinct_U] = False
        # Only what the batch names is read: a fill would pass over the whole catalogue.
        self._slot_N[batch.history] = len(distinct_U)
        self._slot_N[distinct_U] = np.arange(len(distinct_U))
        return distinct_U

    def _features(self, batch: Batch, distinct_U: np.ndarray) -> KeyedJaggedTensor:
        ones_U = np.ones(len(distinct_U), dtype=np.float32)
        plain: Bags = (distinct_U, ones_U, np.ones(len(distinct_U), dtype=np.int64))
        bags: dict[str, Bags] = {ITEM: plain}
        if not self._config.shared_item_table:
            bags[HISTORY] = plain
        bags[CATEGORY] = self._catalogue.category_bags(distinct_U, ones_U)
        if self._config.word_buckets:
            bags[WORD] = self._catalogue.word_bags(distinct_U, ones_U)
        if self._config.user_id:
            bags[USER] = _known(batch.users[:, None], batch.users[:, None] >= 0)
        if self._config.context:
            bags[CONTEXT] = _known(batch.context - 1 + self._context_starts, batch.context > 0)
        stride = max(len(distinct_U) + 1, batch.n_queries)
        lengths = [np.pad(counts, (0, stride - len(counts))) for _, _, counts in bags.values()]
        return KeyedJaggedTensor(
            keys=list(bags),
            values=self._tensor(np.concatenate([values for values, _, _ in bags.values()])),
            weights=self._tensor(np.concatenate([weights for _, weights, _ in bags.values()]).astype(np.float32)),
            lengths=self._tensor(np.concatenate(lengths)),
            length_per_key=[len(values) for values, _, _ in bags.values()],  # else they come back from the device
        )

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
        weights=features.weights(),
        lengths=lengths.reshape(-1),
        length_per_key=features.length_per_key(),
    )
    return dataclasses.replace(inputs, features=padded)


def _known(values_BX: np.ndarray, known_BX: np.ndarray) -> Bags:
    values = values_BX[known_BX].astype(np.int64)
    return values, np.ones(len(values), dtype=np.float32), known_BX.sum(axis=1).astype(np.int64)
