"""The files of the candidate generators in a release's directory ``sources/``.

    sources.json           SourcesSummary: names, settings, quotas, what the files belong to, their sha256
    <name>_<array>.npy     each array of each generator in use that is fitted, see ``CandidateGenerator.arrays``
    mixture.onnx           the network of a learned mixture, see ``Mixture``; only where it is used

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from stages.candidate.generators.config import SourcesConfig
from stages.candidate.generators.generator import Arrays, CandidateGenerator
from stages.candidate.generators.mixture import Mixture
from stages.candidate.generators.pools import mixture_features
from stages.contracts.arrays import load_npy
from stages.contracts.config import Config
from stages.contracts.errors import DataError, ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json
from stages.contracts.newcomers import NewcomerList

SOURCES_DIRECTORY, SOURCES_JSON, MIXTURE_FILE = "sources", "sources.json", "mixture.onnx"


class MixtureSummary(Config):
    """The learned mixture in ``sources.json``.

    Attributes:
        features: names of what the network reads, in order.
        pool: items of each generator's list that it scores, at most.
        deviation: largest difference between the exported network's scores and those of training.
    """

    features: tuple[str, ...]
    pool: int
    deviation: float


class SourcesSummary(Config):
    """``sources.json``.

    Attributes:
        format_version: of these files.
        names: the generators in use.
        quotas: items of each generator by name, at most ``candidate_k`` together.
        learned: whether the quotas were learned.
        candidate_k: candidates of a request; the quotas share them out.
        n_items: N.
        tower_version: of the two-tower model that the quotas were made with.
        data_fingerprint: of the snapshot.
        config: the settings.
        files: sha256 by name.
        mixture: the learned mixture; None where quotas mix the lists, as in older releases.
        newcomers: the list for users without history; None in older releases, which answer with all generators that
            answer such users and then with popular items at the longest half-life.
    """

    format_version: int = 1
    names: tuple[str, ...]
    quotas: dict[str, int]
    learned: bool
    candidate_k: int
    n_items: int
    tower_version: str
    data_fingerprint: str
    config: SourcesConfig
    files: dict[str, str] = {}
    mixture: MixtureSummary | None = None
    newcomers: NewcomerList | None = None


def write_arrays(directory: Path, kind: type[CandidateGenerator], arrays: Arrays) -> dict[str, str]:
    """Write what a generator was fitted to; return the files' sha256 by name.

    Raises:
        DataError: if these are not the arrays that the generator declares.
    """
    if set(arrays) != set(kind.arrays):
        raise DataError(f"generator {kind.name!r}: fitted arrays {sorted(arrays)}, expected {sorted(kind.arrays)}")
    hashes = {}
    for name, dtype in kind.arrays.items():
        path = directory / f"{kind.name}_{name}.npy"
        np.save(path, arrays[name].astype(dtype, copy=False))
        hashes[path.name] = sha256_file(path)
    return hashes


def write_summary(directory: Path, summary: SourcesSummary) -> None:
    """Write ``sources.json``, after the files that it names."""
    write_json(directory / SOURCES_JSON, summary.model_dump(mode="json"))


def read_summary(directory: Path, n_items: int | None) -> SourcesSummary:
    """Read ``sources.json`` and check that its fields fit together.

    Args:
        directory: holds it.
        n_items: size of the catalogue that it must be of; None for any.

    Raises:
        ReleaseError: if it is missing, malformed, or of another catalogue or version.
    """
    path = directory / SOURCES_JSON
    try:
        summary = SourcesSummary.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        raise ReleaseError(f"{path} is not a readable description of sources: {error}") from None
    faults: dict[str, tuple[object, object]] = {
        "format_version": (summary.format_version, 1),
        "n_items": (summary.n_items, summary.n_items if n_items is None else n_items),
        "names": (summary.names, summary.config.names),
        "generators with a quota": (sorted(summary.quotas), sorted(summary.names)),
        "sum of quotas above candidate_k": (max(sum(summary.quotas.values()) - summary.candidate_k, 0), 0),
        "smallest quota below 0": (min(0, *summary.quotas.values()), 0),
    }
    if summary.mixture is not None:
        faults |= {
            "mixture.features": (summary.mixture.features, mixture_features(summary.names)),
            "mixture.pool below candidate_k": (max(summary.candidate_k - summary.mixture.pool, 0), 0),
        }
    wrong = [f"{what} = {found!r}, expected {wanted!r}" for what, (found, wanted) in faults.items() if found != wanted]
    if wrong:
        raise ReleaseError(f"{path}: " + "; ".join(wrong))
    return summary


def load_arrays(
    directory: Path, kind: type[CandidateGenerator], summary: SourcesSummary, hashes: Mapping[str, str] | None = None
) -> Arrays:
    """Read the arrays of a generator; a large one is mapped from its file.

    Args:
        directory: holds them.
        kind: of the generator.
        summary: says their sha256.
        hashes: sha256 of the files as found, by path in a release; None computes them.

    Raises:
        ReleaseError: if one is missing, changed or of another type.
    """
    return {
        name: _load(directory / f"{kind.name}_{name}.npy", dtype, summary, hashes)
        for name, dtype in kind.arrays.items()
    }


def load_mixture(directory: Path, summary: SourcesSummary, hashes: Mapping[str, str] | None = None) -> Mixture | None:
    """Load the learned mixture; None where quotas mix the lists.

    Args:
        directory: holds it.
        summary: says its sha256, and what it reads.
        hashes: sha256 of the files as found, by path in a release; None computes them.

    Raises:
        ReleaseError: if it is missing, changed, or does not read what the summary says.
    """
    if summary.mixture is None:
        return None
    path = directory / MIXTURE_FILE
    _check(path, summary, hashes)
    return Mixture(path, summary.names, summary.mixture.pool)


def _check(path: Path, summary: SourcesSummary, hashes: Mapping[str, str] | None) -> None:
    """Refuse a file that is not the one that the summary names."""
    if path.name not in summary.files:
        raise ReleaseError(f"{path.parent / SOURCES_JSON} does not list {path.name}")
    if not path.is_file():
        raise ReleaseError(f"{path}: missing")
    found = sha256_file(path) if hashes is None else hashes[f"{SOURCES_DIRECTORY}/{path.name}"]
    if found != summary.files[path.name]:
        raise ReleaseError(f"{path}: sha256 {found[:12]}…, {SOURCES_JSON} says {summary.files[path.name][:12]}…")


def _load(path: Path, dtype: np.dtype, summary: SourcesSummary, hashes: Mapping[str, str] | None) -> np.ndarray:
    _check(path, summary, hashes)
    try:
        values = load_npy(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    if values.dtype != dtype:
        raise ReleaseError(f"{path}: {values.dtype} {list(values.shape)}, expected {dtype}")
    return values
