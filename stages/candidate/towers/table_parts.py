"""Tables that are kept as several, so that ranks can share them evenly: row i in part i modulo their number.

Popular items often lie beside each other, so that blocks of rows would burden the ranks unevenly; and a table
that is cut into smaller ones sends a row once, where TorchRec's row-wise tables send sums of rows, zeros among them, of
every rank to every rank. Outside training there is the whole table only, see ``distributed.training_state``.

Shapes: N rows, P parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"_(\d+)_of_(\d+)\b")
_CODES_A_FEATURE = 1024
"""Content codes for each feature that looks them up: few beside what a batch has of a part of the items."""


@dataclass(frozen=True)
class Part:
    """One part of a table.

    Attributes:
        number: from 0.
        of: P.
    """

    number: int = 0
    of: int = 1

    def name(self, whole: str) -> str:
        """Return the name of this part of ``whole``; it is the whole's where there is one part only."""
        return whole if self.of == 1 else f"{whole}_{self.number}_of_{self.of}"

    def size(self, n: int) -> int:
        """Return how many of N rows are in this part."""
        return len(range(n)[self.rows])

    @property
    def rows(self) -> slice:
        """Return the rows of the whole that are in this part."""
        return slice(self.number, None, self.of)

    def row(self, own: int) -> int:
        """Return the row of the whole that is row ``own`` of this part."""
        return self.number + self.of * own


WHOLE = Part()
"""The one part of a table that is not cut."""


def parts(n: int) -> tuple[Part, ...]:
    """Return all of ``n`` parts."""
    return tuple(Part(number, n) for number in range(n))


def dealt(n_codes: int, n: int) -> tuple[Part, ...]:
    """Return the parts that a batch's distinct ones of ``n_codes`` codes are dealt to, ``n`` at most.

    Every feature of a rank has equally many bags: codes of one feature must not be many more than items of a part, and
    those of several would leave most of their bags empty.
    """
    return parts(max(1, min(n, -(-n_codes // _CODES_A_FEATURE))))


def part_of(name: str) -> tuple[str, Part]:
    """Return the whole's name, and which part of it is meant by a name that ``Part.name`` made or that contains one."""
    found = _NAME.search(name)
    if found is None:
        return name, WHOLE
    return name[: found.start()] + name[found.end() :], Part(int(found[1]), int(found[2]))
