"""One rank of the sharded training, started by torchrun's elastic launcher.

    python -m torch.distributed.run --standalone --nproc-per-node N -m stages.candidate.worker DIRECTORY

DIRECTORY holds ``job.json`` and the arrays that ``train.py`` wrote. Rank 0 writes the un-sharded
weights to ``state/<parameter>.npy``, the outputs of a probe batch to ``probe_*.npy`` and the losses to
``metrics.json``, which comes last. A rank that fails writes ``error-<rank>.json``.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from tqdm import tqdm

from stages.candidate.batches import Batch, Batches, make_batches
from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.data import Catalogue, Examples
from stages.candidate.model import TwoTower, sizes_of
from stages.candidate.objective import LossOfBatch
from stages.candidate.progress import PROGRESS
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.files import read_json, write_json

PROBE = 64
_SHARDINGS = {
    "cpu": (ShardingType.TABLE_WISE.value, ShardingType.COLUMN_WISE.value),
    "cuda": (ShardingType.TABLE_WISE.value, ShardingType.COLUMN_WISE.value, ShardingType.ROW_WISE.value),
}
"""What the planner may choose from. Gloo has no reduce-scatter, which row-wise sharding needs; data
parallel tables are left out because they would bypass the fused optimizer."""


def train(directory: Path, progress: bool = True) -> list[float]:
    """Train this rank's part of the job in ``directory``; the process group must be initialised.

    Returns:
        The mean loss of each epoch over the ranks.

    Raises:
        DataError: if a loss is not finite.
    """
    settings = TrainCandidateConfig.model_validate(read_json(directory / "job.json"))
    config = settings.candidate
    rank, world = dist.get_rank(), dist.get_world_size()
    device = own_device(config, world)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    catalogue = Catalogue.load(directory)
    batches = make_batches(Examples.load(directory), catalogue, config, settings.features, rank, world)
    model = shard(TwoTower(sizes_of(catalogue, settings), config, torch.device("meta")), config, device)
    optimizer = combined_optimizer(model, config)
    loss_of = LossOfBatch(model, catalogue, config, batches, device)
    losses: list[float] = []
    hidden = rank != 0 or not progress
    with tqdm(total=config.epochs * batches.steps, desc=PROGRESS, unit="step", mininterval=1, disable=hidden) as bar:
        for epoch in range(config.epochs):
            losses.append(run_epoch(epoch, batches, loss_of, optimizer, bar))
            bar.set_postfix(epoch=epoch + 1, loss=f"{losses[-1]:.4f}")
    save(model, loss_of, batches.probe(PROBE), directory)
    if rank == 0:
        write_json(directory / "metrics.json", {"losses": losses, "steps": batches.steps, "device": device.type})
    return losses


def own_device(config: CandidateConfig, world: int) -> torch.device:
    """Return this rank's device.

    Raises:
        ConfigError: if CUDA is asked for, but there is not one device a rank.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cpu" or (config.device == "auto" and found < world):
        return torch.device("cpu")
    if found < world:
        raise ConfigError(f"device = 'cuda' with n_processes = {world} needs {world} CUDA devices, found {found}")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def shard(model: nn.Module, config: CandidateConfig, device: torch.device) -> DistributedModelParallel:
    """Plan the tables' places, give each its fused optimizer and wrap the model."""
    kind = {"rowwise_adagrad": RowWiseAdagrad, "adagrad": torch.optim.Adagrad}[config.sparse_optimizer]
    apply_optimizer_in_backward(kind, model.embeddings.parameters(), {"lr": config.sparse_learning_rate})
    sharders = [EmbeddingBagCollectionSharder()]
    plan = planner(model, config, device, dist.get_world_size()).collective_plan(
        model, sharders, dist.GroupMember.WORLD
    )
    return DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)


def planner(model: nn.Module, config: CandidateConfig, device: torch.device, world: int) -> EmbeddingShardingPlanner:
    """Return the planner of ``world`` ranks on one host with a device each."""
    return EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=world, compute_device=device.type),
        constraints={
            table.name: constraints(config, device, table.embedding_dim, world)
            for table in model.embeddings.embedding_bag_configs()
        },
    )


