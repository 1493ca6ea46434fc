"""Growing rows of keyed entries: a read-only CSR base, plus the rows that changed since.

For example, a user's items are a row: distinct integer keys in the order of their first appearance, with
some values for each. A release holds the rows as flat arrays, which are memory-mapped at load. Only a row
that changes is copied into memory, so a server starts in milliseconds however many rows there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from stages.contracts.errors import ReleaseError
from stages.contracts.ragged import row_offsets

_TYPECODES = {"int16": "h", "int32": "i", "int64": "q", "float32": "f", "float64": "d"}


class Row:
    """One mutable row.

    Attributes:
        slots: position of each key.
        columns: equally long arrays, the keys first.
    """

    __slots__ = ("columns", "slots")

    def __init__(self, columns: tuple[array, ...]) -> None:
        self.columns = columns
        self.slots: dict[int, int] = {key: slot for slot, key in enumerate(columns[0])}

    def append(self, *entry: float) -> None:
        """Append one entry; its first value is a key that is not in the row yet."""
        self.slots[int(entry[0])] = len(self.columns[0])
        for column, value in zip(self.columns, entry, strict=True):
            column.append(value)


class KeyedRows:
    """Rows of a fixed set of typed columns.

    Args:
        name: prefix of the arrays.
        columns: numpy dtype of each column by name, the keys first.
        arrays: the base: ``<name>_offsets`` int64 ``[n + 1]`` and the flat columns ``<name>_<column>``.
    """

    def __init__(self, name: str, columns: Mapping[str, np.dtype], arrays: Mapping[str, np.ndarray]) -> None:
        self._name, self._names, self._dtypes = name, tuple(columns), tuple(columns.values())
        self._offsets = arrays[f"{name}_offsets"]
        self._base = tuple(arrays[f"{name}_{column}"] for column in columns)
        self._changed: dict[int, Row] = {}

    def open(self, index: int) -> Row:
        """Return row ``index`` as a mutable row; an unknown row is empty.

        Raises:
            ReleaseError: if the row holds a key more than once.
        """
        row = self._changed.get(index)
        if row is None:
            columns = [
                array(_TYPECODES[dtype.name], self._base_slice(index, number).tobytes())
                for number, dtype in enumerate(self._dtypes)
            ]
            row = Row(tuple(columns))
            if len(row.slots) != len(columns[0]):
                raise ReleaseError(f"{self._name}: row {index} holds a key more than once; allowed are distinct keys")
            self._changed[index] = row
        return row

    def read(self, index: int, column: int) -> np.ndarray:
        """Return one column of row ``index``, in entry order; empty for an unknown row."""
        row = self._changed.get(index)
        if row is None:
            return self._base_slice(index, column)
        return np.array(row.columns[column], dtype=self._dtypes[column])

    def length(self, index: int) -> int:
        """Return the number of entries of row ``index``."""
        row = self._changed.get(index)
        return len(self._base_slice(index, 0)) if row is None else len(row.slots)

    def save(self, directory: Path, n_rows: int) -> None:
        """Write rows 0 to ``n_rows`` as ``<name>_offsets.npy`` and ``<name>_<column>.npy``."""
        lengths = (self.length(index) for index in range(n_rows))
        save_offsets(directory / f"{self._name}_offsets.npy", lengths, n_rows)
        for number, (column, dtype) in enumerate(zip(self._names, self._dtypes, strict=True)):
            pieces = [np.empty(0, dtype=dtype), *(self.read(index, number) for index in range(n_rows))]
            np.save(directory / f"{self._name}_{column}.npy", np.concatenate(pieces))

    def _base_slice(self, index: int, column: int) -> np.ndarray:
        if not 0 <= index < len(self._offsets) - 1:
            return self._base[column][:0]
        flat: np.ndarray = self._base[column][self._offsets[index] : self._offsets[index + 1]]
        return flat


def save_offsets(path: Path, lengths: Iterable[int], n_rows: int) -> None:
    """Write int64 ``[n_rows + 1]``: the start of each row in a CSR layout."""
    np.save(path, row_offsets(np.fromiter(lengths, dtype=np.int64, count=n_rows)))
