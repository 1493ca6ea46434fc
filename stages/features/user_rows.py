"""Each user's touched items, in the order of first touches: a read-only base, and the rows that changed since.

A release holds the rows as flat arrays, which are mapped into memory at load. Only a row that changes is copied, into
a pool of chunks whose sizes are powers of two; so a server starts in milliseconds however many rows there are. An
outgrown chunk is used again for another row.

Shapes: U users, E entries of the base, P entries of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.contracts.errors import ReleaseError
from stages.contracts.ragged import row_offsets
from stages.features.row_kernels import row_append, row_find, row_has_room, row_open, rows_gather
from stages.features.state_arrays import FREE, INDEX_USED, LINEAR, USED, Rows
from stages.features.state_files import USER_COLUMNS

_POOL = 1 << 12
_CHUNKS = 48


class UserRows:
    """Growing rows of distinct items with a time, a signal, a value, positive tasks and the newest time.

    Args:
        arrays: the base: ``users_offsets`` int64 ``[n + 1]`` and the flat columns ``users_<column>`` ``[E]``.

    Attributes:
        arrays: for compiled functions; another tuple after ``make_room``.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        offsets = np.asarray(arrays["users_offsets"])
        n = len(offsets) - 1
        numbers = np.full(FREE + _CHUNKS, -1, dtype=np.int64)
        numbers[USED], numbers[INDEX_USED] = 0, 0
        self.arrays = Rows(
            start=offsets[:-1].copy(),
            sizes=np.diff(offsets),
            capacity=np.zeros(n, dtype=np.int64),
            base=tuple(np.asarray(arrays[f"users_{name}"]) for name in USER_COLUMNS),
            pool=tuple(np.empty(_POOL, dtype=dtype) for dtype in USER_COLUMNS.values()),
            index_start=np.full(n, -1, dtype=np.int64),
            lookup=np.zeros(_POOL, dtype=np.int32),
            numbers=numbers,
        )

    def make_room(self, n_users: int, row: int) -> None:
        """Let there be rows for ``n_users`` users, and let one row grow.

        Args:
            n_users: how many rows there must be.
            row: the row that must have room for one more entry.
        """
        rows = self.arrays
        missing = n_users - len(rows.start)
        if missing > 0:
            missing = max(missing, len(rows.start) // 2)
            rows = rows._replace(
                start=_longer(rows.start, missing, 0),
                sizes=_longer(rows.sizes, missing, 0),
                capacity=_longer(rows.capacity, missing, 0),
                index_start=_longer(rows.index_start, missing, -1),
            )
        while not row_has_room(rows, row):
            more = max(len(rows.lookup), 4 * int(rows.sizes[row]), LINEAR)
            rows = rows._replace(
                pool=tuple(_longer(column, more, 0) for column in rows.pool), lookup=_longer(rows.lookup, more, 0)
            )
        self.arrays = rows

    def append(
        self, row: int, item: int, time_ms: int, signal: int = 0, value: float = 0.0, positives: int = 0
    ) -> None:
        """Append an entry to a row; its item is not in the row yet.

        Raises:
            ReleaseError: if the stored row names an item more than once; nothing is changed.
        """
        self.make_room(row + 1, row)
        if not row_open(self.arrays, row):
            self.refuse(row)
        row_append(self.arrays, row, item, time_ms, signal, value, positives)

    def refuse(self, row: int) -> None:
        """Raise the error of a stored row that names an item more than once.

        Raises:
            ReleaseError: always.
        """
        raise ReleaseError(f"users: row {row} holds a key more than once; allowed are distinct keys")

    def find(self, row: int, item: int) -> int:
        """Return the place of an item in a row; -1 if it is not there."""
        return int(row_find(self.arrays, row, item)) if 0 <= row < len(self.arrays.start) else -1

    def read(self, row: int, column: int) -> np.ndarray:
        """Return one column of a row, in entry order; empty for an unknown row.

        A row of the base is not copied. A row that has changed is, since it may change again.
        """
        rows = self.arrays
        if not 0 <= row < len(rows.start):
            return rows.base[column][:0]
        entries = slice(rows.start[row], rows.start[row] + rows.sizes[row])
        return rows.pool[column][entries].copy() if rows.capacity[row] else rows.base[column][entries]

    def length(self, row: int) -> int:
        """Return the number of entries of a row."""
        return int(self.arrays.sizes[row]) if 0 <= row < len(self.arrays.start) else 0

    def save(self, directory: Path, n_rows: int) -> None:
        """Write rows 0 to ``n_rows`` as ``users_offsets.npy`` and ``users_<column>.npy``."""
        if n_rows:
            self.make_room(n_rows, n_rows - 1)
        offsets = row_offsets(self.arrays.sizes[:n_rows])
        np.save(directory / "users_offsets.npy", offsets)
        columns = tuple(np.empty(offsets[-1], dtype=dtype) for dtype in USER_COLUMNS.values())
        rows_gather(self.arrays, n_rows, columns)
        for name, column in zip(USER_COLUMNS, columns, strict=True):
            np.save(directory / f"users_{name}.npy", column)


def _longer(values: np.ndarray, more: int, fill: int) -> np.ndarray:
    return np.concatenate([values, np.full(more, fill, dtype=values.dtype)])
