"""Where each embedding table lies: sharding kinds, the planner, fused optimizers, first values.

Table-wise puts a whole table on one rank, column-wise and row-wise cut it, data-parallel copies it to
all. The first three update their rows inside the backward pass (TorchRec's fused kernels). A
data-parallel table's gradients are averaged over the ranks first, so that an ordinary optimizer with
the same rule updates it: a row without a gradient does not move under Adagrad, fused or not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from stages.candidate.config import CandidateConfig
from stages.candidate.distributed.training_state import local_parts
from stages.candidate.towers.table_parts import WHOLE, Part, part_of

INIT_BLOCK = 1 << 14
"""Rows that one seed initialises: a rank draws only the blocks that its shard touches."""
_AUTO = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value)
"""What ``auto`` lets the planner choose from: what is fused and gives the same result on any number of ranks."""
_OPTIMIZERS = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad}
_EPS = 1e-8
"""Of Adagrad, fused or not: the kernels' own default."""


class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's sharder, which offers row-wise on CUDA only; gloo has the reduce-scatter it needs by now."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return TorchRec's kinds and row-wise."""
        kinds: list[str] = super().sharding_types(compute_device_type)
        return kinds if ShardingType.ROW_WISE.value in kinds else [*kinds, ShardingType.ROW_WISE.value]


def shard(model: nn.Module, config: CandidateConfig, device: torch.device) -> DistributedModelParallel:
    """Plan the tables' places, give each its fused optimizer, wrap the model and set the first values.

    The dense part is set from ``config.training.seed`` by whoever made ``model``; the tables' rows do not depend
    on how they are sharded.
    """
    first_values = take_initialisers(model)
    sharders = [Sharder()]
    plan = planner(model, config, device, dist.get_world_size()).collective_plan(
        model, sharders, dist.GroupMember.WORLD
    )
    apply_optimizer_in_backward(
        _OPTIMIZERS[config.optimizer.sparse],
        [weight for name, weight in tables(model) if name not in copied_tables(plan)],
        {"lr": config.optimizer.sparse_learning_rate, "eps": _EPS},
    )
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    initialise_tables(sharded, first_values, config.training.seed)
    return sharded


def tables(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and weight of each table of an unsharded model."""
    for name, module in model.embeddings.embedding_bags.items():
        yield name, module.weight


def copied_tables(plan: ShardingPlan) -> set[str]:
    """Return the names of the tables that every rank has a copy of."""
    kind = ShardingType.DATA_PARALLEL.value
    return {name for module in plan.plan.values() for name, place in module.items() if place.sharding_type == kind}


def planner(model: nn.Module, config: CandidateConfig, device: torch.device, world: int) -> EmbeddingShardingPlanner:
    """Return the planner of ``world`` ranks on one host with a device each."""
    return EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=world, compute_device=device.type),
        constraints={
            table.name: constraints(config, table.num_embeddings, table.embedding_dim, world)
            for table in model.embeddings.embedding_bag_configs()
        },
    )


