"""The files of a ``FunnelState``: its arrays, and the catalogue and configuration that it was saved for.

Shapes: N items, C categories, T tasks, K half-lives, V context values (of all columns together).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.contracts.arrays import load_npy
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.value_ranges import SeenValues, ValueRange
from stages.contracts.value_rules import FittedValueRule
from stages.features.config import FeatureConfig, TrendsConfig
from stages.features.covisitation import COLUMNS as LINK_COLUMNS
from stages.features.trending import COLUMNS as TRENDING_COLUMNS

STATE_FILE = "state.json"
FORMAT_VERSION = 2
USER_COLUMNS: dict[str, np.dtype] = {
    "items": np.dtype(np.int64),
    "times_ms": np.dtype(np.int64),
    "signals": np.dtype(np.int16),
    "values": np.dtype(np.float32),
    "positives": np.dtype(np.int64),
    "latest_ms": np.dtype(np.int64),
}
"""One entry a user-item pair: first touch, best event, positive tasks as a bit mask, newest touch."""
SUMMED = ("touches", "exposures", "item_events", "item_value_sum")
"""Counters by item; their sums over all items are the first entries of ``totals``."""
PLAIN = (
    *SUMMED,
    "positives",
    "totals",
    "category_touches",
    "category_positives",
    "context_counts",
    "context_categories",
    "context_totals",
)
"""Arrays that are saved without conversion."""
DECAYED = {
    "item": "item_counts",
    "category": "category_counts",
    "task": "task_counts",
    "category_task": "category_task_counts",
    "exposure": "exposure_counts",
}
"""Attribute of each decayed count by the prefix of its files."""
RAGGED = tuple(f"users_{name}" for name in ("offsets", *USER_COLUMNS)) + tuple(
    f"neighbours_{name}" for name in ("offsets", *LINK_COLUMNS)
)
LOG = tuple(f"trending_{name}" for name in TRENDING_COLUMNS)
"""Arrays with one entry a recent touch; only a state that counts trends has them."""

_DAY_S = 86_400.0
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]


def array_shapes(
    items: ItemTable,
    config: FeatureConfig,
    tasks: Sequence[Task],
    context: Sequence[ContextColumn],
    trending: TrendsConfig | None = None,
) -> Shapes:
    """Return shape and dtype of every array of a state; for ragged arrays the shape of an empty state."""
    n, c, t, k = len(items), items.n_categories, len(tasks), len(config.half_lives_days)
    v = sum(len(column.values) for column in context)
    count, real = np.dtype(np.int64), np.dtype(np.float64)
    shapes: Shapes = {
        "item_counts": ((k, n), real),
        "item_last_ms": ((n,), count),
        "category_counts": ((k, c), real),
        "category_last_ms": ((c,), count),
        "task_counts": ((1, t * n), real),
        "task_last_ms": ((t * n,), count),
        "category_task_counts": ((1, t * c), real),
        "category_task_last_ms": ((t * c,), count),
        "exposure_counts": ((1, n), real),
        "exposure_last_ms": ((n,), count),
        "touches": ((n,), count),
        "exposures": ((n,), count),
        "positives": ((t, n), count),
        "totals": ((len(SUMMED) + t,), real),
        "item_events": ((n,), count),
        "item_value_sum": ((n,), real),
        "category_touches": ((c,), count),
        "category_positives": ((t, c), count),
        "context_counts": ((v, n), np.dtype(np.int32)),
        "context_categories": ((v, c), count),
        "context_totals": ((v,), count),
    }
    for prefix, columns in (("users", USER_COLUMNS), ("neighbours", LINK_COLUMNS)):
        shapes[f"{prefix}_offsets"] = ((1,), count)
        shapes |= {f"{prefix}_{name}": ((0,), dtype) for name, dtype in columns.items()}
    if trending is not None:
        shapes |= {f"trending_{name}": ((0,), dtype) for name, dtype in TRENDING_COLUMNS.items()}
    return shapes


def state_identity(
    items: ItemTable,
    config: FeatureConfig,
    signals: Sequence[str],
    tasks: Sequence[Task],
    context: Sequence[ContextColumn],
    trending: TrendsConfig | None = None,
) -> dict[str, Any]:
    """Return the catalogue sizes and configuration that a saved state belongs to, as ``state.json`` holds them."""
    kept = {} if trending is None else {"trending": trending.model_dump(mode="json")}
    return kept | {
        "format_version": FORMAT_VERSION,
        "n_items": len(items),
        "n_categories": items.n_categories,
        "config": config.model_dump(mode="json"),
        "signals": list(signals),
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "context": [column.model_dump(mode="json") for column in context],
    }


def check_identity(path: Path, wanted: dict[str, Any]) -> None:
    """Refuse a state that was saved for another catalogue or configuration.

    Raises:
        ReleaseError: if a key differs (the message has all of them), or the file cannot be read.
    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable state description: {error}") from None
    if not isinstance(found, dict):
        raise ReleaseError(f"{path} is not a readable state description: allowed is a JSON object")
    faults = [
        f"{key} = {found.get(key)!r}, expected {value!r}" for key, value in wanted.items() if found.get(key) != value
    ]
    if faults:
        raise ReleaseError(f"{path}: the state was saved for something else: " + "; ".join(faults))


