"""Protocols that replay a log: Globo day by day, and the last fifth of MovieLens 100K's time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.retrieval.memory import free_gigabytes, too_large
from benchmarks.retrieval.readers import (
    codes,
    column_names,
    is_file,
    read_columns,
    read_ids,
    read_movielens,
    read_times_ms,
)
from benchmarks.retrieval.replay.log import Log
from benchmarks.retrieval.replay.models import ReplayModel
from benchmarks.retrieval.replay.run import METRICS, Replay, report
from benchmarks.retrieval.rows import Rows
from stages.contracts.errors import DataError, SluiceError

GLOBO_SEGMENTS = ("region", "referrer_type")
"""Context columns of a click, read where the file has them."""

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class ReplayProtocol:
    """A log, its judged periods, and the models that run by default.

    Attributes:
        read: makes the replay of a folder or file; the second argument is whether to judge on validation.
        models: run by default.
        settings: by model, chosen on validation.
    """

    read: Callable[[Path, bool], Replay]
    models: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_globo(data: Path, validation: bool) -> Replay:
    """Replay the clicks of the log's last two days (UTC), or for validation of the two days before.

    For validation no later click is read.

    Raises:
        DataError: if there is not one Parquet file with user_id, article_id and clicked_at, or it has too few days.
    """
    files = [data] if is_file(data) else sorted(data.glob("*.parquet"))
    if len(files) != 1:
        raise DataError(f"{data}: {len(files)} Parquet files; allowed is one, or its path")
    path, names = files[0], ("user_id", "article_id", "clicked_at")
    user, item, clicked = read_columns(path, names)
    there = [name for name in GLOBO_SEGMENTS if name in column_names(path)]
    columns = zip(there, read_columns(path, there), strict=True) if there else ()
    segments = {name: codes(path, name, column) for name, column in columns}
    log = Log.of(
        read_ids(path, names[0], user), read_ids(path, names[1], item), read_times_ms(path, names[2], clicked), segments
    )
    last = int(log.time_ms[-1]) // _DAY_MS - (2 if validation else 0)
    borders = np.searchsorted(log.time_ms, np.array([last - 1, last, last + 1]) * _DAY_MS).tolist()
    if not 0 < borders[0] < borders[1] < borders[2]:
        raise DataError(f"{path}: allowed is a log with clicks on two days to judge and before them")
    days = [str(np.datetime64(day, "D")) for day in (last - 1, last)]
    return Replay(
        log.first(borders[2]),
        {name: slice(*rows) for name, rows in zip(days, pairwise(borders), strict=True)},
        train=borders[0],
    )


def read_movielens_replay(data: Path, validation: bool) -> Replay:
    """Replay the last fifth of the ratings in time order, in tenths; for validation, of the earlier ones."""
    rows = read_movielens(data)
    if len(rows) < 100:
        raise DataError(f"{data}: {len(rows)} ratings; allowed are 100 or more")
    assert rows.time is not None, "u.data has times"
    log = Log.of(rows.user, rows.item, rows.time * 1000)
    end = round(0.8 * len(log)) if validation else len(log)
    train = round(0.8 * end)
    borders = np.linspace(train, end, 11).round().astype(int).tolist()
    parts = {f"tenth {n}": slice(borders[n - 1], borders[n]) for n in range(1, 11)}
    return Replay(log.first(end), parts, train=train)


def run(
    protocol: ReplayProtocol,
    data: Path,
    models: Mapping[str, ReplayModel],
    validation: bool,
    samples: int,
    memory_gb: float | None = None,
) -> dict[str, Any]:
    """Replay the log for every model; models are left out for the same reasons as in ``static.run``.

    Args:
        protocol: what is replayed.
        data: folder or file.
        models: by name.
        validation: whether to judge on the period before the test period.
        samples: of the bootstrap over users.
        memory_gb: what a model may take; None for what is free.

    Returns:
        The sizes, and for each model its settings, seconds and rows from ``replay.run.report``; ``left_out`` and
        ``failed`` as in ``static.run``.

    Raises:
        DataError: if the log cannot be read or judged.
    """
    replay = protocol.read(data, validation)
    log = replay.log
    if not (log.first_touch & (log.place > 0))[replay.rows].any():
        raise DataError(
            f"{data}: nobody who is judged has met another item before; allowed is a log with users of several items"
        )
    done = Rows(models)
    free_gb = free_gigabytes() if memory_gb is None else memory_gb
    for name, model in models.items():
        done.leave_out(name, why_not(model, replay, free_gb))
    found: dict[str, Any] = {}
    for name, model in models.items():
        if name in done.left_out:
            continue
        with done.running(name):
            rank = model.ranks(replay)
            found[name] = {"settings": model.model_dump()}
        if name in found:
            rows = report(replay, rank, samples)
            found[name] |= {"seconds": round(done.seconds[name], 1), "rows": rows}
    sizes = {"users": log.users, "items": log.items, "events": len(log), "train": replay.train}
    kept = {"models": found, "left_out": done.left_out, "failed": done.failed}
    return {"data": sizes, "bootstrap_samples": samples, **kept}


def why_not(model: ReplayModel, replay: Replay, free_gb: float | None) -> str | None:
    """Return why a model cannot be trained on this log, or None.

    Args:
        model: to be trained.
        replay: with the log.
        free_gb: the memory that it may take; None = not known.
    """
    try:
        model.check(replay)
    except SluiceError as error:
        return f"cannot run on these data: {error}"
    return too_large(model.gigabytes(replay), None, 0.0, free_gb)


def table(result: dict[str, Any]) -> str:
    """Return a table of every model and row, with intervals, and below it why other models have no row."""
    rows = []
    for name, model in result["models"].items():
        for row, figures in model["rows"].items():
            cells = [f"{f['mean']:.4f} [{f['low']:.4f}, {f['high']:.4f}]" for f in (figures[m] for m in METRICS)]
            rows.append([name, row, *cells])
    left_out = [f"{name:16s} left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join([tabulate(rows, headers=["model", "row", *METRICS], disable_numparse=True), *left_out])


REPLAYS: dict[str, ReplayProtocol] = {
    "globo": ReplayProtocol(
        read_globo, models=("last_24_hours", "last_3_hours", "last_hour", "last_10_minutes", "covisitation")
    ),
    "ml-100k-replay": ReplayProtocol(
        read_movielens_replay,
        models=("popularity", "last_7_days", "covisitation", "item_knn", "ials", "ease", "ease_recency"),
    ),
}
