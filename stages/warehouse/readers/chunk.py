"""The chunks that every reader yields: columns of some rows, and the rows that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.contracts.errors import DataError
from stages.warehouse.mapping import ColumnMapping


@dataclass(frozen=True)
class Reject:
    """A row to quarantine.

    Attributes:
        row_number: 1-based line of a text file (the first line of the row), or row of a table.
        reason: a short code such as ``missing_user_id``.
        raw: the row as it stands in the file.
    """

    row_number: int
    reason: str
    raw: str


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file.

    Attributes:
        columns: Arrow arrays ``[R]`` by the file's column names; text files give strings.
        row_numbers: int64 ``[R]``.
        raw: returns a row as it stands in the file, by its position in the chunk.
        rejects: rows that could not be split into columns; they are not among the R rows.
    """

    columns: dict[str, Any]
    row_numbers: np.ndarray
    raw: Callable[[int], str]
    rejects: list[Reject] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row_numbers)


def check_columns(file: str, mapping: ColumnMapping, found: Sequence[str]) -> None:
    """Check that a file has every column of its mapping exactly once.

    Raises:
        DataError: with the mapping's field, its column and the columns of the file.
    """
    faults = []
    for name, column in mapping.named:
        if found.count(column) != 1:
            trouble = "is not a column" if column not in found else "names more than one column"
            faults.append(f"mapping.{name} = {column!r} {trouble}")
    if faults:
        shown = ", ".join(found[:40]) or "none"
        raise DataError(f"{file}: {'; '.join(faults)}; the file has columns {shown}")