def load_arrays(directory: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """Read small arrays into memory and map large ones copy-on-write, so that the files never change.

    Raises:
        ReleaseError: if an array is missing, malformed or of another shape or type.
    """
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        arrays[name] = _load_array(directory / f"{name}.npy", dtype)
        found = arrays[name].shape
        if name in (*RAGGED, *LOG):
            if len(found) != 1:
                raise ReleaseError(f"{directory / name}.npy has shape {found}, expected one dimension")
        elif found != shape:
            raise ReleaseError(f"{directory / name}.npy has shape {found}, expected {shape}")
    for name in ("users", "neighbours"):
        _check_rows(directory, name, arrays)
    links, n_items = len(arrays["neighbours_offsets"]) - 1, shapes["touches"][0][0]
    if links not in (0, n_items):
        raise ReleaseError(f"{directory / 'neighbours_offsets.npy'} is of {links} items, allowed are 0 and {n_items}")
    lengths = {f"{name}.npy": len(arrays[name]) for name in LOG if name in arrays}
    if len(set(lengths.values())) > 1:
        raise ReleaseError(f"{directory}: {lengths} must be equally long")
    return arrays


def check_values(directory: Path, arrays: dict[str, np.ndarray], n_items: int, n_signals: int, n_segments: int) -> None:
    """Refuse items, signals and segments that there are not: compiled functions do not check what they read.

    Args:
        directory: of the arrays, for the message.
        arrays: of ``load_arrays``.
        n_items: N.
        n_signals: of the event kinds.
        n_segments: codes of a touch's segment, 0 among them.

    Raises:
        ReleaseError: naming the file, the value and what is allowed.
    """
    limits = {
        "users_items": n_items,
        "users_signals": n_signals,
        "neighbours_items": n_items,
        "trending_items": n_items,
        "trending_segments": n_segments,
    }
    for name, limit in limits.items():
        values = arrays.get(name)
        if values is None or not len(values):
            continue
        least, most = int(values.min()), int(values.max())
        if least < 0 or most >= limit:
            found = least if least < 0 else most
            raise ReleaseError(f"{directory / name}.npy holds {found}, allowed are 0 to {limit - 1}")


def observed_ranges(directory: Path, signals: Sequence[str], rules: Sequence[FittedValueRule]) -> dict[str, ValueRange]:
    """Return each signal's range of values from users' histories, for releases without stored value ranges.

    A user-item pair keeps only the value of its best event, after its value rule. For a signal with a rule in
    seconds, the longest view is unknown, so one day is used.

    Raises:
        ReleaseError: if the arrays are not readable.
    """
    codes, values = (_load_array(directory / f"users_{name}.npy", USER_COLUMNS[name]) for name in ("signals", "values"))
    if codes.shape != values.shape:
        lengths = f"users_signals.npy {codes.shape}, users_values.npy {values.shape}"
        raise ReleaseError(f"{directory}: {lengths}: allowed are equal shapes")
    ranges = {}
    for code, signal in enumerate(signals):
        seen, units = SeenValues(), [rule.unit for rule in rules if rule.signal == signal]
        seen.add(np.asarray([0.0, _DAY_S]) if units == ["seconds"] else values[codes == code])
        if seen.distinct:
            ranges[signal] = seen.range(signal, amount=bool(units))
    return ranges


def _load_array(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        loaded = load_npy(path, "c")
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} is not a readable array: {error}") from None
    if loaded.dtype != dtype:
        raise ReleaseError(f"{path} holds {loaded.dtype}, expected {dtype}")
    return loaded


def _check_rows(directory: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Refuse offsets that do not start at 0 or that decrease, and flat columns of another length than the offsets'."""
    offsets = arrays[f"{name}_offsets"]
    if not len(offsets) or offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise ReleaseError(f"{directory / name}_offsets.npy: allowed are numbers that begin with 0 and never fall")
    end = int(offsets[-1])
    columns = USER_COLUMNS if name == "users" else LINK_COLUMNS
    for column in columns:
        found = len(arrays[f"{name}_{column}"])
        if found != end:
            raise ReleaseError(f"{directory / name}_{column}.npy has {found} entries, its offsets end at {end}")
