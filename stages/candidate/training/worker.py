"""One rank of the sharded training, started by torchrun's elastic launcher; a single rank by ``step.launch`` itself.

    python -m torch.distributed.run --standalone --nproc-per-node N -m stages.candidate.training.worker DIRECTORY

DIRECTORY holds ``job.json``, ``run.json`` and the arrays that ``step.py`` wrote. The ranks write the
un-sharded weights and optimizer state to ``state/``. Rank 0 writes the outputs of a probe batch to
``probe_*.npy`` and, last, losses and speed to ``metrics.json``. A rank that fails writes
``error-<rank>.json``.
"""

from __future__ import annotations

import atexit
import datetime
import gc
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torchrec.optim.keyed import CombinedOptimizer
from tqdm import tqdm

from stages.candidate.config import CandidateConfig, TrainCandidateConfig
from stages.candidate.data.examples import Examples
from stages.candidate.data.item_features import Catalogue
from stages.candidate.distributed.candidate_exchange import part
from stages.candidate.distributed.sharding import combined_optimizer, shard
from stages.candidate.distributed.training_state import State, read_arrays, training_state, write_arrays
from stages.candidate.towers.temperature import first_log_temperature
from stages.candidate.towers.two_tower import TwoTower, sizes_of
from stages.candidate.training.batches import Batch, Batches, make_batches
from stages.candidate.training.best import Best
from stages.candidate.training.checkpoint import Checkpoints, Progress
from stages.candidate.training.ema import Average, make_average
from stages.candidate.training.held_out import HeldOut
from stages.candidate.training.judge import Judge
from stages.candidate.training.loop import Loop
from stages.candidate.training.objective import LossOfBatch
from stages.candidate.training.progress import PROGRESS
from stages.candidate.training.stopping import Stopping
from stages.candidate.training.warm_start import RUN_FILE, STATE
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.files import read_json, write_json

PROBE = 64
_WATCH_SECONDS = 1.0


def train(directory: Path, progress: bool = True) -> list[float]:
    """Train this rank's share of the job in ``directory``; the process group must be initialised.

    Returns:
        The mean loss of each epoch over the ranks.

    Raises:
        ConfigError: if the checkpoint or the model to start from does not fit.
        DataError: if a loss is not finite.
    """
    config, run = job(directory).candidate, read_json(directory / RUN_FILE)
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(config.distributed.threads)
    batches, loss_of, optimizer = build(directory, rank, world)
    state = training_state(loss_of.model, optimizer)
    average = make_average(state, config.average)
    averages = average.state if average is not None else {}
    stopping = make_stopping(directory, loss_of, average, state | averages)
    kept = stopping.best.state if stopping is not None and stopping.best is not None else {}
    checkpoints, reached = go_on(run, config, state, average, kept)
    state |= averages
    loop = Loop(batches, loss_of, optimizer, config, checkpoints, state | kept, average, stopping, run["until"])
    hidden = rank != 0 or not progress
    first = reached.epoch * batches.steps + reached.step
    total = config.passes * batches.steps
    with tqdm(total=total, initial=first, desc=PROGRESS, unit="step", mininterval=1, disable=hidden) as bar:
        reached = loop.run(reached, bar)
    losses = list(reached.losses)
    if stopping is not None and stopping.best is not None:
        stopping.best.restore()
    if stopping is None or stopping.best is not None:
        save(loss_of, state, average, batches.probe(PROBE), directory)
    if rank == 0:
        clock = loop.clock
        report = {"losses": losses, "steps": batches.steps, "device": loss_of.device.type, "first_step": first}
        report["temperature"] = loss_of.temperature.value
        if stopping is not None:
            report |= {"validation": reached.validation, "best_epoch": stopping.best_epoch(reached)}
        speed = {
            "seconds": clock.seconds,
            "input_wait_share": clock.waited / clock.seconds if clock.seconds else 0.0,
            "examples_per_s": clock.steps * batches.size / clock.seconds if clock.seconds else 0.0,
        }
        write_json(directory / "metrics.json", {**report, **speed})
    return losses


def job(directory: Path) -> TrainCandidateConfig:
    """Return the configuration of the job.

    Raises:
        ConfigError: if another version has written it, naming the keys.
    """
    return parse_config(TrainCandidateConfig, read_json(directory / "job.json"), str(directory / "job.json"))


