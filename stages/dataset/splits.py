"""Splits by user-item pair, and the check that no pair is in two periods.

Shapes: R events, U users.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from stages.contracts.errors import DataError
from stages.contracts.tables import PART_CANDIDATE, PART_EVALUATION, PART_RANKER, EventTable
from stages.contracts.touches import touching
from stages.dataset.config import DatasetStepConfig
from stages.dataset.events import PART_NAMES
from stages.dataset.snapshot_files import Contents
from stages.warehouse.selection.pair_splits import PairSplit


def pair_split(config: DatasetStepConfig) -> PairSplit | None:
    """Return how pairs are assigned to periods; None if the split is by time."""
    split = config.split
    if split.method == "time":
        return None
    fields = ("last", "before_last", "fold_in_share", "candidate_share", "ranker_share")
    held_out = tuple(config.signals.index(signal) for signal in split.evaluation_signals)
    return PairSplit(method=split.method, held_out=held_out, **{name: getattr(split, name) for name in fields})


def deal_users(user_ids: Sequence[str], shares: tuple[float, float, float], seed: int) -> np.ndarray:
    """Return int8 ``[U]``: the period that each user is assigned to.

    The period depends on a hash of seed and user id, so it does not change when other users come or go.

    Args:
        user_ids: U ids.
        shares: of the candidate, the ranker and the evaluation period; they add up to 1.
        seed: another seed gives another assignment.
    """
    lots = np.array(
        [int.from_bytes(hashlib.sha256(f"{seed}:{user_id}".encode()).digest()[:7], "big") for user_id in user_ids],
        dtype=np.int64,
    )
    limits = np.array([round(sum(shares[: part + 1]) * (1 << 56)) for part in (0, 1)], dtype=np.int64)
    parts: np.ndarray = np.searchsorted(limits, lots, side="right").astype(np.int8)
    return parts


def check_disjoint(events: EventTable, contents: Contents) -> None:
    """Refuse a split that puts one user-item pair into two periods.

    In a split by time a pair may have events in several periods. Then the pair of a target must have no
    touch in an earlier period; exposures are allowed.

    Args:
        events: rows of the later periods, and the earlier rows of their pairs.
        contents: of the snapshot to be written.

    Raises:
        DataError: with an item and the two periods; user ids stay out of errors.
    """
    requests, targets, n_items = contents.requests, contents.targets, len(contents.items)
    key = events.user_index * n_items + events.item_index
    counts = np.ones(len(events), dtype=bool)
    if contents.split == "time":
        counts = touching(contents.signals, contents.exposure_signals)[events.signal]
    keys = {part: np.unique(key[counts & (events.part == part)]) for part in PART_NAMES}
    asked = requests.user_index[targets.request_id] * n_items + targets.item_index
    part_of_target = requests.part[targets.request_id]
    for later, earlier in (
        (PART_RANKER, PART_CANDIDATE),
        (PART_EVALUATION, PART_CANDIDATE),
        (PART_EVALUATION, PART_RANKER),
    ):
        mine = keys[later] if contents.split != "time" else np.unique(asked[part_of_target == later])
        both = np.intersect1d(mine, keys[earlier], assume_unique=True)
        if len(both):
            item = int(both[0]) % n_items
            raise DataError(
                f"dataset.split: {len(both)} user-item pairs are in the {PART_NAMES[earlier]} and in the "
                f"{PART_NAMES[later]} part, such as one with item "
                f"{contents.items.item_id[item].as_py()!r}; none may be"
            )
