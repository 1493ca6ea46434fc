"""Rows of the candidate period that are held out of a training, to choose its number of epochs.

Shapes: J judged users, T held-out items of all of them, X context columns.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from stages.candidate.config import EarlyStoppingConfig
from stages.candidate.data.examples import Examples
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.ragged import places_in_rows, row_offsets
from stages.contracts.tables import PART_CANDIDATE, EventTable

_SECOND_MS = 1000
_SEED = 3_000_017
"""Added to a training's seed, so that what is held out does not come from the numbers that order the examples."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out items of a sample of users, each with one request.

    Attributes:
        users: int64 ``[J]``, ascending.
        asked_ms: int64 ``[J]``, time of the request.
        contexts: int32 ``[J]``, row of ``Examples.moments`` at the first held-out touch.
        offsets: int64 ``[J + 1]``, where each user's items begin.
        items: int64 ``[T]``.
    """

    users: np.ndarray
    asked_ms: np.ndarray
    contexts: np.ndarray
    offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def save(self, directory: Path) -> None:
        """Write one ``held_out_<column>.npy`` a column."""
        for field in fields(self):
            np.save(_path(directory, field.name), getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> HeldOut:
        """Read the columns."""
        return cls(*(np.load(_path(directory, field.name), allow_pickle=False) for field in fields(cls)))

    @staticmethod
    def is_in(directory: Path) -> bool:
        """Return whether ``save`` has written to the directory."""
        return _path(directory, "users").is_file()


def _path(directory: Path, column: str) -> Path:
    return directory / f"held_out_{column}.npy"


def hold_out(
    events: EventTable, touches: Examples, config: EarlyStoppingConfig, seed: int
) -> tuple[EventTable, HeldOut]:
    """Return the events without what is held out, and the held-out items of at most ``config.users`` users.

    With ``later`` all events from a moment on are left out, so that nothing later is known in training. With ``random``
    the events of the held-out pairs of the sampled users are left out; other users keep all of theirs.

    Args:
        events: of the snapshot.
        touches: the first touches of these events, from ``training_examples``.
        config: what is held out.
        seed: of the training.

    Raises:
        EmptyDatasetError: if no user has both a row to hold out and another one.
    """
    rng = np.random.default_rng([seed, _SEED])
    later = config.hold_out == "later"
    if later:
        start_ms = np.quantile(touches.times_ms, 1.0 - config.share, method="higher")
        held_E = touches.times_ms >= start_ms
        # A user without an earlier touch has no history.
        held_E &= (touches.times_ms < start_ms)[touches.start]
        others = (events.part == PART_CANDIDATE) & (events.event_time_ms >= start_ms)
    else:
        start_ms = 0
        held_E = _share_of_each(touches, config.share, rng)
        others = np.zeros(len(events), dtype=bool)
    users = np.unique(touches.users[held_E]).astype(np.int64)
    if not len(users):
        raise EmptyDatasetError(
            f"candidate.training.early_stopping.share = {config.share:g} of {len(touches)} rows, hold_out = "
            f"{config.hold_out!r}: no user has a row to hold out and another one; allowed are larger shares, or "
            "early_stopping = null"
        )
    if len(users) > config.users:
        users = np.sort(rng.choice(users, config.users, replace=False))
    held = np.flatnonzero(held_E & np.isin(touches.users, users))
    first = np.flatnonzero(np.append(True, np.diff(touches.users[held]) != 0))
    counts = np.diff(np.append(first, len(held)))
    found = HeldOut(
        users=users,
        asked_ms=np.full(len(users), start_ms) if later else _last_ms(touches, users) + _SECOND_MS,
        contexts=touches.contexts[held[first]].astype(np.int32),
        offsets=row_offsets(counts),
        items=touches.items[held].astype(np.int64),
    )
    n_items = int(max(touches.items.max(), events.item_index.max())) + 1
    key = touches.users[held].astype(np.int64) * n_items + touches.items[held]
    pairs = np.isin(events.user_index.astype(np.int64) * n_items + events.item_index, key)
    return events.take(~(others | pairs)), found


def _share_of_each(touches: Examples, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return bool ``[E]``: round(share * n) random touches of each user, but never all n."""
    sizes_U = np.bincount(touches.users)
    order = touches.shuffled(rng)
    place_E = places_in_rows(sizes_U[sizes_U > 0])
    size_E = sizes_U[touches.users]
    held = np.empty(len(touches), dtype=bool)
    held[order] = place_E < np.minimum(np.round(share * size_E), size_E - 1)
    return held


def _last_ms(touches: Examples, users: np.ndarray) -> np.ndarray:
    """Return int64 ``[J]``, the time of each user's last touch."""
    ends = np.searchsorted(touches.users, users, side="right")
    last: np.ndarray = touches.times_ms[ends - 1]
    return last
