"""Training examples of the two-tower model: what a user touched next, given what came before.

Shapes: E examples, B batch, C candidates of a batch, L history length, N items.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from dataclasses import field as attribute
from pathlib import Path

import numpy as np

from stages.contracts.errors import EmptyDatasetError
from stages.contracts.snapshot import ItemTable, SnapshotMeta
from stages.contracts.tables import PART_CANDIDATE, EventTable
from stages.features.config import FeatureConfig


@dataclass(frozen=True)
class Examples:
    """First touches of the candidate part, in order of (user, time): both targets and histories.

    Touch e is an example whose target is ``items[e]``; its history is
    ``items[start[e]:end[e]]``, oldest first. Events of one moment see none of one another, so
    ``end`` is the user's first touch with the same time.

    Attributes:
        items: int32 ``[E]``.
        start: int64 ``[E]``, position of the user's first touch.
        end: int64 ``[E]``, one behind the newest touch strictly before the example.
    """

    items: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def histories(self, rows: np.ndarray, length: int, padding: int) -> np.ndarray:
        """Return int64 ``[B, L]`` histories of examples, newest first, padded on the right."""
        position_BL = self.end[rows][:, None] - 1 - np.arange(length)
        kept_BL = position_BL >= self.start[rows][:, None]
        items_BL: np.ndarray = np.where(kept_BL, self.items[np.where(kept_BL, position_BL, 0)], padding)
        return items_BL.astype(np.int64)

    def usable(self, empty_histories: bool) -> np.ndarray:
        """Return int64 rows of the examples to train on: all, or those with a history."""
        return np.flatnonzero((self.end > self.start) | empty_histories)

    def read_by_others(self, length: int) -> np.ndarray:
        """Return int64 touches that lie in the history, of ``length`` items, of some example.

        That is the case if the user's next moment is near enough; later moments are further away.
        """
        touches = np.arange(len(self))
        moments = np.unique(self.end)
        following = np.searchsorted(moments, touches, side="right")
        touches = touches[following < len(moments)]
        following = moments[following[: len(touches)]]
        near = (self.start[following] == self.start[touches]) & (touches >= following - length)
        read: np.ndarray = touches[near]
        return read

    def save(self, directory: Path) -> None:
        """Write one ``examples_<column>.npy`` a column."""
        for field in fields(self):
            np.save(directory / f"examples_{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> Examples:
        """Map the columns into memory."""
        return cls(
            **{
                field.name: np.load(directory / f"examples_{field.name}.npy", mmap_mode="r", allow_pickle=False)
                for field in fields(cls)
            }
        )


def training_examples(events: EventTable, meta: SnapshotMeta, features: FeatureConfig) -> Examples:
    """Return one example for each first touch of an item by a user in the candidate part.

    Only rows of active users are read; events that merely say that an item was shown are left out.

    Raises:
        EmptyDatasetError: if no row is left.
    """
    shown = [code for code, name in enumerate(meta.signals) if name in features.exposure_signals]
    rows = (events.part == PART_CANDIDATE) & events.active & ~np.isin(events.signal, shown)
    if not rows.any():
        part = int((events.part == PART_CANDIDATE).sum())
        raise EmptyDatasetError(
            f"events.parquet: none of {len(events)} events can train the candidate model: {part} lie in its part, "
            f"{int(events.active.sum())} are of active users; events with a signal among "
            f"{list(features.exposure_signals)} do not count"
        )
    return first_touches(events.take(rows))


def first_touches(events: EventTable) -> Examples:
    """Return the examples of events that are in time order."""
    order = np.lexsort((np.arange(len(events)), events.item_index, events.user_index))
    user, item = events.user_index[order], events.item_index[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    kept = np.sort(order[first])
    kept = kept[np.argsort(events.user_index[kept], kind="stable")]
    user, time = events.user_index[kept], events.event_time_ms[kept]
    new_user = np.ones(len(kept), dtype=bool)
    new_user[1:] = user[1:] != user[:-1]
    new_moment = new_user.copy()
    new_moment[1:] |= time[1:] != time[:-1]
    return Examples(
        items=events.item_index[kept].astype(np.int32), start=_last_true(new_user), end=_last_true(new_moment)
    )


def recency_weights(histories_BL: np.ndarray, padding: int, decay: float) -> np.ndarray:
    """Return float32 ``[B, L]`` weights of padded histories: the vectorised ``tower_inputs``."""
    weights_BL = np.where(histories_BL == padding, 0.0, np.exp(-np.arange(histories_BL.shape[1]) / decay))
    total_B1 = weights_BL.sum(axis=1, keepdims=True)
    normalised: np.ndarray = (weights_BL / np.where(total_B1 > 0, total_B1, 1.0)).astype(np.float32)
    return normalised


@dataclass(frozen=True)
class Catalogue:
    """What the towers know of items beside their ids.

    Attributes:
        offsets, codes: categories of item i are ``codes[offsets[i]:offsets[i + 1]]``, int64.
        log_duration: float32 ``[N]``, standardised ``log1p`` of the seconds, 0 where unknown.
        frequency: int64 ``[N]``, examples whose target is the item.
        in_histories: bool ``[N]``, items that some example's history holds.
        eligible: int64 ``[M]``, items created before the end of the candidate part that passed the item
            policy then: what a model of that moment would choose from, and so its negatives.
        duration_scale: float32 ``[2]``, mean and deviation behind ``log_duration``.
    """

    offsets: np.ndarray
    codes: np.ndarray
    log_duration: np.ndarray
    frequency: np.ndarray
    in_histories: np.ndarray
    eligible: np.ndarray
    duration_scale: np.ndarray = attribute(default_factory=lambda: np.array([0.0, 1.0], dtype=np.float32))

    @classmethod
    def of(cls, items: ItemTable, examples: Examples, rows: np.ndarray, length: int, end_ms: int) -> Catalogue:
        """Describe a snapshot's items.

        Args:
            items: the canonical items, N.
            examples: of the candidate part.
            rows: int64, the examples to train on.
            length: L, items read of a history.
            end_ms: end of the candidate part.
        """
        frequency = np.bincount(examples.items[rows], minlength=len(items)).astype(np.int64)
        in_histories = np.zeros(len(items), dtype=bool)
        in_histories[examples.items[examples.read_by_others(length)]] = True
        return cls(
            offsets=items.category_offsets,
            codes=items.category_codes.astype(np.int64),
            log_duration=_standardised_log(items.duration_s),
            frequency=frequency,
            in_histories=in_histories,
            eligible=np.flatnonzero(((items.created_at_ms < end_ms) & (items.eligible & 1 == 1)) | (frequency > 0)),
            duration_scale=_log_scale(items.duration_s),
        )

    def __len__(self) -> int:
        return len(self.log_duration)

    def save(self, directory: Path) -> None:
        """Write one ``catalogue_<column>.npy`` a column."""
        for field in fields(self):
            np.save(directory / f"catalogue_{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, directory: Path) -> Catalogue:
        """Read the columns."""
        return cls(
            **{
                field.name: np.load(directory / f"catalogue_{field.name}.npy", allow_pickle=False)
                for field in fields(cls)
            }
        )

    def category_bags(self, items: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Spread the weight of each item evenly over its categories.

        Args:
            items: int64 ``[n]``.
            weights: float32 ``[n]``.

        Returns:
            codes int64 ``[m]``, their weights float32 ``[m]`` and how many each item has, int64 ``[n]``.
        """
        counts = self.offsets[items + 1] - self.offsets[items]
        ends = np.cumsum(counts)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
        codes = self.codes[np.repeat(self.offsets[items], counts) + within]
        shares = np.repeat(weights / np.maximum(counts, 1), counts).astype(np.float32)
        return codes, shares, counts


def _last_true(flags: np.ndarray) -> np.ndarray:
    """Return for each position the latest position so far whose flag is set."""
    return np.maximum.accumulate(np.where(flags, np.arange(len(flags)), 0))


def _standardised_log(duration_s: np.ndarray) -> np.ndarray:
    known = np.isfinite(duration_s) & (duration_s >= 0)
    mean, deviation = _log_scale(duration_s)
    logs = np.log1p(np.where(known, duration_s, 0.0))
    scaled: np.ndarray = np.where(known, (logs - mean) / deviation, 0.0).astype(np.float32)
    return scaled


def _log_scale(duration_s: np.ndarray) -> np.ndarray:
    known = np.isfinite(duration_s) & (duration_s >= 0)
    logs = np.log1p(duration_s[known])
    return np.array([logs.mean(), max(logs.std(), 1e-6)] if len(logs) else [0.0, 1.0], dtype=np.float32)
