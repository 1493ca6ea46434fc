"""Training as one rank in the process of the test: the start of the launcher costs more than the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stages.candidate.config import TrainCandidateConfig
from stages.candidate.training import step, worker


@contextmanager
def process_group() -> Iterator[None]:
    """Make a process group of one rank in this process, to run a rank's code without the launcher."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Let the step train within this context as the one rank of this process; the test needs ``one_rank``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "launch", train)
        yield


def train(config: TrainCandidateConfig, work: Path) -> None:
    """Train a prepared job as the one rank of this process."""
    assert config.candidate.distributed.n_processes == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchRec's own deprecations
        worker.train(work, progress=False)
