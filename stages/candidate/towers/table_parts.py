"""Partitions of a table, so that ranks can share it evenly: row i is in partition i modulo their number.

Popular items often lie beside each other, so blocks of rows would load the ranks unevenly. A partitioned table sends
each row once. TorchRec's row-wise tables send sums of rows, zeros among them, from every rank to every rank. Outside
training there are only whole tables, see ``distributed.training_state``.

Shapes: N rows, P partitions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"_(\d+)_of_(\d+)\b")
_CODES_A_FEATURE = 1024
"""Content codes for each feature that looks them up: few against a batch's items in one partition."""


@dataclass(frozen=True)
class Part:
    """One partition of a table.

    Attributes:
        number: from 0.
        of: P.
    """

    number: int = 0
    of: int = 1

    def name(self, whole: str) -> str:
        """Return the name of this partition of the table ``whole``; ``whole`` itself if it is the only one."""
        return whole if self.of == 1 else f"{whole}_{self.number}_of_{self.of}"

    def size(self, n: int) -> int:
        """Return how many of N rows are in this partition."""
        return len(range(n)[self.rows])

    @property
    def rows(self) -> slice:
        """Return the rows of the whole table that are in this partition."""
        return slice(self.number, None, self.of)

    def row(self, own: int) -> int:
        """Return the row of the whole table that is row ``own`` of this partition."""
        return self.number + self.of * own


WHOLE = Part()
"""The only partition of an undivided table."""


def parts(n: int) -> tuple[Part, ...]:
    """Return all of ``n`` partitions."""
    return tuple(Part(number, n) for number in range(n))


def dealt(n_codes: int, n: int) -> tuple[Part, ...]:
    """Return the partitions, ``n`` at most, that a batch's distinct codes of a table of ``n_codes`` are spread over.

    Every feature of a rank has equally many bags. So one feature must not have many more codes than a partition has
    items, and codes spread over many features would leave most of their bags empty.
    """
    return parts(max(1, min(n, -(-n_codes // _CODES_A_FEATURE))))


def part_of(name: str) -> tuple[str, Part]:
    """Return the whole table's name and the partition, from a name that is or contains one made by ``Part.name``."""
    found = _NAME.search(name)
    if found is None:
        return name, WHOLE
    return name[: found.start()] + name[found.end() :], Part(int(found[1]), int(found[2]))
