"""Run a step once: content-addressed directories make retries safe and second runs free."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stages.contracts.code import body_code
from stages.contracts.config import Config, parse_config
from stages.contracts.disk import names_full_disk
from stages.contracts.errors import ConfigError
from stages.contracts.files import atomic_directory, canonical_json, read_json, sha256_text, write_json
from stages.contracts.results import StageResult

RESULT_FILE = "result.json"
Outcome = tuple[dict[str, float], dict[str, Any]]
"""What a step's body returns: (metrics, info)."""

ConfigT = TypeVar("ConfigT", bound=Config)
Body = Callable[[ConfigT, Mapping[str, Path], Path], Outcome]
"""A step's body: (configuration, named input directories, empty directory to write to)."""


def step_fingerprint(step: str, version: str, config: Config, inputs: Mapping[str, StageResult]) -> str:
    """Return the hash that identifies a step's work: its name, version, configuration and inputs."""
    upstream = {name: result.fingerprint for name, result in inputs.items()}
    payload = {"step": step, "version": version, "config": config.model_dump(mode="json"), "inputs": upstream}
    return sha256_text(canonical_json(payload))


def run_step(
    step: str,
    version: str,
    body: Body[ConfigT],
    config: ConfigT,
    inputs: Mapping[str, StageResult],
    root: Path,
    code: str | None = None,
) -> StageResult:
    """Run ``body`` unless a directory with the same fingerprint is complete; other code has another fingerprint.

    Args:
        step: name, also the folder below ``root``.
        version: of the package, and of the step where it has one.
        body: writes its files into the directory that it is given.
        config: the step's resolved configuration; seed and as-of time are part of it.
        inputs: results of the steps before, by the name that ``body`` expects.
        root: directory under which every step's outputs live.
        code: digest of the step's code, part of the fingerprint like the version; None = the digest of ``body``'s
            module.

    Returns:
        The result, with ``reused=True`` if nothing had to be done.

    Raises:
        ConfigError: if the step's directory is there, but holds the result of other work.
        OutOfSpaceError: if a disk is full; nothing of the step is left.
    """
    fingerprint = step_fingerprint(step, f"{version} {code or body_code(body)}", config, inputs)
    final = root / step / fingerprint[:16]
    finished = load_result(final, step, fingerprint)
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
            disk_bytes=sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
        )
        write_json(directory / RESULT_FILE, result.model_dump(mode="json"))
    return result


def load_result(directory: Path, step: str, fingerprint: str) -> StageResult | None:
    """Return the result of a finished step, or ``None`` if its directory is not there.

    Args:
        directory: of the step's work.
        step: name that the result must have.
        fingerprint: that the result must have.

    Raises:
        ConfigError: naming the file and what to do, if the directory holds no such result: it was made by another
            version, or damaged since. It is not overwritten, so that it can be looked into.
    """
    path = directory / RESULT_FILE
    if not directory.is_dir():
        return None
    what_to_do = f"it was made by another version or damaged since: remove {directory} and run again"
    try:
        result = parse_config(StageResult, read_json(path), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {what_to_do}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); {what_to_do}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}; {what_to_do}") from None
    for name, wanted, found in (("step", step, result.step), ("fingerprint", fingerprint, result.fingerprint)):
        if found != wanted:
            raise ConfigError(f"{path}: {name} = {found!r}, this step's is {wanted!r}; {what_to_do}")
    return result
