"""Strides of jagged tensors that are equal on all ranks: sharded lookups want it so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.towers.inputs import ModelInputs


def alone() -> bool:
    """Return whether there is no other rank."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def alike_on_all_ranks(inputs: ModelInputs) -> ModelInputs:
    """Return the inputs with the stride of the rank that has the largest: sharded lookups want it equal.

    Ranks meet different numbers of distinct items. A collective: every rank calls it at the same step.
    """
    if inputs.sent is not None or alone():
        return inputs
    stride = largest_stride(inputs.features)
    return dataclasses.replace(inputs, features=with_stride(inputs.features, stride()))


def largest_stride(features: KeyedJaggedTensor) -> Callable[[], int]:
    """Ask for the largest stride over the ranks, and return what waits for the answer; a collective."""
    largest = torch.tensor([features.stride()], device=features.lengths().device)
    work = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True)

    def answer() -> int:
        work.wait()
        return int(largest)

    return answer


def with_stride(features: KeyedJaggedTensor, stride: int) -> KeyedJaggedTensor:
    """Return the features with empty bags up to ``stride``."""
    missing = stride - features.stride()
    if not missing:
        return features
    lengths = F.pad(features.lengths().view(len(features.keys()), -1), (0, missing))
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        lengths=lengths.reshape(-1),
        length_per_key=features.length_per_key(),
    )
