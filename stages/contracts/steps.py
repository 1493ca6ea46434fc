"""Run a step once: content-addressed directories make retries safe and second runs free."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stages.contracts.code import body_code
from stages.contracts.config import Config
from stages.contracts.disk import names_full_disk
from stages.contracts.files import atomic_directory, canonical_json, read_json, sha256_text, write_json
from stages.contracts.results import StageResult

RESULT_FILE = "result.json"
Outcome = tuple[dict[str, float], dict[str, Any]]
"""What a step's body returns: (metrics, info)."""

ConfigT = TypeVar("ConfigT", bound=Config)
Step = Callable[[ConfigT, Mapping[str, Path], Path], Outcome]
"""A step's body: (configuration, named input directories, empty directory to write to)."""


def step_fingerprint(step: str, version: str, config: Config, inputs: Mapping[str, StageResult]) -> str:
    """Return the hash that identifies a step's work: its name, version, configuration and inputs."""
    upstream = {name: result.fingerprint for name, result in inputs.items()}
    payload = {"step": step, "version": version, "config": config.model_dump(mode="json"), "inputs": upstream}
    return sha256_text(canonical_json(payload))


def run_step(
    step: str,
    version: str,
    body: Step[ConfigT],
    config: ConfigT,
    inputs: Mapping[str, StageResult],
    root: Path,
) -> StageResult:
    """Run ``body`` unless a directory with the same fingerprint is already complete; other code has another one.

    Args:
        step: name, also the folder below ``root``.
        version: of the package. The code itself, that of ``body`` and all that it imports, counts beside it.
        body: writes its files into the directory that it is given.
        config: the step's resolved configuration; seed and as-of time are part of it.
        inputs: results of the steps before, by the name that ``body`` expects.
        root: directory under which every step's outputs live.

    Returns:
        The result, with ``reused=True`` if nothing had to be done.

    Raises:
        OutOfSpaceError: if a disk is full; nothing of the step is left.
    """
    fingerprint = step_fingerprint(step, f"{version} {body_code(body)}", config, inputs)
    final = root / step / fingerprint[:16]
    finished = load_result(final)
    if finished is not None:
        return finished.model_copy(update={"path": str(final), "reused": True})
    started = time.perf_counter()
    with names_full_disk(step, root), atomic_directory(final) as directory, names_full_disk(step, directory, own=True):
        metrics, info = body(config, {name: result.directory for name, result in inputs.items()}, directory)
        write_json(directory / "config.json", config.model_dump(mode="json"))
        result = StageResult(
            step=step,
            path=str(final),
            fingerprint=fingerprint,
            metrics=metrics,
            info=info,
            seconds=round(time.perf_counter() - started, 3),
        )
        write_json(directory / RESULT_FILE, result.model_dump(mode="json"))
    return result


def load_result(directory: Path) -> StageResult | None:
    """Return the result stored in a finished step's directory, or ``None`` if there is none."""
    path = directory / RESULT_FILE
    return StageResult.model_validate(read_json(path)) if path.is_file() else None
