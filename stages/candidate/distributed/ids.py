"""Brings the ids of a batch to the ranks that hold their rows, an exchange at a time.

Where whole tables lie on the ranks, a rank tells each other one how many ids of each feature it will send, and then
sends them. TorchRec does the same for every kind of sharding, but sends the length of every bag as well, which is known
where bags hold an id each, and turns lengths and ids into order more than once.

Shapes: A bags of all ranks together, F features of a rank's tables, R ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding_types import KJTList
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.distributed.strides import largest_stride, with_stride
from stages.candidate.towers.inputs import SentFeatures

Sending = Generator[None, None, SentFeatures]
"""Stops while an exchange goes on, and returns when the last one has ended; every rank resumes it equally often."""


def send_by_torchrec(tables: nn.Module, features: KeyedJaggedTensor) -> Sending:
    """Send ids to wherever their rows lie.

    Args:
        tables: TorchRec's sharded ``EmbeddingBagCollection``.
        features: of this rank.
    """
    stride = largest_stride(features)
    yield
    context = tables.create_context()
    numbers = tables.input_dist(context, with_stride(features, stride()))
    yield
    ids = numbers.wait()
    yield
    return SentFeatures(context, ids.wait())


def send_to_tables(tables: nn.Module, names: Sequence[Collection[str]], features: KeyedJaggedTensor) -> Sending:
    """Send ids to the ranks that have their tables as a whole.

    Args:
        tables: as above.
        names: features of each rank's tables, in the order in which it looks them up.
        features: of this rank; the first bags of each feature hold one id, the others none.
    """
    ids = dict(zip(features.keys(), features.values().split(features.length_per_key()), strict=True))
    go = [[ids[name] for name in own] for own in names]
    numbers = [number for own in go for number in (features.stride(), *map(len, own))]
    told = torch.tensor(numbers, device=features.values().device)
    n_heard = 1 + len(names[dist.get_rank()])
    heard = told.new_empty(len(names) * n_heard)
    work = dist.all_to_all_single(heard, told, [n_heard] * len(names), [1 + len(own) for own in names], async_op=True)
    yield
    work.wait()
    strides_R, *counts_FR = heard.view(len(names), n_heard).T.tolist()
    counts_RF = list(zip(*counts_FR, strict=True)) or [()] * len(names)
    come = features.values().new_empty(sum(map(sum, counts_RF)))
    sent = torch.cat([each for own in go for each in own])
    work = dist.all_to_all_single(
        come, sent, [sum(own) for own in counts_RF], [sum(map(len, own)) for own in go], async_op=True
    )
    yield
    work.wait()
    found = _by_feature(come, names[dist.get_rank()], strides_R, counts_RF)
    return SentFeatures(tables.create_context(), KJTList([found]), strides_R)


def _by_feature(
    come: torch.Tensor, names: Collection[str], strides_R: Sequence[int], counts_RF: Sequence[Sequence[int]]
) -> KeyedJaggedTensor:
    """Return what came, by rank and feature, as bags of each feature: A of them, the first rank's first."""
    ids_RF = [part.split(own) for part, own in zip(come.split([*map(sum, counts_RF)]), counts_RF, strict=True)]
    place = torch.arange(max(strides_R), device=come.device)
    values, offsets, start = [], [], 0
    for feature in range(len(names)):
        for ids_F, counts_F, stride in zip(ids_RF, counts_RF, strides_R, strict=True):
            values.append(ids_F[feature])
            offsets.append(place[:stride].clamp(max=counts_F[feature]).add_(start))
            start += counts_F[feature]
    return KeyedJaggedTensor(
        keys=list(names),
        values=torch.cat(values) if values else come,
        offsets=torch.cat([*offsets, place.new_tensor([start])]),
        stride=sum(strides_R),
        length_per_key=[sum(counts_R) for counts_R in zip(*counts_RF, strict=True)],
    )
