"""The step ``check_memory``: refuses a candidate generator that cannot be fitted, before the towers train for hours.

Shapes: N items, U users with touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.candidate.generators.config import CheckMemoryConfig, SourcesConfig
from stages.candidate.generators.generator import FitSize
from stages.candidate.generators.table import TOWER, generator_class, generator_names
from stages.candidate.linear.needs import baselines_left_out
from stages.contracts.errors import ConfigError
from stages.contracts.memory import require_memory
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_CANDIDATE
from stages.contracts.touches import touching


def check_memory(config: CheckMemoryConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Compare what each generator needs with its ``memory_gb`` and with the memory that is available.

    Args:
        config: generators, baselines, and which signals are exposures.
        inputs: ``snapshot``.
        directory: nothing is written.

    Returns:
        The 10^9 bytes that each generator in use needs; the baselines that will be left out, and why.

    Raises:
        ConfigError: naming every generator that does not fit, what it needs, and what to change.
        DataError: if the events are unreadable.
    """
    snapshot = Snapshot(inputs["snapshot"])
    size = fit_size(snapshot, config.features.exposure_signals)
    needed = {name: _needed(name, config.sources, size) for name in config.sources.names if name != TOWER}
    refuse_what_does_not_fit(config.sources, needed, size)
    if needed:
        largest = max(needed, key=lambda name: needed[name])
        require_memory(f"sources: fitting {largest}", round(needed[largest] * 1e9), "sources.names")
    left_out = baselines_left_out(config.baselines, size.users, size.items, size.touches)
    metrics = {f"{name}_gigabytes": gigabytes for name, gigabytes in needed.items()}
    return {**metrics, "touches": float(size.touches)}, {"baselines_left_out": left_out}


def fit_size(snapshot: Snapshot, exposure_signals: tuple[str, ...]) -> FitSize:
    """Return the sizes of what the generators are fitted to; events are read a row group at a time.

    Args:
        snapshot: of the run.
        exposure_signals: signals that are not touches.
    """
    touching_S, items = touching(snapshot.meta.signals, exposure_signals), snapshot.n_items()
    found = [np.zeros(0, dtype=np.int64)]
    for rows in snapshot.stream_events("user_index", "item_index", "signal", "part", "active"):
        chosen = (rows["part"] == PART_CANDIDATE) & rows["active"] & touching_S[rows["signal"]]
        found.append(rows["user_index"][chosen].astype(np.int64) * items + rows["item_index"][chosen])
    pairs = np.unique(np.concatenate(found))
    _, counts = np.unique(pairs // max(items, 1), return_counts=True)
    return FitSize(items=items, users=len(counts), touches=len(pairs), longest=int(counts.max(initial=0)))


def refuse_what_does_not_fit(sources: SourcesConfig, needed: Mapping[str, float], size: FitSize) -> None:
    """Refuse generators that need more than their own ``memory_gb``.

    Args:
        sources: the recipe's section.
        needed: 10^9 bytes by generator in use.
        size: of what they are fitted to.

    Raises:
        ConfigError: naming all of them.
    """
    faults = []
    for name, gigabytes in needed.items():
        allowed = _allowed(name, sources)
        if allowed is not None and gigabytes > allowed:
            faults.append(f"{name} needs {gigabytes:.3g} GB, sources.{name}.memory_gb = {allowed:g}")
    if not faults:
        return
    others = {name: _needed(name, sources, size) for name in generator_names() if name not in (TOWER, *needed)}
    fitting = [
        f"{name} ({gigabytes:.2g} GB)"
        for name, gigabytes in others.items()
        if 0 < gigabytes <= (_allowed(name, sources) or gigabytes)
    ]
    instead = f", such as for {' or '.join(fitting)}" if fitting else ""
    raise ConfigError(
        f"sources.names: with {size.items:,} items, {size.users:,} users and {size.touches:,} touches "
        f"{'; '.join(faults)}: allow more, select fewer items, or change sources.names{instead}"
    )


def _needed(name: str, sources: SourcesConfig, size: FitSize) -> float:
    return generator_class(name).needs(sources, size)


def _allowed(name: str, sources: SourcesConfig) -> float | None:
    limit: float | None = getattr((sources.model_extra or {}).get(name), "memory_gb", None)
    return limit
