"""Published protocols that judge one split, or several splits of the same data.

Each reads a folder, cuts it, and names the metrics, k, the seeds and the settings of the published rows. With
``validation`` a part is cut from the training rows in the protocol's own manner, and the test rows are left alone: that
is what people tune on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval.data import (
    Interactions,
    Split,
    find,
    number,
    read_chronological,
    read_movielens,
    read_sequences,
)

Splitter = Callable[[int, bool], Split]
"""Seed, and whether to cut validation from the training rows, to a split."""

_VALIDATION_SEED = 1_000_003
"""Added to a seed for validation, so that the two cuts do not draw the same numbers."""


@dataclass(frozen=True)
class Protocol:
    """How data are cut and judged.

    Attributes:
        read: a folder (or file) to a splitter.
        k: number of answers.
        metrics: names from ``judge.METRICS``.
        models: that run where none are named.
        seeds: that run where none are named.
        fixed: whether every seed gives the same test rows.
        fixed_validation: whether every seed gives the same validation rows.
        settings: by model; of the published rows where those say, else chosen on validation.
    """

    read: Callable[[Path], Splitter]
    k: int
    metrics: tuple[str, ...]
    models: tuple[str, ...] = ("popularity", "item_knn", "ials", "ease")
    seeds: tuple[int, ...] = (1, 2, 3)
    fixed: bool = True
    fixed_validation: bool = True
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def deal_by_item(rows: Interactions, seed: int, share: float = 0.75) -> Split:
    """Split each item's rows at random, as the recommenders team's ``python_stratified_split`` does with ml-100k.

    One uniform number a row in file order; an item's rows are ranked by theirs, from 1, and those up to
    round(share * count), half to even, are for training.
    """
    draws = np.random.RandomState(seed).uniform(size=len(rows))
    rank, count = _rank_within(rows.item, draws)
    train = rank < np.round(share * count)
    return Split(rows.take(train), rows.take(~train))


def deal_by_user(rows: Interactions, seed: int, share: float) -> Split:
    """Hold out round(share * count) random rows of each user, but never all of them."""
    draws = np.random.RandomState(seed).uniform(size=len(rows))
    rank, count = _rank_within(rows.user, draws)
    held = rank < np.minimum(np.round(share * count), count - 1)
    return Split(rows.take(~held), rows.take(held))


def leave_last_out(rows: Interactions, validation: bool) -> Split:
    """Hold out the last row of each user, or the one before it; later rows are dropped.

    Who would be left without a training row is trained on and not judged.
    """
    rank = rows.rank_from_latest
    last = 1 if validation else 0
    held = (rank == last) & (np.bincount(rows.user, minlength=rows.users)[rows.user] > last + 1)
    return Split(rows.take((rank >= last) & ~held), rows.take(held))


def _rank_within(group: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's rank by draw within its group, from 0, and the size of its group."""
    order = np.lexsort((draws, group))
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    return rank, sizes[group]


def read_ml_100k(data: Path) -> Splitter:
    """MovieLens 100K, split by item anew for each seed."""
    rows = read_movielens(data)

    def split(seed: int, validation: bool) -> Split:
        found = deal_by_item(rows, seed)
        return deal_by_item(found.train, seed + _VALIDATION_SEED) if validation else found

    return split


def read_given(data: Path) -> Splitter:
    """Read ``train.txt`` and ``test.txt`` of ``user item item …``; validation is as large a share as test is."""
    (train_user, train_item), (test_user, test_item) = (
        read_sequences(find(data, [f"{part}.txt"])) for part in ("train", "test")
    )
    train_user, test_user, users = number(train_user, test_user)
    train_item, test_item, items = number(train_item, test_item)
    given = Split(
        Interactions(train_user, train_item, None, len(users), len(items)),
        Interactions(test_user, test_item, None, len(users), len(items)),
    )
    share = len(given.test) / (len(given.train) + len(given.test))
    return lambda seed, validation: deal_by_user(given.train, seed + _VALIDATION_SEED, share) if validation else given


def read_ml_1m_loo(data: Path) -> Splitter:
    """MovieLens 1M in the order of ``chrono_pos``."""
    rows = read_chronological(data)
    return lambda seed, validation: leave_last_out(rows, validation)


def read_beauty(data: Path) -> Splitter:
    """Sequences, one user a line in time order; the path may name any such file."""
    user, item = read_sequences(find(data, ["Beauty.txt"]))
    time = np.arange(len(user))
    (user, users), (item, items) = number(user), number(item)
    rows = Interactions(user, item, time, len(users), len(items))
    return lambda seed, validation: leave_last_out(rows, validation)


SEQUENTIAL = ("popularity", "item_knn", "ials", "ease", "ease_recency")
PROTOCOLS: dict[str, Protocol] = {
    "ml-100k": Protocol(
        read_ml_100k,
        k=10,
        metrics=("ndcg", "precision", "recall"),
        seeds=(42, 1, 2, 3, 4),
        fixed=False,
        fixed_validation=False,
        settings={
            "ease": {"regularisation": 400},
            "ials": {"factors": 32, "confidence": 5, "regularisation": 10},
        },
    ),
    "ml-1m-m1": Protocol(
        read_given,
        k=20,
        metrics=("recall", "ndcg"),
        fixed_validation=False,
        settings={
            "ease": {"regularisation": 500},
            "ials": {"factors": 64, "confidence": 5, "regularisation": 30},
        },
    ),
    "ml-1m-loo": Protocol(
        read_ml_1m_loo,
        k=10,
        metrics=("recall", "ndcg"),
        models=SEQUENTIAL,
        settings={"ease": {"regularisation": 500}, "ease_recency": {"regularisation": 1000, "decay": 5}},
    ),
    "beauty": Protocol(
        read_beauty,
        k=10,
        metrics=("hit_rate", "ndcg"),
        models=SEQUENTIAL,
        settings={"ease": {"regularisation": 100}, "ease_recency": {"regularisation": 100, "decay": 2}},
    ),
}
