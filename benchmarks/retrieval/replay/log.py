"""An event log in time order, and what each event's user had done before it.

Legend: E events, B events of a block, H items of histories, U users, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.retrieval.data import number
from stages.contracts.errors import DataError
from stages.contracts.ragged import places_in_rows, row_offsets


@dataclass(frozen=True)
class History:
    """What came before each event of a block, one row an item.

    Attributes:
        row: int64 ``[H]``, place of the event in its block.
        item: int64 ``[H]``.
        rank: int64 ``[H]``, 0 for the item right before the event.
    """

    row: np.ndarray
    item: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True)
class Log:
    """Events in the order in which they happen; of equal times the earlier row happens first.

    Attributes:
        user, item: int64 ``[E]``, numbered from 0 as they appear.
        time_ms: int64 ``[E]``, not decreasing.
        segments: by name, int64 ``[E]``, the value at each event (such as its region), numbered from 0 as it appears.
    """

    user: np.ndarray
    item: np.ndarray
    time_ms: np.ndarray
    segments: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        user: np.ndarray,
        item: np.ndarray,
        time_ms: np.ndarray,
        segments: Mapping[str, np.ndarray] | None = None,
    ) -> Log:
        """Sort raw events by time, stably, and number users, items and values of segments.

        Raises:
            DataError: if there are none.
        """
        if not len(user):
            raise DataError("the log holds no event; allowed is one or more")
        order = np.argsort(time_ms, kind="stable")
        named = {name: number(values[order])[0] for name, values in (segments or {}).items()}
        return cls(number(user[order])[0], number(item[order])[0], time_ms[order], named)

    def first(self, end: int) -> Log:
        """Return the log of the first ``end`` events."""
        named = {name: values[:end] for name, values in self.segments.items()}
        return Log(self.user[:end], self.item[:end], self.time_ms[:end], named)

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def users(self) -> int:
        """U."""
        return int(self.user.max()) + 1

    @cached_property
    def items(self) -> int:
        """N."""
        return int(self.item.max()) + 1

    @cached_property
    def by_user(self) -> np.ndarray:
        """Events user by user, each user's in time order, int64 ``[E]``."""
        return np.argsort(self.user, kind="stable")

    @cached_property
    def place(self) -> np.ndarray:
        """How many events of the same user come before each, int64 ``[E]``."""
        place = np.empty(len(self), dtype=np.int64)
        place[self.by_user] = places_in_rows(np.bincount(self.user))
        return place

    @cached_property
    def first_touch(self) -> np.ndarray:
        """Whether the user meets the item for the first time, bool ``[E]``."""
        _, first = np.unique(self.user * self.items + self.item, return_index=True)
        flags = np.zeros(len(self), dtype=bool)
        flags[first] = True
        return flags

    def before(self, rows: slice) -> History:
        """Return the items of all earlier events of each event's user; an item that was met twice comes twice."""
        lengths = self.place[rows]
        row = np.repeat(np.arange(len(lengths)), lengths)
        place = places_in_rows(lengths)
        events = self.by_user[self._starts[self.user[rows]][row] + place]
        return History(row, self.item[events], lengths[row] - 1 - place)

    def previous(self, rows: slice, back: int) -> np.ndarray:
        """Return the item that each event's user met ``back`` events earlier, int64 ``[B]``; -1 where there is none."""
        place = self.place[rows] - back
        events = self.by_user[self._starts[self.user[rows]] + np.maximum(place, 0)]
        return np.where(place >= 0, self.item[events], -1)

    @cached_property
    def _starts(self) -> np.ndarray:
        return row_offsets(np.bincount(self.user))[:-1]