def constraints(config: CandidateConfig, device: torch.device, width: int, world: int) -> ParameterConstraints:
    """Return what the planner may do with a table of ``width`` columns.

    Raises:
        ConfigError: if the configured sharding does not work on the device.
    """
    allowed = _SHARDINGS[device.type]
    if config.sharding != "auto" and config.sharding not in allowed:
        raise ConfigError(
            f"sharding = {config.sharding!r} does not work on {device.type}, allowed: auto, {', '.join(allowed)}"
        )
    kinds = allowed if config.sharding == "auto" else (config.sharding,)
    # Columns are cut evenly over the ranks, in multiples of 4 floats as the kernels want them.
    return ParameterConstraints(sharding_types=list(kinds), min_partition=4 * -(-width // (4 * world)))


def combined_optimizer(model: DistributedModelParallel, config: CandidateConfig) -> CombinedOptimizer:
    """Return the fused optimizer of the tables together with AdamW of the dense part."""
    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    wrapped = KeyedOptimizerWrapper(
        dense,
        lambda parameters: torch.optim.AdamW(
            parameters, lr=config.dense_learning_rate, weight_decay=config.weight_decay
        ),
    )
    return CombinedOptimizer([model.fused_optimizer, wrapped])


def run_epoch(epoch: int, batches: Batches, loss_of: LossOfBatch, optimizer: CombinedOptimizer, bar: tqdm) -> float:
    """Train one epoch and return its mean loss over all ranks."""
    total = torch.zeros(1, device=loss_of.device)
    for batch in batches.epoch(epoch):
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        bar.update()
    dist.all_reduce(total)
    mean: float = total.item() / batches.steps / dist.get_world_size()
    if not np.isfinite(mean):
        raise DataError(f"candidate training: the loss of epoch {epoch + 1} is {mean}; lower the learning rates")
    return mean


def save(model: DistributedModelParallel, loss_of: LossOfBatch, probe: Batch, directory: Path) -> None:
    """Gather the sharded weights on rank 0 and write them with the outputs of ``probe``.

    Every rank takes part: sharded lookups and gathers are collectives.
    """
    model.eval()
    with torch.no_grad():
        query_BD, candidate_CD, _ = loss_of.forward(probe)
    state = {name: unsharded(value, query_BD.device) for name, value in model.state_dict().items()}
    if dist.get_rank() != 0:
        return
    (directory / "state").mkdir()
    for name, value in state.items():
        np.save(directory / "state" / f"{name}.npy", value)
    arrays = {**vars(probe.inputs), "candidates": probe.items}
    outputs = {"query": query_BD.cpu().numpy(), "vectors": candidate_CD.cpu().numpy()}
    for name, array in {**arrays, **outputs}.items():
        np.save(directory / f"probe_{name}.npy", array)


def unsharded(value: torch.Tensor, device: torch.device) -> np.ndarray:
    """Gather a parameter on rank 0; other ranks get an empty array of a sharded one."""
    if not isinstance(value, ShardedTensor):
        whole: np.ndarray = value.detach().cpu().numpy()
        return whole
    full = torch.empty(value.size(), device=device) if dist.get_rank() == 0 else None
    value.gather(dst=0, out=full)
    return np.empty(0) if full is None else full.cpu().numpy()


def initialise(config: CandidateConfig) -> None:
    """Join the process group: NCCL where every rank has its own CUDA device, else gloo."""
    world = int(os.environ["WORLD_SIZE"])
    backend = "nccl" if own_device(config, world).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=config.timeout_s))


def main(directory: Path) -> None:
    """Run this rank; describe a failure in a file that the parent reads, then fail."""
    rank = os.environ.get("RANK", "0")
    try:
        initialise(TrainCandidateConfig.model_validate(read_json(directory / "job.json")).candidate)
        train(directory)
        dist.destroy_process_group()
    except Exception as error:
        fault = {"rank": int(rank), "type": type(error).__name__, "message": str(error), "time": time.time()}
        write_json(directory / f"error-{rank}.json", fault)
        raise  # the launcher stops the other ranks; the parent reads the file


if __name__ == "__main__":
    # TorchRec and torch announce their own deprecations on every start; the parent shows errors only.
    warnings.simplefilter("ignore")
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    logging.getLogger("torch").setLevel(logging.ERROR)
    main(Path(sys.argv[1]))