def constraints(config: CandidateConfig, rows: int, width: int, world: int) -> ParameterConstraints:
    """Return what the planner may do with a table of ``rows`` x ``width``.

    A table with fewer rows than ranks cannot be cut by rows; it is put on one rank. Nor does ``auto`` cut what
    ``item_parts`` has already cut into enough: whole tables' rows travel once, others' as sums of every rank's.
    """
    kinds: list[str] = list(_AUTO) if config.distributed.sharding == "auto" else [config.distributed.sharding]
    if rows < world or (config.distributed.sharding == "auto" and world <= config.model.item_parts):
        kinds = [kind for kind in kinds if kind != ShardingType.ROW_WISE.value] or [ShardingType.TABLE_WISE.value]
    # Columns are cut evenly over the ranks, in multiples of 4 floats as the kernels want them.
    return ParameterConstraints(sharding_types=kinds, min_partition=4 * -(-width // (4 * world)))


def take_initialisers(model: nn.Module) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Return each table's initialiser and leave one that does nothing: a sharder's would depend on the shards."""
    found = {}
    for table in model.embeddings.embedding_bag_configs():
        found[table.name] = table.init_fn
        table.init_fn = _nothing
    return found


def _nothing(weight: torch.Tensor) -> None:
    """Leave the weight as it is."""


@dataclass(frozen=True)
class Piece:
    """What a rank holds of a table.

    Attributes:
        values: to be filled, as large as the rows and columns.
        rows, columns: of the part.
        part: of the table.
    """

    values: torch.Tensor
    rows: slice
    columns: slice
    part: Part = WHOLE


def initialise_tables(
    model: DistributedModelParallel, first_values: dict[str, Callable[[torch.Tensor], Any]], seed: int
) -> None:
    """Set each table from (seed, table, block of rows), whatever shard or part a row lies in."""
    weights = model.state_dict()
    for whole in dict.fromkeys(part_of(name)[0] for name in first_values):
        names = [name for name in first_values if part_of(name)[0] == whole]
        of = [weights[f"embeddings.embedding_bags.{name}.weight"] for name in names]
        pieces = [
            Piece(values, rows, columns, part_of(name)[1])
            for name, weight in zip(names, of, strict=True)
            for values, (rows, columns) in local_parts(weight)
        ]
        if pieces:
            fill(pieces, of[0].size()[1], first_values[names[0]], (seed, zlib.crc32(whole.encode())))


def fill(pieces: list[Piece], width: int, initialise: Callable[[torch.Tensor], Any], seed: tuple[int, int]) -> None:
    """Write the rows and columns of pieces of one table of ``width`` columns; torch's generator is kept.

    A row's values are those that it has in the whole table.
    """
    first = min(piece.part.row(piece.rows.start) for piece in pieces) // INIT_BLOCK
    last = max(piece.part.row(piece.rows.stop - 1) for piece in pieces) // INIT_BLOCK
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for block in range(first, last + 1):
            torch.manual_seed(_seed_of(*seed, block))
            values = torch.empty(INIT_BLOCK, width)
            initialise(values)
            for piece in pieces:
                part, rows = piece.part, piece.rows
                before, after = (part.size(border * INIT_BLOCK) for border in (block, block + 1))
                start, stop = max(rows.start, before), min(rows.stop, after)
                if start < stop:
                    found = values[part.row(start) - block * INIT_BLOCK :: part.of, piece.columns][: stop - start]
                    piece.values[start - rows.start : stop - rows.start] = found.to(piece.values.device)


def _seed_of(*numbers: int) -> int:
    """Return 63 bits that depend on all numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def combined_optimizer(model: DistributedModelParallel, config: CandidateConfig) -> CombinedOptimizer:
    """Return the fused optimizer of the tables, that of copied tables and AdamW of the dense part."""
    rest = dict(in_backward_optimizer_filter(model.named_parameters()))
    copied = {name: value for name, value in rest.items() if name.startswith("embeddings.")}
    dense = dense_parameters(model)
    parts = [model.fused_optimizer]
    if copied:
        kind = _OPTIMIZERS[config.optimizer.sparse]
        parts.append(
            KeyedOptimizerWrapper(copied, lambda own: kind(own, lr=config.optimizer.sparse_learning_rate, eps=_EPS))
        )
    parts.append(KeyedOptimizerWrapper(dense, lambda own: adam(own, config)))
    return CombinedOptimizer(parts)


def dense_parameters(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Return the parameters of the towers by name, without any table."""
    return {name: value for name, value in model.named_parameters() if not name.startswith("embeddings.")}


def adam(parameters: list[nn.Parameter], config: CandidateConfig) -> torch.optim.AdamW:
    """Return AdamW whose state is there before the first step, so that a checkpoint can fill it."""
    betas = (0.9, config.optimizer.dense_beta2)
    optimizer = torch.optim.AdamW(
        parameters, lr=config.optimizer.dense_learning_rate, betas=betas, weight_decay=config.optimizer.weight_decay
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer
