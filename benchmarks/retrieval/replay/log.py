"""An event log in time order.

Legend: E events, U users, N items, X contexts, C segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.retrieval.data import number
from stages.contracts.errors import DataError
from stages.contracts.ragged import places_in_rows
from stages.contracts.snapshot import ContextColumn


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

    @cached_property
    def columns(self) -> tuple[ContextColumn, ...]:
        """The segments as context columns; code c + 1 is value c."""
        return tuple(
            ContextColumn(name=name, values=tuple(map(str, range(int(values.max()) + 1))))
            for name, values in self.segments.items()
        )

    @cached_property
    def contexts(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct contexts, int32 ``[X, C]``, the first one unknown, and the context of each event, ``[E]``."""
        if not self.segments:
            return np.zeros((1, 0), dtype=np.int32), np.zeros(len(self), dtype=np.int64)
        radix = [len(column.values) + 1 for column in self.columns]
        key = np.zeros(len(self), dtype=np.int64)
        for size, values in zip(radix, self.segments.values(), strict=True):
            key = key * size + values + 1
        found, place = np.unique(key, return_inverse=True)
        codes = np.zeros((1 + len(found), len(radix)), dtype=np.int32)
        for column in reversed(range(len(radix))):
            codes[1:, column], found = found % radix[column], found // radix[column]
        return codes, place + 1
