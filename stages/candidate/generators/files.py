"""The files of the sources: ``sources.json``, and neighbours of items as CSR arrays.

    sources.json           SourcesSummary: names, settings, quotas, what the files belong to, their sha256
    <name>_offsets.npy     int64 ``[N + 1]``
    <name>_items.npy       int32 ``[E]``, the neighbours of item i at ``offsets[i]:offsets[i + 1]``, best first
    <name>_weights.npy     float32 ``[E]``, above 0

for ``name`` in ``ease``, ``ials`` and ``content``. Shapes: N items, E neighbours of all items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from stages.candidate.generators.config import SourcesConfig
from stages.contracts.arrays import load_npy
from stages.contracts.config import Config
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file, write_json

SOURCES_DIRECTORY, SOURCES_JSON = "sources", "sources.json"
COLUMNS: dict[str, np.dtype] = {
    "offsets": np.dtype(np.int64),
    "items": np.dtype(np.int32),
    "weights": np.dtype(np.float32),
}
Neighbours = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Offsets, items and weights."""


class SourcesSummary(Config):
    """``sources.json``.

    Attributes:
        format_version: of these files.
        names: the sources in use.
        quotas: items of each source by name, at most ``candidate_k`` together.
        learned: whether the quotas were learned.
        candidate_k: what the quotas are parts of.
        n_items: N.
        tower_version: of the two-tower model that the quotas were made with.
        data_fingerprint: of the snapshot.
        config: the settings.
        files: sha256 by name.
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


def write_neighbours(directory: Path, name: str, neighbours: Neighbours) -> dict[str, str]:
    """Write one source's arrays; return their sha256 by file name."""
    hashes = {}
    for column, values in zip(COLUMNS, neighbours, strict=True):
        path = directory / f"{name}_{column}.npy"
        np.save(path, values.astype(COLUMNS[column], copy=False))
        hashes[path.name] = sha256_file(path)
    return hashes


def write_summary(directory: Path, summary: SourcesSummary) -> None:
    """Write ``sources.json``, after the files that it names."""
    write_json(directory / SOURCES_JSON, summary.model_dump(mode="json"))


def read_summary(directory: Path, n_items: int) -> SourcesSummary:
    """Read ``sources.json`` and check what it says of itself.

    Raises:
        ReleaseError: if it is missing, malformed, or of another catalogue or version.
    """
    path = directory / SOURCES_JSON
    try:
        summary = SourcesSummary.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        raise ReleaseError(f"{path} is not a readable description of sources: {error}") from None
    faults: Mapping[str, tuple[object, object]] = {
        "format_version": (summary.format_version, 1),
        "n_items": (summary.n_items, n_items),
        "names": (summary.names, summary.config.names),
        "sources with a quota": (sorted(summary.quotas), sorted(summary.names)),
        "sum of quotas above candidate_k": (max(sum(summary.quotas.values()) - summary.candidate_k, 0), 0),
        "smallest quota below 0": (min(0, *summary.quotas.values()), 0),
    }
    wrong = [f"{what} = {found!r}, expected {wanted!r}" for what, (found, wanted) in faults.items() if found != wanted]
    if wrong:
        raise ReleaseError(f"{path}: " + "; ".join(wrong))
    return summary


def load_neighbours(directory: Path, name: str, summary: SourcesSummary) -> Neighbours:
    """Map one source's arrays into memory.

    Raises:
        ReleaseError: if one is missing, changed, of another type, or names items that do not exist.
    """
    offsets, items, weights = (_load(directory / f"{name}_{column}.npy", column, summary) for column in COLUMNS)
    ends = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (-1, -1)
    if len(offsets) != summary.n_items + 1 or ends != (0, len(items)) or (np.diff(offsets) < 0).any():
        raise ReleaseError(
            f"{directory / name}_offsets.npy: {len(offsets)} offsets from {ends[0]} to {ends[1]}, expected "
            f"{summary.n_items + 1} ascending ones from 0 to {len(items)}"
        )
    if len(items) != len(weights) or (len(items) and not 0 <= items.min() <= items.max() < summary.n_items):
        raise ReleaseError(f"{directory / name}_items.npy: allowed are {len(weights)} items below {summary.n_items}")
    return offsets, items, weights


def _load(path: Path, column: str, summary: SourcesSummary) -> np.ndarray:
    if path.name not in summary.files:
        raise ReleaseError(f"{path.parent / SOURCES_JSON} does not list {path.name}")
    if not path.is_file():
        raise ReleaseError(f"{path}: missing")
    if (found := sha256_file(path)) != summary.files[path.name]:
        raise ReleaseError(f"{path}: sha256 {found[:12]}…, {SOURCES_JSON} says {summary.files[path.name][:12]}…")
    try:
        values = load_npy(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    if values.ndim != 1 or values.dtype != COLUMNS[column]:
        raise ReleaseError(f"{path}: {values.dtype} {list(values.shape)}, expected {COLUMNS[column]} of one dimension")
    return values
