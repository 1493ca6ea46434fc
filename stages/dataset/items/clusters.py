"""Groups of duplicate items, each around one canonical item."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from stages.contracts.errors import ConfigError


class Clusters:
    """Grows groups pair by pair; every member of a group must be similar to its canonical item.

    The canonical item of a group is its first row by ``rank``. Two groups are merged only if every member
    is similar to the canonical item of the merged group, their categories do not contradict, and no
    verdict separates two members. Rows that verdicts join count as one item.

    Args:
        rank: sort key of each row, all different.
        categories: set of names of each row; two sets contradict if neither is empty and they share no name.
        alike: whether two rows are similar by themselves.
        same: pairs of rows that verdicts join.
        different: pairs of rows that verdicts separate.
        names: id of each row, for messages.

    Raises:
        ConfigError: if verdicts contradict; the message has these verdicts.
    """

    def __init__(
        self,
        rank: Sequence[tuple],
        categories: Sequence[frozenset[str]],
        alike: Callable[[int, int], bool],
        same: Iterable[tuple[int, int]],
        different: Iterable[tuple[int, int]],
        names: Sequence[str],
    ) -> None:
        self._rank, self._alike = rank, alike
        self.head = list(range(len(rank)))
        self._members: dict[int, list[int]] = {}
        self._known: dict[int, frozenset[str]] = {}
        self._categories = categories
        self._apart: dict[int, set[int]] = defaultdict(set)
        links: dict[int, set[int]] = defaultdict(set)
        for a, b in same:
            links[a].add(b)
            links[b].add(a)
            if self.head[a] != self.head[b]:
                self._merge(self.head[a], self.head[b])
        self._joined_of = {row: tuple(rows) for rows in self._members.values() for row in rows}
        for a, b in different:
            if self.head[a] == self.head[b]:
                path = " = ".join(repr(names[row]) for row in _path(links, a, b))
                raise ConfigError(
                    f"duplicates.verdicts contradict: {names[a]!r} and {names[b]!r} are different, but {path} are the "
                    "same; remove one of these verdicts"
                )
            self._apart[a].add(b)
            self._apart[b].add(a)

    def members(self, head: int) -> list[int]:
        """Return the rows of the group whose canonical row is ``head``."""
        return self._members.get(head, [head])

    def join(self, a: int, b: int) -> bool:
        """Merge the groups of two rows if that is allowed; return whether the rows share a group now."""
        first, second = sorted((self.head[a], self.head[b]), key=self._rank.__getitem__)
        if first == second:
            return True
        left, right = (self._known.get(head, self._categories[head]) for head in (first, second))
        if left and right and not left & right:
            return False
        few, other = sorted((first, second), key=lambda head: len(self.members(head)))
        if any(self.head[held] == other for row in self.members(few) for held in self._apart.get(row, ())):
            return False
        if not all(self._near(row, first) for row in self.members(second)):
            return False
        self._merge(first, second)
        return True

    def _near(self, row: int, head: int) -> bool:
        heads = self._joined_of.get(head, (head,))
        return any(self._alike(one, other) for one in self._joined_of.get(row, (row,)) for other in heads)

    def _merge(self, a: int, b: int) -> None:
        first, second = sorted((a, b), key=self._rank.__getitem__)
        moved = self._members.pop(second, [second])
        self._members.setdefault(first, [first]).extend(moved)
        known = [self._known.pop(head, self._categories[head]) for head in (first, second)]
        self._known[first] = known[0] | known[1]
        for row in moved:
            self.head[row] = first


def _path(links: dict[int, set[int]], start: int, end: int) -> list[int]:
    """Return the rows on a shortest path of verdicts from one row to another."""
    before: dict[int, int | None] = {start: None}
    queue = deque([start])
    while end not in before:
        row = queue.popleft()
        for other in sorted(links[row] - before.keys()):
            before[other] = row
            queue.append(other)
    path: list[int] = []
    step: int | None = end
    while step is not None:
        path.append(step)
        step = before[step]
    return path[::-1]
