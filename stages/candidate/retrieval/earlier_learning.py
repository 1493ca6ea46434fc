"""Takes over the quotas or the mixture that an earlier run learned, for generators that are fitted anew.

A mixture reads where and how high the lists hold an item, relative to the list, so that it stays readable when the
generators are fitted to more data. A run that learns needs requests of a ranker period, which the generators are not
fitted to; one that takes over what was learned may fit them to all of its events.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stages.candidate.generators.config import SourcesConfig, TrainSourcesConfig
from stages.candidate.generators.files import (
    MIXTURE_FILE,
    SOURCES_DIRECTORY,
    SOURCES_JSON,
    SourcesSummary,
    load_mixture,
    read_summary,
)
from stages.contracts.errors import ConfigError
from stages.contracts.files import sha256_file


def learned_version(sources: SourcesConfig) -> str:
    """Return the sha256 of ``sources.json`` at ``sources.learned_from``, which names all files; empty without one.

    Raises:
        ConfigError: if there is no such file.
    """
    if sources.learned_from is None:
        return ""
    path = _directory(sources.learned_from) / SOURCES_JSON
    if not path.is_file():
        raise ConfigError(
            f"sources.learned_from = {sources.learned_from!r}: no {SOURCES_DIRECTORY}/{SOURCES_JSON} is there; allowed "
            "is the directory of a finished step train_sources, or of a release"
        )
    return sha256_file(path)


def take_over(config: TrainSourcesConfig, summary: SourcesSummary, target: Path) -> dict[str, Any]:
    """Copy the mixture of the earlier run, where it is used there, and return what changes in ``sources.json``.

    Args:
        config: of the step; without ``sources.learned_from`` nothing changes.
        summary: of the generators that were fitted anew.
        target: receives ``mixture.onnx``.

    Raises:
        ConfigError: if other generators, another ``candidate_k`` or something else was learned there, or the files
            changed since the step was configured.
        ReleaseError: if the files there do not belong together.
    """
    sources = config.sources
    if sources.learned_from is None:
        return {}
    directory, version = _directory(sources.learned_from), learned_version(sources)
    earlier = read_summary(directory, None)
    wanted: dict[str, tuple[object, object]] = {
        "names": (list(earlier.names), list(summary.names)),
        "candidate_k": (earlier.candidate_k, config.candidate_k),
        "learned quotas": (earlier.learned, summary.learned),
        "mixture.kind": (earlier.config.mixture.kind, sources.mixture.kind),
        "mixture.pool": (earlier.config.mixture.pool, sources.mixture.pool),
        "version": (version, config.learned_version or version),
    }
    wrong = [f"{what} = {found!r}, this run has {own!r}" for what, (found, own) in wanted.items() if found != own]
    if wrong:
        raise ConfigError(
            f"sources.learned_from = {sources.learned_from!r}: {'; '.join(wrong)}: allowed are equal ones"
        )
    changes: dict[str, Any] = {"quotas": earlier.quotas} if earlier.learned else {}
    if sources.newcomers.list == "measured" and earlier.newcomers is not None:
        changes["newcomers"] = earlier.newcomers
    if load_mixture(directory, earlier) is not None:
        shutil.copyfile(directory / MIXTURE_FILE, target / MIXTURE_FILE)
        files = {**summary.files, MIXTURE_FILE: earlier.files[MIXTURE_FILE]}
        changes |= {"mixture": earlier.mixture, "files": files}
    return changes


def _directory(path: str) -> Path:
    return Path(path) / SOURCES_DIRECTORY
