"""Training throughput of the two-tower model, against the same model on plain PyTorch.

    python -m benchmarks.training [--items 1e6] [--users 1e6] [--steps 15] [--repeat 3] [--big] [--home DIR]
        [--only-ranks]

The product's own step (the worker's batches, model, loss and optimizers, started by torchrun) trains on
a skewed world: 64 dimensions, history 20, batch 4096, 1,024 shared negatives. The same model and batches
then run in plain PyTorch (``benchmarks.plain_towers``): on ``torch.nn.EmbeddingBag`` with Adagrad, with sparse
and with dense gradients. To measure the effect of the tables alone, the product's own towers and loss also run
on such bags (``sparse_tables``, ``dense_tables``). Each run is a process of its own with one thread. Repeats
alternate; ratios are of medians.

Ranks are measured in turn: one rank, two ranks with the same whole batch, and two independent copies of the one rank.
The copies show the most that two ranks can reach on this machine. Last come the growth over the number of items, and
where the time of a step goes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import describe, in_a_process

HISTORY, BATCH, DIMENSION, CATEGORIES = 20, 4096, 64, 1000
HOUR_MS = 3_600_000
WARM_UP = 3
CHOICES = ("product", "sparse", "dense", "sparse_tables", "dense_tables")


def write_world(work: Path, n_users: int, n_items: int, ranks: int) -> None:
    """Write a job: each user touches 21 items of a skewed catalogue, so that the last touch has a full history."""
    from stages.candidate.config import CandidateConfig, TrainCandidateConfig
    from stages.candidate.data.examples import Examples
    from stages.candidate.data.item_features import Catalogue
    from stages.contracts.files import write_json
    from stages.features.config import FeatureConfig

    rng = np.random.default_rng(0)
    n_touches = HISTORY + 1
    items = np.minimum(rng.random(n_users * n_touches) ** 3 * n_items, n_items - 1).astype(np.int32)
    touches = np.arange(len(items), dtype=np.int64)
    times_ms = touches % n_touches * HOUR_MS
    Examples(
        items=items,
        users=(touches // n_touches).astype(np.int32),
        times_ms=times_ms,
        contexts=np.zeros(len(items), dtype=np.int32),
        start=touches - touches % n_touches,
        end=touches,
        version_offsets=np.arange(len(items) + 1, dtype=np.int64),
        version_times_ms=times_ms,
        version_signals=np.zeros(len(items), dtype=np.int16),
        moments=np.zeros((1, 0), dtype=np.int32),
    ).save(work)
    Catalogue(
        offsets=np.arange(n_items + 1, dtype=np.int64),
        codes=rng.integers(0, CATEGORIES, n_items),
        log_duration=rng.normal(size=n_items).astype(np.float32),
        frequency=np.bincount(items, minlength=n_items).astype(np.int64),
        in_histories=np.ones(n_items, dtype=bool),
        eligible=np.arange(n_items),
        end_ms=n_touches * HOUR_MS,
    ).save(work)
    candidate = CandidateConfig(
        model={"dimension": DIMENSION},
        training={"batch_size": BATCH, "epochs": 1},
        distributed={"n_processes": ranks, "device": "cpu"},
    )
    config = TrainCandidateConfig(candidate=candidate, features=FeatureConfig(history_length=HISTORY))
    write_json(work / "job.json", config.model_dump(mode="json"))
    write_json(work / "run.json", {"checkpoints": None, "warm_start": None, "identity": {}, "until": None})


def uncut(settings: Any) -> Any:
    """Return the settings with one partition for every item table."""
    return settings.changed(candidate={"model": {"item_parts": 1}})


def product_on_bags(catalogue: Any, settings: Any, sparse: bool) -> Any:
    """Return the product's towers with a ``torch.nn.EmbeddingBag`` in place of each table.

    Args:
        catalogue: of the items.
        settings: from ``uncut``.
        sparse: whether the tables' gradients are sparse.
    """
    import torch
    from torch import nn

    from stages.candidate.towers.two_tower import TwoTower, sizes_of

    class Found(dict[str, Any]):
        """What was looked up, by feature."""

        def to_dict(self) -> dict[str, Any]:
            return self

    class Bags(nn.Module):  # type: ignore[misc]
        """Looks each feature up in a plain table of its own."""

        def __init__(self, tables: Any) -> None:
            super().__init__()
            self.tables = nn.ModuleDict(
                {
                    table.feature_names[0]: nn.EmbeddingBag(
                        table.num_embeddings, table.embedding_dim, mode="sum", sparse=sparse
                    )
                    for table in tables
                }
            )

        def forward(self, features: Any) -> Found:
            found = Found()
            for name, table in self.tables.items():
                own = features[name]
                found[name] = table(own.values(), own.offsets()[:-1])
            return found

    model = TwoTower(sizes_of(catalogue, settings), settings.candidate.model, torch.device("meta"))
    model.embeddings = Bags(model.embeddings.embedding_bag_configs())
    return model


def step_parts(work: Path, kind: str) -> tuple[Any, Any, Any]:
    """Return batches, loss and a list of optimizers of one kind of model."""
    import torch
    import torch.distributed as dist

    from benchmarks.plain_towers import PlainLoss, PlainTowers
    from stages.candidate.data.examples import Examples
    from stages.candidate.data.item_features import Catalogue
    from stages.candidate.training import worker
    from stages.candidate.training.batches import make_batches
    from stages.candidate.training.objective import LossOfBatch

    settings = worker.job(work)
    torch.set_num_threads(1)
    if kind == "product":
        batches, loss_of, optimizer = worker.build(work, dist.get_rank(), dist.get_world_size())
        return batches, loss_of, [optimizer]
    config, catalogue = settings.candidate, Catalogue.load(work)
    batches = make_batches(Examples.load(work), catalogue, config, settings.features)
    sparse = kind.startswith("sparse")
    loss_of: Any
    if kind in ("sparse", "dense"):
        loss_of = PlainLoss(PlainTowers(catalogue, settings, sparse), catalogue, config, batches)
    else:
        settings = uncut(settings)
        config, model = settings.candidate, product_on_bags(catalogue, settings, sparse)
        loss_of = LossOfBatch(model, catalogue, config, batches, torch.device("cpu"))
    named = dict(loss_of.model.named_parameters())
    dense = [value for name, value in named.items() if name.startswith(("query_tower.", "item_tower."))]
    tables = [value for name, value in named.items() if not name.startswith(("query_tower.", "item_tower."))]
    of_tables = torch.optim.Adagrad(tables, lr=config.optimizer.sparse_learning_rate)
    return batches, loss_of, [of_tables, torch.optim.AdamW(dense, lr=config.optimizer.dense_learning_rate)]


def measure(work: Path, kind: str, steps: int) -> dict[str, Any]:
    """Train some steps as the worker does, with prefetched input, and return speed and memory."""
    from stages.candidate.training.prefetch import Prefetched

    own = OwnMemory()
    batches, loss_of, optimizers = step_parts(work, kind)
    ready = Prefetched(batches.epoch(0), lambda batch: (batch, loss_of.prepare(batch)), 2)
    seconds, processor, waited, begun = [], [], [], time.perf_counter()
    used = time.process_time()
    for number, (batch, features) in enumerate(ready):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(batch, features).backward()
        for optimizer in optimizers:
            optimizer.step()
        seconds.append(time.perf_counter() - begun)
        processor.append(time.process_time() - used)
        waited.append(ready.waited)
        used = time.process_time()
        begun = time.perf_counter()
        if number + 1 == WARM_UP + steps:
            break
    ready.close()
    timed = seconds[WARM_UP:]
    return {
        "examples_per_s": round(batches.size / statistics.median(timed), 1),
        "input_wait_share": round((waited[-1] - waited[WARM_UP - 1]) / sum(timed), 4),
        "processor_ms": round(1000 * statistics.median(processor[WARM_UP:]), 1),
        "peak_gb": peak_gb(),
        "own_gb": own.stop(),
    }


class OwnMemory:
    """Peak memory of this process without file pages, sampled by a thread from now on.

    Mapped files, such as the examples, are left out: they are resident only while memory is free.
    """

    def __init__(self) -> None:
        self._peak, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self._peak = max(self._peak, int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]))
            if self._done.wait(0.05):
                return

    def stop(self) -> float:
        """Stop watching and return the peak in GB."""
        self._done.set()
        self._thread.join()
        return round(self._peak / 1e6, 3)


def peak_gb() -> float:
    """Return the largest resident memory of this process, in GB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)


