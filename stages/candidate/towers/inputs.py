"""What the model reads of a batch: one jagged tensor of distinct ids, and slots in it.

Shapes: B queries, R histories, C candidates or distinct codes, K content columns, L history length, M codes, N items,
U distinct items, S slots of them, X context columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torchrec.distributed.embedding_types import KJTList
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Multistreamable

from stages.candidate.towers.encoders import Histories

ITEM, HISTORY, CATEGORY, WORD, USER, CONTEXT = "item", "history", "category", "word", "user", "context"
_EMPTY = torch.zeros(0)


@dataclass(frozen=True)
class SentFeatures:
    """Features of all ranks for the tables of this one.

    Attributes:
        context: of the sharded collection, made for this batch.
        features: what it looks up.
        strides: bags of a feature that each rank has; empty where TorchRec knows.
    """

    context: Multistreamable
    features: KJTList
    strides: Sequence[int] = ()


@dataclass(frozen=True)
class Pooling:
    """Which of a table's rows make up what is known of items or queries: their weighted sum.

    Attributes:
        codes: int64 ``[M]``, place of each code's row among those that were looked up.
        slots: int64 ``[M]``, slot that each belongs to; None where there is one a slot, in order.
        weights: float32 ``[M]``; None as ``slots``.
        n_slots: S.
    """

    codes: torch.Tensor
    slots: torch.Tensor | None
    weights: torch.Tensor | None
    n_slots: int

    def __call__(self, rows_CK: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[S, K]``, zeros where a slot has no code.

        Args:
            rows_CK: distinct codes' rows, and one of zeros.
        """
        rows_MK = rows_CK.index_select(0, self.codes)
        if self.slots is None or self.weights is None:
            return rows_MK
        zeros_SK = rows_CK.new_zeros(self.n_slots, rows_CK.shape[1])
        return zeros_SK.index_add(0, self.slots, rows_MK * self.weights[:, None])


@dataclass(frozen=True)
class ModelInputs:
    """Tensors of one step.

    Attributes:
        features: bags of the tables' rows, one row a bag: distinct items, a feature for each of P parts, distinct
            categories and words, in as many features as ``table_parts.dealt`` says, known users and distinct contexts.
            Bag b of part p of the items is slot b * P + p. Behind the last bag of each feature there are empty ones:
            rows of zeros, the first of which padding has.
        histories: without their tables, which the lookup fills in.
        query_row, query_place: int64 ``[B]`` or None, as for ``QueryTower``.
        candidate_slot: int64 ``[C]``, slot of each candidate.
        candidate_named: float32 ``[C]``, 0 hides a candidate's id.
        log_duration: float32 ``[C]``; item_age_s: int64 ``[C]`` seconds.
        content: by key, which of the rows looked up for it are a slot's content: their mean.
        of_query: by key, which of the rows looked up for it a query has: their sum.
        sent: ``features`` where they have been sent ahead; see ``distributed.ahead``.
        rows: waits for what the tables hold, by feature, where it has been asked for; see ``distributed.rows``.
    """

    features: KeyedJaggedTensor
    histories: Histories
    query_row: torch.Tensor | None
    query_place: torch.Tensor | None
    candidate_slot: torch.Tensor
    candidate_named: torch.Tensor
    log_duration: torch.Tensor
    item_age_s: torch.Tensor
    content: Mapping[str, Pooling]
    of_query: Mapping[str, Pooling]
    sent: SentFeatures | None = None
    rows: Callable[[], dict[str, torch.Tensor]] | None = None
