"""Encoders of a history: from its items, signals and ages to the user's vector or vectors.

They are dense modules that every rank holds whole; item rows come from the sharded tables in training
and from one constant table in the exported tower.

Shapes: B histories, L history length (newest first), U item rows, one of zeros for padding among them,
D dimensions, K content dimensions, W = D + K, T tastes, H heads, A age buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from stages.candidate.config import ModelConfig

MASKED = -1e9
N_AGES = 33
"""Age buckets: below a second, below two, four, ..., and from 2^31 seconds (68 years) on."""


@dataclass(frozen=True)
class Sizes:
    """How large the tables and the encoder's own parameters are.

    Attributes:
        items, categories, words, users, context_values: rows of the tables.
        signals: kinds of events.
        history_length: L.
        history_decay: the decay by position that learning starts from.
        item_parts: partitions of each item table.
    """

    items: int
    categories: int
    words: int
    users: int
    context_values: int
    signals: int
    history_length: int
    history_decay: float
    item_parts: int = 1


@dataclass(frozen=True)
class Histories:
    """Histories as rows of item tables.

    Attributes:
        ids, content: ``[U, D]`` and ``[U, K]``, what is known of each item, and a row of zeros.
        slots: int64 ``[B, L]``, row of each entry; at padding a row of zeros.
        signals: int64 ``[B, L]``.
        ages: int64 ``[B, L]`` seconds.
        kept: bool ``[B, L]``, entries that count.
        named: bool ``[B, L]``, entries whose id counts; None where all do.
    """

    ids: torch.Tensor
    content: torch.Tensor
    slots: torch.Tensor
    signals: torch.Tensor
    ages: torch.Tensor
    kept: torch.Tensor
    named: torch.Tensor | None = None

    @cached_property
    def entries(self) -> torch.Tensor:
        """Return int64 ``[K]``: the entries that count, row by row, as places in ``B * L``."""
        return self.kept.reshape(-1).nonzero().squeeze(-1)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids ``[B, L, D]`` and content ``[B, L, K]`` of the entries."""
        ids_BLD, content_BLK = F.embedding(self.slots, self.ids), F.embedding(self.slots, self.content)
        if self.named is not None:
            ids_BLD = ids_BLD * self.named.unsqueeze(-1)
        return ids_BLD, content_BLK

    def pooled(self, weights_BL: torch.Tensor) -> torch.Tensor:
        """Return the weighted sums ``[B, W]`` of the entries' rows."""
        if torch.compiler.is_exporting():
            ids_BLD, content_BLK = self.rows()
            rows_BLW = torch.cat([ids_BLD, content_BLK], dim=2)
            return (rows_BLW * weights_BL.unsqueeze(-1)).sum(dim=1)
        named_BL = weights_BL if self.named is None else weights_BL * self.named
        # Summed while they are gathered: takes a tenth of the memory of [B, L, W]. Entries that do not count are left
        # out, because most of a batch may be padding.
        slots_K = self.slots.reshape(-1)[self.entries]
        counts_B = self.kept.sum(dim=1)
        offsets_B = counts_B.cumsum(dim=0) - counts_B
        sums = [
            F.embedding_bag(slots_K, table, offsets_B, per_sample_weights=weights.reshape(-1)[self.entries], mode="sum")
            for table, weights in ((self.ids, named_BL), (self.content, weights_BL))
        ]
        return torch.cat(sums, dim=1)


def age_buckets(ages: torch.Tensor) -> torch.Tensor:
    """Return int64 buckets of ages in seconds, by their binary logarithm; see ``N_AGES``."""
    borders = torch.tensor([1 << power for power in range(N_AGES - 1)], dtype=torch.int64, device=ages.device)
    return torch.bucketize(ages, borders, right=True)


