"""What training needs to go on: weights and both optimizers' state, by one name each, however sharded.

Names are ``weights/<parameter>`` and ``optimizer/<parameter>/<key>``. The sums of Adagrad are called
``sum`` whether the fused kernel or an ordinary optimizer keeps them. Tensors share their storage with
the model and the optimizer, so that filling them in place restores both.

As files the state is one ``.npy`` a tensor, whole, so that nothing of a run's sharding is left in it
and nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from stages.candidate.towers.table_parts import part_of
from stages.contracts.errors import ConfigError, DataError
from stages.contracts.files import create_array

State = dict[str, torch.Tensor]
_FUSED_SUM = ".momentum1"


def training_state(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> State:
    """Return this rank's tensors by name; a rank that holds nothing of a table may lack its sum."""
    state: State = {f"weights/{name}": value for name, value in model.state_dict().items()}
    for name, values in optimizer.state_dict()["state"].items():
        copied = name.startswith("embeddings.")
        for key, value in values.items():
            if key.endswith(_FUSED_SUM):
                state[f"optimizer/{name}/sum"] = value
            elif copied and key == "sum":  # row-wise: one number a row, as the fused kernel has it
                state[f"optimizer/{name}/sum"] = value.view(-1) if value.shape[1] == 1 else value
            elif not copied:
                state[f"optimizer/{name}/{key}"] = value
    return state


def local_parts(value: torch.Tensor) -> list[tuple[torch.Tensor, tuple[slice, ...]]]:
    """Return what this rank holds of a tensor, each piece with its place in the whole."""
    if not isinstance(value, ShardedTensor):
        return [(value, tuple(slice(0, size) for size in value.shape))]
    found = []
    for shard in value.local_shards():
        sizes, offsets = shard.metadata.shard_sizes, shard.metadata.shard_offsets
        if shard.tensor.numel():
            place = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            found.append((shard.tensor.view(sizes), place))
    return found


def held_parts(state: State) -> list[torch.Tensor]:
    """Return what this rank holds of all tensors."""
    return [part for value in state.values() for part, _ in local_parts(value)]


def copy_parts(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    """Overwrite tensors with others."""
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def write_arrays(state: State, directory: Path) -> None:
    """Write each tensor, un-sharded, to ``<directory>/<name>.npy``; every rank takes part.

    Rank 0 makes the files, then each rank writes the pieces that it holds: no rank needs memory for a
    whole table. The ranks share a file system, as those of one host do.
    """
    shapes = _whole_shapes(state)
    if dist.get_rank() == 0:
        for name, shape in shapes.items():
            path = directory / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            if shape:
                create_array(path, np.float32, shape)
    dist.barrier()
    for name, value in state.items():
        whole_name, part = part_of(name)
        path, copied = directory / f"{whole_name}.npy", not isinstance(value, ShardedTensor)
        if copied and dist.get_rank() != 0:
            continue
        if not value.dim():
            np.save(path, value.detach().cpu().numpy())
            continue
        whole = np.load(path, mmap_mode="r+", allow_pickle=False)
        for own, place in local_parts(value):
            whole[part.rows][place] = own.detach().cpu().numpy()
        whole.flush()
    dist.barrier()


def _whole_shapes(state: State) -> dict[str, tuple[int, ...]]:
    """Return every rank's tensors' shapes by name, those of parts put together."""
    every: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, {name: tuple(value.size()) for name, value in state.items()})
    whole: dict[str, tuple[int, ...]] = {}
    for name, shape in {name: shape for shapes in every for name, shape in shapes.items()}.items():
        whole_name, _ = part_of(name)
        known = whole.get(whole_name)
        whole[whole_name] = shape if known is None else (known[0] + shape[0], *shape[1:])
    return whole


def read_arrays(state: State, directory: Path, moved: Mapping[str, Sequence[int]] | None = None) -> None:
    """Fill the tensors from ``write_arrays``' files; rows of a table that no row of the file goes to keep their values.

    Args:
        state: of this rank.
        directory: of the files.
        moved: by table, the row that each row of the file goes to; rows of other tables stay where they are.

    Raises:
        ConfigError: naming the first tensor that is missing or has another shape.
        DataError: if a file is damaged.
    """
    with torch.no_grad():
        for name, value in state.items():
            whole_name, part = part_of(name)
            path = directory / f"{whole_name}.npy"
            if not path.is_file():
                raise ConfigError(f"warm_start: {path} is missing; the model there has no {whole_name}")
            try:
                whole = np.load(path, mmap_mode="r" if value.dim() else None, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise DataError(f"warm_start: {path} is damaged: {error}") from error
            stored = whole[part.rows] if value.dim() else whole
            _check_shape(name, stored.shape, tuple(value.size()))
            rows = _rows_of(whole_name, moved or {})
            for own, place in local_parts(value):
                if rows is not None:
                    is_own = (rows >= place[0].start) & (rows < place[0].stop)
                    found = stored[: len(rows)][is_own][(slice(None), *place[1:])]
                    target = torch.from_numpy(rows[is_own] - place[0].start)
                    own[target] = torch.from_numpy(np.array(found)).to(own.device)
                    continue
                found = stored[place]
                target = own[: len(found)] if own.dim() else own
                target.copy_(torch.from_numpy(np.array(found)))


def _rows_of(name: str, moved: Mapping[str, Sequence[int]]) -> np.ndarray | None:
    """Return int64 rows that the rows of a tensor's file go to; None where they stay."""
    for table, rows in moved.items():
        if f".embedding_bags.{table}." in name:
            return np.asarray(rows, dtype=np.int64)
    return None


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    grows = ".embedding_bags." in name and bool(wanted) and found[:1] <= wanted[:1]
    if not (found == wanted or (grows and found[1:] == wanted[1:])):
        raise ConfigError(
            f"warm_start: {name} has shape {list(found)} there, {list(wanted)} is needed; "
            "tables may only grow by rows, everything else must stay as it was"
        )