def build(directory: Path, rank: int, world: int) -> tuple[Batches, LossOfBatch, CombinedOptimizer]:
    """Return the batches, the sharded model in its loss, and the optimizer of a rank."""
    settings = job(directory)
    config = settings.candidate
    device = own_device(config, world)
    catalogue = Catalogue.load(directory)
    batches = make_batches(Examples.load(directory), catalogue, config, settings.features, rank, world)
    torch.manual_seed(config.training.seed)
    log_temperature = first_log_temperature(config, len(catalogue.eligible))
    towers = TwoTower(sizes_of(catalogue, settings), config.model, torch.device("meta"), log_temperature)
    model = shard(towers, config, device)
    return batches, LossOfBatch(model, catalogue, config, batches, device), combined_optimizer(model, config)


def make_stopping(directory: Path, loss_of: LossOfBatch, average: Average | None, state: State) -> Stopping | None:
    """Return what judges the epochs, if the job holds rows out for it."""
    settings = job(directory)
    config = settings.candidate.training.early_stopping
    if config is None or not HeldOut.is_in(directory):
        return None
    judge = Judge(HeldOut.load(directory), Examples.load(directory), Catalogue.load(directory), settings, loss_of)
    return Stopping(judge, config, average, Best(state) if config.then == "keep" else None)


def go_on(
    run: dict[str, Any], config: CandidateConfig, state: State, average: Average | None, kept: State
) -> tuple[Checkpoints | None, Progress]:
    """Fill ``state`` from the newest checkpoint; without one, from the model of a warm start, if any.

    A checkpoint holds the averages and the best epoch's ``kept`` state too. A model to start from does not: the
    averages begin at its weights.
    """
    checkpoints = None
    if run["checkpoints"] is not None:
        checkpoints = Checkpoints(Path(run["checkpoints"]), config.checkpoints.keep, run["identity"])
        if checkpoints.found():
            return checkpoints, checkpoints.resume({**state, **(average.state if average is not None else {}), **kept})
    if run["warm_start"] is not None:
        read_arrays(state, Path(run["warm_start"]), run["moved"])
        if average is not None:
            average.restart()
    return checkpoints, Progress()


def own_device(config: CandidateConfig, world: int) -> torch.device:
    """Return this rank's device.

    Raises:
        ConfigError: if CUDA is configured, but there are fewer devices than ranks.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.distributed.device == "cpu" or (config.distributed.device == "auto" and found < world):
        return torch.device("cpu")
    if found < world:
        raise ConfigError(
            f"distributed.device = 'cuda' with distributed.n_processes = {world} needs {world} CUDA devices, "
            f"found {found}"
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def save(loss_of: LossOfBatch, state: State, average: Average | None, probe: Batch, directory: Path) -> None:
    """Write the un-sharded state, and the sharded model's outputs of ``probe``, with averaged weights if there are any.

    Every rank takes part: sharded lookups are collectives.
    """
    write_arrays(state, directory / STATE)
    if average is not None:
        average.publish()
    loss_of.model.eval()
    with torch.no_grad():
        query_BD, candidate_CD, _ = loss_of.forward(probe)
    if dist.get_rank() == 0:
        arrays = {**vars(probe.inputs), "candidates": probe.items}
        outputs = {"query": query_BD.cpu().numpy(), "vectors": candidate_CD.cpu().numpy()}
        for name, array in {**arrays, **outputs}.items():
            np.save(directory / f"probe_{name}.npy", array)


def initialise(config: CandidateConfig) -> None:
    """Join the process group: NCCL where every rank has its own CUDA device, else gloo on the rank's own cores."""
    world = int(os.environ["WORLD_SIZE"])
    backend = "nccl" if own_device(config, world).type == "cuda" else "gloo"
    if backend == "gloo":
        # gloo's threads, and the thread that prepares input, inherit the cores of this one.
        take_own_cores(config.distributed.threads)
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=config.distributed.timeout_s))


def take_own_cores(threads: int) -> None:
    """Keep to this rank's even share of the cores that this process may use.

    Otherwise a rank that waits for another is moved onto the other's core, and both wait. Nothing is done for a single
    rank, where there are fewer cores than the ranks' threads, or where the system knows no affinity.

    Args:
        threads: of each rank.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks == 1 or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[part(len(cores), int(os.environ["LOCAL_RANK"]), ranks)]
    if len(cores) >= ranks * threads:
        os.sched_setaffinity(0, own)


def end_with_parent() -> None:
    """End this process soon after the one that started it, as torchrun's launcher does for its ranks."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main(directory: Path) -> None:
    """Run this rank; describe a failure in a file that the parent reads, then fail."""
    rank = os.environ.get("RANK", "0")
    end_with_parent()
    try:
        initialise(job(directory).candidate)
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
    atexit.register(gc.freeze)  # at the end, Python would search the modules of torch for garbage, for most of a second
    main(Path(sys.argv[1]))