def profile(work: Path, kind: str, steps: int) -> dict[str, float]:
    """Return the median milliseconds of each phase of a step; batches are prepared without a thread."""
    import torch

    batches, loss_of, optimizers = step_parts(work, kind)
    parts: dict[str, list[float]] = {}
    source, clock = batches.epoch(0), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        parts.setdefault(name, []).append(1000 * (time.perf_counter() - clock))
        clock = time.perf_counter()

    for _ in range(WARM_UP + steps):
        clock = time.perf_counter()
        batch = next(source)
        lap("input")
        features = loss_of.prepare(batch)
        lap("collation")
        with torch.no_grad():
            loss_of.forward(batch, features)
        lap("lookup_and_towers")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of(batch, features)
        lap("forward")
        loss.backward()
        lap("backward_with_fused_update" if kind == "product" else "backward")
        for optimizer in optimizers:
            optimizer.step()
        lap("optimizer")
    found = {name: round(statistics.median(values[WARM_UP:]), 1) for name, values in parts.items()}
    found["in_batch_product_and_loss"] = round(found["forward"] - found["lookup_and_towers"], 1)
    return found


def child(work: Path, job: str, kind: str, steps: int, ranks: int = 1) -> dict[str, Any]:
    """Run one job in processes of its own and return what rank 0 prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks), "-m", "benchmarks.training", "--job", job, kind, str(work)]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command += ["--steps", str(steps)]
    return in_a_process(command, environment)


def run_job(job: str, kind: str, work: Path, steps: int) -> None:
    """Run one rank: measure, and print the result on rank 0."""
    import torch.distributed as dist

    from stages.candidate.training import worker

    warnings.simplefilter("ignore")
    worker.initialise(worker.job(work).candidate)
    result = {"measure": measure, "profile": profile}[job](work, kind, steps)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, result.get("peak_gb"))
    if dist.get_rank() == 0:
        print(json.dumps({**result, "peak_gb_of_ranks": every} if len(every) > 1 else result))
    dist.destroy_process_group()


def medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure over repeats, and the throughput of each repeat."""
    names = ("examples_per_s", "processor_ms", "peak_gb", "own_gb")
    found = {name: statistics.median(r[name] for r in results) for name in names}
    waits = [result["input_wait_share"] for result in results]
    every = [result["examples_per_s"] for result in results]
    return {**found, "input_wait_share": statistics.median(waits), "every_examples_per_s": every}


