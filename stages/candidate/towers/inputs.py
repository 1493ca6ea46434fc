"""What the model reads of a batch: one jagged tensor of distinct ids, and slots in it.

Shapes: B queries, R histories, C candidates or distinct codes, K content columns, L history length, M codes, N items,
U distinct items, S slots of them, X context columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stages.candidate.towers.encoders import Histories

ITEM, HISTORY, CATEGORY, WORD, USER, CONTEXT = "item", "history", "category", "word", "user", "context"


@dataclass(frozen=True)
class Pooling:
    """Weighted sums of looked-up table rows, one for each item or query.

    Attributes:
        codes: int64 ``[M]``, place of each code's row among those that were looked up.
        slots: int64 ``[M]``, slot of each code; None where every slot has one code, in order.
        weights: float32 ``[M]``; None where ``slots`` is.
        n_slots: S.
    """

    codes: torch.Tensor
    slots: torch.Tensor | None
    weights: torch.Tensor | None
    n_slots: int

    def __call__(self, rows_CK: torch.Tensor) -> torch.Tensor:
        """Return float32 ``[S, K]``, zeros where a slot has no code.

        Args:
            rows_CK: rows of the distinct codes, and a row of zeros.
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
        features: bags of the tables' rows, one row a bag. Distinct items have one feature for each of P partitions,
            distinct categories and words as many features as ``table_parts.dealt`` returns. Known users and distinct
            contexts have one each. Bag b of item partition p is slot b * P + p. Behind the last bag of each feature
            there are empty bags, which give rows of zeros. Padding has the first empty slot.
        histories: without their tables, which the lookup fills in.
        query_row, query_place: int64 ``[B]`` or None, as for ``QueryTower``.
        candidate_slot: int64 ``[C]``, slot of each candidate.
        candidate_named: float32 ``[C]``, 0 hides a candidate's id.
        log_duration: float32 ``[C]``; item_age_s: int64 ``[C]`` seconds.
        content: by key, the pooling of its looked-up rows into the content of each slot, a mean.
        of_query: by key, the pooling of its looked-up rows into a vector for each query, a sum.
        rows: looked-up rows of ``features``, if the lookup has been started; reading them waits for its end.
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
    rows: KeyedTensor | None = None
