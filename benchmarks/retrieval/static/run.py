"""Runs models by a protocol of ``protocols.py``, and reports their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.retrieval.data import Interactions, Split
from benchmarks.retrieval.memory import free_gigabytes, too_large
from benchmarks.retrieval.rows import Rows
from benchmarks.retrieval.solved import make_room
from benchmarks.retrieval.static.judge import judge, judging_gigabytes
from benchmarks.retrieval.static.models import Model
from benchmarks.retrieval.static.protocols import Protocol, check
from stages.contracts.errors import SluiceError


def run(
    protocol: Protocol,
    data: Path,
    models: dict[str, Model],
    seeds: Sequence[int],
    validation: bool,
    memory_gb: float | None = None,
) -> dict[str, Any]:
    """Fit and judge every model with every seed.

    A deterministic model on a fixed split runs with the first seed only, since every seed gives the same figures. All
    splits, and the memory that each model needs, are checked before the first model is fitted. A model is left out if
    it does not fit the memory, cannot read the data, or fails; the others go on.

    Args:
        protocol: how data are cut and judged.
        data: folder or file.
        models: by name.
        seeds: of splits and models.
        validation: whether to judge on rows cut from the training rows.
        memory_gb: what a model may take; None for what is free.

    Returns:
        The sizes of the first seed's split, and for each model its settings, seconds of all runs, and for each metric
        the mean over seeds, the standard deviation (None for one run) and the values. ``left_out`` says for each model
        without a row why; ``failed`` lists those of them that had started.

    Raises:
        DataError: if the data cannot be read or judged.
    """
    splitter = protocol.read(data)
    fixed = protocol.fixed_validation if validation else protocol.fixed
    first = splitter(seeds[0], validation)
    for seed in seeds[: 1 if fixed else None]:
        check(data, splitter(seed, validation), protocol.needs)
    rows = Rows(models)
    free_gb = free_gigabytes() if memory_gb is None else memory_gb
    for name, model in models.items():
        rows.leave_out(name, why_not(model, first.train, free_gb))
    for seed in seeds:
        split = splitter(seed, validation)
        for name, model in models.items():
            if name in rows.left_out or (fixed and model.deterministic and rows.values[name]):
                continue
            with rows.running(name, f"seed {seed}"):
                judging_gb = judging_gigabytes(split.train.users, split.train.items)
                make_room(model.gigabytes(split.train) + judging_gb, free_gb)
                found = judge(model.fit(split.train, seed), split, protocol.k)
                rows.add(name, {f"{metric}@{protocol.k}": float(found[metric].mean()) for metric in protocol.metrics})
    return {
        "data": _sizes(first),
        "seeds": list(seeds),
        "models": {
            name: {
                "settings": model.model_dump(),
                "seconds": round(rows.seconds[name], 1),
                "metrics": {metric: summary(runs) for metric, runs in rows.values[name].items()},
            }
            for name, model in models.items()
            if name not in rows.left_out
        },
        "left_out": rows.left_out,
        "failed": rows.failed,
    }


def why_not(model: Model, train: Interactions, free_gb: float | None) -> str | None:
    """Return why a model cannot be fitted on these rows; None if it can.

    Args:
        model: to be fitted.
        train: its rows.
        free_gb: the memory that it may take; None = not known.
    """
    try:
        model.check(train)
    except SluiceError as error:
        return f"cannot run on these data: {error}"
    allowed_gb: float | None = getattr(model, "memory_gb", None)
    return too_large(model.gigabytes(train), allowed_gb, judging_gigabytes(train.users, train.items), free_gb)


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation (None for one run) and values of the runs."""
    spread = round(float(np.std(runs, ddof=1)), 5) if len(runs) > 1 else None
    return {"mean": round(float(np.mean(runs)), 5), "sd": spread, "values": [round(run, 5) for run in runs]}


def table(result: dict[str, Any]) -> str:
    """Return a table with mean and spread of every model, and below it why other models have no row."""
    rows = []
    for name, model in result["models"].items():
        cells = {"model": name}
        for metric, found in model["metrics"].items():
            spread = "" if found["sd"] is None else f" ± {found['sd']:.4f}"
            cells[metric] = f"{found['mean']:.4f}{spread}"
        rows.append(cells | {"seconds": f"{model['seconds']:.1f}"})
    left_out = [f"{name:14s} left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join([tabulate(rows, headers="keys", disable_numparse=True), *left_out])


def _sizes(split: Split) -> dict[str, int]:
    return {
        "users": split.train.users,
        "items": split.train.items,
        "train": len(split.train),
        "test": len(split.test),
        "judged_users": len(np.unique(split.test.user)),
    }
