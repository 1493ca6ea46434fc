"""Running models by a protocol of ``protocols.py``, and what is said about them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval.data import Split
from benchmarks.retrieval.judge import judge
from benchmarks.retrieval.models import Model
from benchmarks.retrieval.protocols import Protocol


def run(
    protocol: Protocol, data: Path, models: dict[str, Model], seeds: Sequence[int], validation: bool
) -> dict[str, Any]:
    """Fit and judge every model with every seed.

    A deterministic model on a fixed split is run with the first seed only: its spread is nothing.

    Returns:
        The sizes of the first seed's split, and for each model its settings, seconds of all runs, and for each metric
        the mean over seeds, the standard deviation (None for one run) and the values.
    """
    splitter = protocol.read(data)
    fixed = protocol.fixed_validation if validation else protocol.fixed
    values: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    seconds = dict.fromkeys(models, 0.0)
    sizes: dict[str, int] = {}
    for seed in seeds:
        split = splitter(seed, validation)
        sizes = sizes or _sizes(split)
        for name, model in models.items():
            if fixed and model.deterministic and values[name]:
                continue
            started = time.perf_counter()
            found = judge(model.fit(split.train, seed), split, protocol.k)
            seconds[name] += time.perf_counter() - started
            for metric in protocol.metrics:
                values[name].setdefault(f"{metric}@{protocol.k}", []).append(float(found[metric].mean()))
            said = "  ".join(f"{metric} {runs[-1]:.4f}" for metric, runs in values[name].items())
            print(f"seed {seed}  {name:14s} {said}", file=sys.stderr)
    return {
        "data": sizes,
        "seeds": list(seeds),
        "models": {
            name: {
                "settings": model.model_dump(),
                "seconds": round(seconds[name], 1),
                "metrics": {metric: summary(runs) for metric, runs in values[name].items()},
            }
            for name, model in models.items()
        },
    }


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation (None for one run) and values of the runs."""
    spread = round(float(np.std(runs, ddof=1)), 5) if len(runs) > 1 else None
    return {"mean": round(float(np.mean(runs)), 5), "sd": spread, "values": [round(run, 5) for run in runs]}


def table(result: dict[str, Any]) -> str:
    """Return mean and spread of every model as lines of text."""
    rows = []
    for name, model in result["models"].items():
        cells = []
        for metric, found in model["metrics"].items():
            spread = "" if found["sd"] is None else f" ± {found['sd']:.4f}"
            cells.append(f"{metric} {found['mean']:.4f}{spread}")
        rows.append(f"{name:14s} {'   '.join(cells)}   {model['seconds']:.1f} s")
    return "\n".join(rows)


def _sizes(split: Split) -> dict[str, int]:
    return {
        "users": split.train.users,
        "items": split.train.items,
        "train": len(split.train),
        "test": len(split.test),
        "judged_users": len(np.unique(split.test.user)),
    }
