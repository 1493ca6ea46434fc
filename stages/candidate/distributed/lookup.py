"""Lookups in tables that several ranks hold, by TorchRec's public calls."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.towers.inputs import ModelInputs


def start_lookup(model: nn.Module, inputs: ModelInputs) -> ModelInputs:
    """Return the inputs with their rows on the way; with one rank, the inputs as they are.

    TorchRec sends the ids to the ranks that hold their rows, and the rows back. A collective: every rank calls it at
    the same step.

    Args:
        model: in its ``DistributedModelParallel`` where there are several ranks.
        inputs: of this rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return inputs
    features = with_stride(inputs.features, _largest_stride(inputs.features))
    return dataclasses.replace(inputs, rows=model.module.embeddings(features))


def _largest_stride(features: KeyedJaggedTensor) -> int:
    """Return the largest stride of all ranks: ranks meet different numbers of distinct items."""
    largest = torch.tensor(features.stride(), device=features.lengths().device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def with_stride(features: KeyedJaggedTensor, stride: int) -> KeyedJaggedTensor:
    """Return the features with empty bags up to ``stride``, which row-wise lookups want equal on all ranks."""
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