def masked_softmax(logits: torch.Tensor, kept: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the softmax over what is kept; zeros where nothing is."""
    return logits.masked_fill(~kept, MASKED).softmax(dim=dim) * kept


class Recency(nn.Module):  # type: ignore[misc]
    """Log weights of a history's entries: learned by position, by age and by kind of signal.

    It starts at ``exp(-position / decay)`` whatever the age and the signal.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.position_L = nn.Parameter(-torch.arange(sizes.history_length) / sizes.history_decay)
        self.age_A = nn.Parameter(torch.zeros(N_AGES))
        self.signal_S = nn.Parameter(torch.zeros(sizes.signals))

    def forward(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, L]``; where nothing counts ``MASKED`` or any other number."""
        if torch.compiler.is_exporting():
            return self.position_L + self._by_age_and_signal(histories.ages, histories.signals)
        # Entries that do not count are left out, because most of a batch may be padding.
        entries_K, (rows, length) = histories.entries, histories.kept.shape
        position_K = _rows(self.position_L, entries_K % length)
        ages_K, signals_K = histories.ages.reshape(-1)[entries_K], histories.signals.reshape(-1)[entries_K]
        logits_K = position_K + self._by_age_and_signal(ages_K, signals_K)
        return logits_K.new_full((rows * length,), MASKED).index_put((entries_K,), logits_K).view(rows, length)

    def _by_age_and_signal(self, ages: torch.Tensor, signals: torch.Tensor) -> torch.Tensor:
        return _rows(self.age_A, age_buckets(ages)) + _rows(self.signal_S, signals)


def _rows(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return F.embedding(places, values[:, None]).squeeze(-1)


class Encoder(nn.Module):  # type: ignore[misc]
    """Encodes histories for the user tower.

    Attributes:
        several: whether a user has several vectors, ``[B, T, W]``.
        corrected: whether it returns sums of items' rows, of width W, to which the user tower adds a learnt correction.
            Otherwise it returns the vectors themselves, of width D.
    """

    several: ClassVar[bool] = False
    corrected: ClassVar[bool] = True

    def __init__(self, sizes: Sizes, config: ModelConfig, width: int) -> None:
        super().__init__()


class MeanEncoder(Encoder):
    """The weighted mean of the history."""

    def __init__(self, sizes: Sizes, config: ModelConfig, width: int) -> None:
        super().__init__(sizes, config, width)
        self.recency = Recency(sizes)

    def forward(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, W]``; zeros without history."""
        return histories.pooled(masked_softmax(self.recency(histories), histories.kept, dim=1))


class TastesEncoder(Encoder):
    """T weighted means, each with its own attention over the items.

    The self-attentive extraction of ComiRec (Cen et al., KDD 2020), on top of the learned recency.
    """

    several = True

    def __init__(self, sizes: Sizes, config: ModelConfig, width: int) -> None:
        super().__init__(sizes, config, width)
        self.recency = Recency(sizes)
        self.scores = nn.Sequential(
            nn.Linear(width, config.dimension), nn.Tanh(), nn.Linear(config.dimension, config.tastes, bias=False)
        )
        # Different from the first step on, because tastes that begin equal stay equal.
        nn.init.normal_(self.scores[2].weight, std=2.0 / config.dimension**0.5)

    def forward(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, T, W]``; zeros without history."""
        rows_BLW = torch.cat(histories.rows(), dim=2)
        logits_BLT = self.scores(rows_BLW) + self.recency(histories).unsqueeze(-1)
        weights_BLT = masked_softmax(logits_BLT, histories.kept.unsqueeze(-1), dim=1)
        return weights_BLT.transpose(1, 2) @ rows_BLW


class AttentionBlock(nn.Module):  # type: ignore[misc]
    """A pre-norm transformer block whose attention takes a bias."""

    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.norm, self.feed_norm = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.projections, self.out = nn.Linear(dimension, 3 * dimension), nn.Linear(dimension, dimension)
        self.feed = nn.Sequential(
            nn.Linear(dimension, 2 * dimension), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dimension, dimension)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: torch.Tensor, bias_BHLL: torch.Tensor) -> torch.Tensor:
        """Return ``[B, L, D]``."""
        parts = self.projections(self.norm(x_BLD)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        # Written out, because the fused CPU kernels take no trainable bias. This form also exports as it is.
        logits_BHLL = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias_BHLL
        mixed_BHLd = logits_BHLL.softmax(dim=-1) @ value
        x_BLD = x_BLD + self.dropout(self.out(mixed_BHLd.transpose(1, 2).flatten(2)))
        return x_BLD + self.dropout(self.feed(self.feed_norm(x_BLD)))


class AttentionEncoder(Encoder):
    """Causal self-attention over the history; the newest entry's output is the user's vector.

    Blocks are as in SASRec (Kang and McAuley, ICDM 2018), pre-norm. The bias by relative position and by
    bucketed time is that of HSTU (Zhai et al., ICML 2024). The time is between an event and the request
    that the attending entry predicts, which is the event after that entry. Nothing depends on where a
    history begins, so a window of a long sequence is encoded like a short history.
    """

    corrected = False

    def __init__(self, sizes: Sizes, config: ModelConfig, width: int) -> None:
        super().__init__(sizes, config, width)
        dimension, heads, length = config.dimension, config.heads, sizes.history_length
        self._input_scale = config.input_scale
        self.content = nn.Linear(width - dimension, dimension)
        self.signal_SD = nn.Parameter(torch.zeros(sizes.signals, dimension))
        self.position_LH = nn.Parameter(distance_start(config.distance_bias, length, heads, sizes.history_decay))
        self.time_AH = nn.Parameter(torch.zeros(N_AGES, heads)) if config.time_bias else None
        self.blocks = nn.ModuleList(AttentionBlock(dimension, heads, config.dropout) for _ in range(config.blocks))
        self.dropout, self.norm = nn.Dropout(config.dropout), nn.LayerNorm(dimension)

    def forward(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, D]``, of the newest entries; zeros without history."""
        return self.sequence(histories)[:, 0]

    def sequence(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, L, D]``: the encoding of each entry and those before it."""
        ids_BLD, content_BLK = histories.rows()
        x_BLD = self._input_scale * ids_BLD + self.content(content_BLK) + F.embedding(histories.signals, self.signal_SD)
        x_BLD, bias_BHLL = self.dropout(x_BLD), self._bias(histories)
        for block in self.blocks:
            x_BLD = block(x_BLD, bias_BHLL)
        return self.norm(x_BLD) * histories.kept.unsqueeze(-1)

    def _bias(self, histories: Histories) -> torch.Tensor:
        """Return ``[B, H, L, L]``: attending entry x attended entry, newest first."""
        length = histories.kept.shape[1]
        places = torch.arange(length, device=histories.kept.device)
        distance_LL = places[None, :] - places[:, None]
        bias = F.embedding(distance_LL.clamp(min=0), self.position_LH)[None]
        if self.time_AH is not None:
            request_BL = F.pad(histories.ages[:, :-1], (1, 0))
            between_BLL = (histories.ages[:, None, :] - request_BL[:, :, None]).clamp(min=0)
            bias = bias + F.embedding(age_buckets(between_BLL), self.time_AH)
        # An entry sees itself even where it does not count, so that no row of the softmax is empty.
        seen_BLL = histories.kept[:, None, :] & (distance_LL >= 0) | (distance_LL == 0)
        return bias.permute(0, 3, 1, 2).masked_fill(~seen_BLL[:, None], MASKED)


def distance_start(kind: str, length: int, heads: int, decay: float) -> torch.Tensor:
    """Return the bias by distance that attention starts from, float32 ``[L, H]``; see ``distance_bias``.

    With ``logarithm`` the weights follow a power law of the distance, and heads forget at different rates.
    """
    distance_L1 = torch.arange(length)[:, None]
    if kind == "decay":
        return (-distance_L1 / decay).repeat(1, heads)
    return -torch.log1p(distance_L1.float()) * 2.0 ** torch.linspace(1.0, -1.0, heads)


ENCODERS: dict[str, type[Encoder]] = {"mean": MeanEncoder, "tastes": TastesEncoder, "attention": AttentionEncoder}
"""Encoders by ``candidate.model.encoder``."""