def compare(home: Path, steps: int, repeat: int) -> dict[str, Any]:
    """Measure the models in turn."""
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in CHOICES}
    for _ in range(repeat):
        for kind in CHOICES:
            results[kind].append(child(home, "measure", kind, steps))
    found: dict[str, Any] = {kind: medians(own) for kind, own in results.items()}
    ours = found["product"]
    for other in CHOICES[1:]:
        found[f"times_{other}"] = round(ours["examples_per_s"] / found[other]["examples_per_s"], 2)
        found[f"times_{other}_by_processor_time"] = round(found[other]["processor_ms"] / ours["processor_ms"], 2)
        found[f"memory_of_{other}"] = round(ours["own_gb"] / found[other]["own_gb"], 2)
        found[f"resident_memory_of_{other}"] = round(ours["peak_gb"] / found[other]["peak_gb"], 2)
    found["profile_ms"] = {kind: child(home, "profile", kind, steps) for kind in CHOICES}
    return found


def ranks(home: Path, steps: int, repeat: int) -> dict[str, Any]:
    """Measure one rank, two ranks and two independent copies of one, in turn."""
    results: dict[str, list[dict[str, Any]]] = {"one_rank": [], "two_ranks": []}
    copies: list[float] = []
    for _ in range(repeat):
        results["one_rank"].append(child(home, "measure", "product", steps))
        results["two_ranks"].append(child(home, "measure", "product", steps, ranks=2))
        with ThreadPoolExecutor() as pool:
            both = list(pool.map(lambda _: child(home, "measure", "product", 2 * steps), range(2)))
        copies.append(round(sum(each["examples_per_s"] for each in both), 1))
    found: dict[str, Any] = {kind: medians(own) for kind, own in results.items()}
    found["two_copies"] = {"examples_per_s": statistics.median(copies), "every_examples_per_s": copies}
    speed = {kind: own["examples_per_s"] for kind, own in found.items()}
    found["times_two_ranks"] = round(speed["two_ranks"] / speed["one_rank"], 2)
    found["times_two_copies"] = round(speed["two_copies"] / speed["one_rank"], 2)
    return found


def growth(home: Path, sizes: list[int], n_users: int, steps: int) -> list[dict[str, Any]]:
    """Measure the product over the number of items."""
    found = []
    for n_items in sizes:
        write_world(home, min(n_users, max(n_items, 20_000)), n_items, 1)
        result = child(home, "measure", "product", steps)
        microseconds = round(1e6 / result["examples_per_s"], 1)
        found.append({"items": n_items, "us_per_example": microseconds, "peak_gb": result["peak_gb"]})
        print(found[-1])
    return found


def main() -> None:
    """Measure and print one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--users", type=float, default=1e6)
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each process")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--big", action="store_true", help="growth up to ten million items")
    parser.add_argument("--only-ranks", action="store_true", help="two ranks against one, nothing else")
    parser.add_argument("--home", type=Path, default=None, help="where the worlds go; 1 GB")
    parser.add_argument("--job", nargs=3, metavar=("JOB", "KIND", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        run_job(options.job[0], options.job[1], Path(options.job[2]), options.steps)
        return
    n_users, n_items = int(options.users), int(options.items)
    with tempfile.TemporaryDirectory(dir=options.home) as name:
        home = Path(name)
        write_world(home, n_users, n_items, 1)
        result = ranks(home, options.steps, options.repeat)
        if not options.only_ranks:
            result |= compare(home, options.steps, options.repeat)
            sizes = [10_000, 100_000, 1_000_000] + [10_000_000] * options.big
            result["growth"] = growth(home, sizes, n_users, options.steps)
    about = describe("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")
    print(json.dumps({"benchmark": "training", "users": n_users, "items": n_items, **about, **result}))


if __name__ == "__main__":
    main()
