"""Checkpoints of a training run, from which a killed run resumes.

A checkpoint is a directory ``step-<number>`` that ``torch.distributed.checkpoint`` wrote: each rank
writes what it holds, and any number of ranks reads it again. It is written under another name and
renamed when it is complete. ``progress.json`` in it says how far the run was and what identifies it.

torch writes the metadata as a pickle. So a checkpoint is read only by the step that wrote it, from its own
directory, and is never passed on. State that is passed on is in ``.npy`` files, see ``distributed.training_state``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - what torch raises, nothing is loaded here
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from stages.candidate.config import CandidateConfig
from stages.candidate.distributed.training_state import State
from stages.contracts.config import Config, under_new_names
from stages.contracts.errors import ConfigError, DataError, TransientError
from stages.contracts.files import read_json, write_json

_PROGRESS = "progress.json"


class Progress(Config):
    """How far a run is. Orders, negatives and dropout follow from (seed, epoch, step).

    Attributes:
        epoch: of the next step.
        step: the next step in the epoch.
        losses: mean loss of each finished epoch.
        total: sum over the unfinished epoch's steps of the mean loss over ranks.
        validation: figures of each finished epoch on held-out rows, by name; empty without early stopping.
    """

    epoch: int = 0
    step: int = 0
    losses: tuple[float, ...] = ()
    total: float = 0.0
    validation: tuple[dict[str, float], ...] = ()

    def best_epoch(self, metric: str) -> int:
        """Return the number, from 1, of the first epoch with the best figure; 0 before there is one."""
        values = [figures[metric] for figures in self.validation]
        return values.index(max(values)) + 1 if values else 0


class Checkpoints:
    """The newest checkpoints of one run in one directory.

    Args:
        directory: holds them; made when the first is written.
        keep: how many are kept.
        identity: what a run must have in common with a checkpoint to resume from it, as flat JSON.
    """

    def __init__(self, directory: Path, keep: int, identity: dict[str, Any]) -> None:
        self._directory, self._keep, self._identity = directory, keep, identity

    def found(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(self._directory.glob("step-*"))

    def save(self, number: int, progress: Progress, state: State) -> None:
        """Write a checkpoint after ``number`` steps; every rank takes part.

        Raises:
            TransientError: if it cannot be written, mostly because the disk is full.
        """
        final = self._directory / f"step-{number:012d}"
        temporary = final.with_name(f".{final.name}.tmp")
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        try:
            dcp.save(dict(state), checkpoint_id=temporary)
        except CheckpointException as error:
            raise TransientError(f"checkpoint {final}: cannot be written ({_cause(error)})") from None
        if dist.get_rank() == 0:
            write_json(temporary / _PROGRESS, {**progress.model_dump(mode="json"), "identity": self._identity})
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            for old in self.found()[: -self._keep]:
                shutil.rmtree(old)
        dist.barrier()

    def resume(self, state: State) -> Progress:
        """Fill ``state`` in place from the newest checkpoint and return its progress; every rank takes part.

        Without a checkpoint nothing changes.

        Raises:
            ConfigError: if the checkpoint is that of another run, naming the field.
            DataError: if it cannot be read.
        """
        if not (found := self.found()):
            return Progress()
        path = found[-1]
        stored = read_json(path / _PROGRESS)
        check_identity(str(path), self._identity, under_new_names(CandidateConfig, "candidate", stored.pop("identity")))
        try:
            self._check_shapes(path, state)
            dcp.load(dict(state), checkpoint_id=path)
        except (CheckpointException, OSError, EOFError, UnpicklingError) as error:
            raise DataError(
                f"checkpoint {path}: cannot be read ({_cause(error)}); without it, the next run starts anew"
            ) from error
        return Progress.model_validate(stored)

    @staticmethod
    def _check_shapes(path: Path, state: State) -> None:
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        for name, value in state.items():
            found = list(stored[name].size) if name in stored else None
            if found != list(value.size()):
                raise ConfigError(f"checkpoint {path}: {name} has shape {found}, expected {list(value.size())}")


def _cause(error: Exception) -> str:
    """Return what went wrong on which rank, without torch's stack traces."""
    failures = error.failures if isinstance(error, CheckpointException) else {dist.get_rank(): (error, None)}
    return ", ".join(f"rank {rank}: {type(cause).__name__} {cause}".strip() for rank, (cause, _) in failures.items())


def check_identity(where: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse state that belongs to another run.

    Args:
        where: of the state, for the message.
        expected: of the run, flat.
        found: of the state.

    Raises:
        ConfigError: naming every field that differs.
    """
    other = [
        f"{name} is {found.get(name)!r} there, expected {expected.get(name)!r}"
        for name in sorted({*expected, *found})
        if found.get(name) != expected.get(name)
    ]
    if other:
        raise ConfigError(f"{where} is of another run: {'; '.join(other)}; remove it to start anew")
