"""Published protocols that judge one split, or several splits of the same data.

Each protocol reads a folder, splits it, and sets the metrics, k, the seeds and the settings of the published rows. With
``validation``, the held-out rows are cut from the training rows in the protocol's own manner, and the test rows are not
used. Settings are tuned on these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval.data import Interactions, Split, number
from benchmarks.retrieval.readers import (
    distinct,
    find,
    find_each,
    numbered,
    read_chronological,
    read_movielens,
    read_sequences,
)
from stages.contracts.errors import DataError
from stages.contracts.ragged import places_in_rows

Splitter = Callable[[int, bool], Split]
"""Returns a split, given a seed and whether to cut validation rows from the training rows."""

_VALIDATION_SEED = 1_000_003
"""Added to a seed for validation, so that the two cuts do not draw the same numbers."""


@dataclass(frozen=True)
class Protocol:
    """How data are cut and judged.

    Attributes:
        read: makes a splitter of a folder or file.
        k: number of answers.
        metrics: names from ``judge.METRICS``.
        models: run by default.
        seeds: used by default.
        fixed: whether every seed gives the same test rows.
        fixed_validation: whether every seed gives the same validation rows.
        settings: by model; those of the published rows where they are known, else chosen on validation.
        needs: what the data must have, for messages.
    """

    read: Callable[[Path], Splitter]
    k: int
    metrics: tuple[str, ...]
    models: tuple[str, ...] = ("popularity", "item_knn", "ials", "ease")
    seeds: tuple[int, ...] = (1, 2, 3)
    fixed: bool = True
    fixed_validation: bool = True
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs: str = "users with two items or more, with --validation three"


def deal_by_item(rows: Interactions, seed: int, share: float = 0.75) -> Split:
    """Split each item's rows at random, as the recommenders team's ``python_stratified_split`` does with ml-100k.

    Each row gets a uniform random number, in file order. An item's rows are ranked by their numbers, from 1. Rows up to
    rank round(share * count), half to even, are for training.
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
    """Hold out the last row of each user; for validation the last but one, and the last row is dropped.

    A user who would have no training row left is trained on and not judged.
    """
    rank = rows.rank_from_latest
    last = 1 if validation else 0
    held = (rank == last) & (np.bincount(rows.user, minlength=rows.users)[rows.user] > last + 1)
    return Split(rows.take((rank >= last) & ~held), rows.take(held))


def _rank_within(group: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's rank by draw within its group, from 0, and the size of its group."""
    order = np.lexsort((draws, group))
    sizes = np.bincount(group)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = places_in_rows(sizes)
    return rank, sizes[group]


def check(data: Path, split: Split, needs: str) -> None:
    """Refuse a split without rows to train on or to judge.

    Args:
        data: the folder or file, for the message.
        split: of the data.
        needs: what the protocol needs of them, for the message.

    Raises:
        DataError: if there is no training row or no held-out row, or no judged user has a training row.
    """
    judged = np.unique(split.test.user)
    if not len(split.train) or not len(judged):
        part = "train on" if not len(split.train) else "judge"
        raise DataError(f"{data}: no row is left to {part}; the protocol needs {needs}")
    if not np.isin(judged, split.train.user).any():
        raise DataError(f"{data}: nobody who is judged has a training row; the protocol needs {needs}")


def read_ml_100k(data: Path) -> Splitter:
    """MovieLens 100K, split by item anew for each seed."""
    rows = distinct(data, read_movielens(data))

    def split(seed: int, validation: bool) -> Split:
        found = deal_by_item(rows, seed)
        return deal_by_item(found.train, seed + _VALIDATION_SEED) if validation else found

    return split


def read_given(data: Path) -> Splitter:
    """Read ``train.txt`` and ``test.txt`` of ``user item item …``; validation holds out the same share as test.

    Raises:
        DataError: if a file is missing, both hold the same row, or a user of ``test.txt`` has no row to train on.
    """
    paths = find_each(data, ["train.txt", "test.txt"])
    (train_user, train_item), (test_user, test_item) = (read_sequences(path) for path in paths)
    train_user, test_user, users = number(train_user, test_user)
    train_item, test_item, items = number(train_item, test_item)
    train, test = (
        distinct(path, Interactions(user, item, None, len(users), len(items)))
        for path, user, item in zip(paths, (train_user, test_user), (train_item, test_item), strict=True)
    )
    given = Split(train, test)
    _refuse_one_file_twice(paths, given)
    both = np.flatnonzero(np.isin(test.user * test.items + test.item, train.user * train.items + train.item))
    if len(both):
        user, item = users[test.user[both[0]]], items[test.item[both[0]]]
        raise DataError(
            f"{paths[1]}: {len(both)} of {len(test)} rows are in {paths[0].name} too, such as user {user} with item "
            f"{item}; allowed are rows that are in one of them"
        )
    strangers = np.setdiff1d(test.user, train.user)
    if len(strangers):
        raise DataError(
            f"{paths[1]}: {len(strangers)} users have no row in {paths[0].name}, such as user {users[strangers[0]]}; "
            "allowed are users with a row to train on"
        )
    share = len(test) / (len(train) + len(test))
    return lambda seed, validation: deal_by_user(train, seed + _VALIDATION_SEED, share) if validation else given


def _refuse_one_file_twice(paths: Sequence[Path], given: Split) -> None:
    """Refuse two files with the same rows, which would be a copy, or the same file under two names.

    Raises:
        DataError: naming both.
    """
    train, test = (np.sort(rows.user * rows.items + rows.item) for rows in (given.train, given.test))
    if np.array_equal(train, test):
        raise DataError(
            f"{paths[1]}: the same {len(test)} rows as {paths[0].name}; allowed are rows that are in one of them"
        )


def read_ml_1m_loo(data: Path) -> Splitter:
    """MovieLens 1M in the order of ``chrono_pos``."""
    rows = distinct(data, read_chronological(data))
    return lambda seed, validation: leave_last_out(rows, validation)


def read_beauty(data: Path) -> Splitter:
    """Sequences, one user a line in time order; the path may name any such file."""
    path = find(data, ["Beauty.txt"])
    user, item = read_sequences(path)
    rows = distinct(path, numbered(path, user, item, np.arange(len(user))))
    return lambda seed, validation: leave_last_out(rows, validation)


SEQUENTIAL = ("popularity", "item_knn", "ials", "ease", "ease_recency")
UNORDERED: Mapping[str, Mapping[str, Any]] = {"auto": {"ordered": False}, "auto_tower": {"ordered": False}}
"""What ``auto`` is told where held-out rows are drawn at random or the files have no order."""
GIVEN = Protocol(
    read_given,
    k=20,
    metrics=("recall", "ndcg"),
    fixed_validation=False,
    settings=UNORDERED,
    needs="rows in both files, with --validation users of several items",
)
"""Any data whose training and test rows are two files."""

PROTOCOLS: dict[str, Protocol] = {
    "ml-100k": Protocol(
        read_ml_100k,
        k=10,
        metrics=("ndcg", "precision", "recall"),
        seeds=(42, 1, 2, 3, 4),
        fixed=False,
        fixed_validation=False,
        models=("popularity", "popularity_recent", "item_knn", "ials", "ease"),
        settings={**UNORDERED, "ease": {"regularisation": 400}, "popularity_recent": {"days": 180}},
        needs="items that three users or more have, and users who have several",
    ),
    "m1": GIVEN,
    "ml-1m-m1": replace(GIVEN, settings={**UNORDERED, "ease": {"regularisation": 500}}),
    "amazoncds-m1": GIVEN,
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
