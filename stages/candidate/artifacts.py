"""The files of a candidate generator, by name, and the checks before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts.arrays import load_npy
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file

TOWER_FILE, TOWER_JSON, VECTORS_FILE = "user_tower.onnx", "tower.json", "item_vectors.npy"
ITEM_TOWER_FILE = "item_tower.onnx"
INDEX_FILE, INDEX_JSON = "index.faiss", "index.json"


def load_vectors(candidate_dir: Path, summary: dict[str, Any]) -> np.ndarray:
    """Read the item vectors; a large file is mapped.

    Raises:
        ReleaseError: if the file is unreadable or has another shape or type than ``tower.json`` says.
    """
    path = candidate_dir / VECTORS_FILE
    try:
        vectors = load_npy(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    wanted = (summary["n_items"], summary["dim"])
    if vectors.shape != wanted or vectors.dtype != np.float32:
        raise ReleaseError(f"{path}: {vectors.dtype} {vectors.shape}, {TOWER_JSON} says float32 {wanted}")
    return vectors


def read_summary(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a JSON object that has ``keys``.

    Raises:
        ReleaseError: if it is unreadable or lacks one.
    """
    try:
        summary = read_json(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not readable: {error}") from None
    missing = [key for key in keys if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise ReleaseError(f"{path} lacks {missing}")
    return dict(summary)


def check_hash(path: Path, wanted: str, origin: str) -> None:
    """Compare a file with the hex sha256 that the file ``origin`` says.

    Raises:
        ReleaseError: if it is missing or another one.
    """
    if not path.is_file():
        raise ReleaseError(f"{path}: missing")
    if (found := sha256_file(path)) != wanted:
        raise ReleaseError(f"{path}: sha256 {found[:12]}…, {origin} says {wanted[:12]}…")
