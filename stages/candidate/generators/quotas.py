"""Learns quotas: from the two-tower index alone, blocks of places move to the generator that gains most recall.

Shapes: B requests of a block, R requests, E listed items of all requests, N items, S generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.candidate.generators.mixing import Columns
from stages.candidate.generators.table import TOWER
from stages.contracts.compiled import compiled
from stages.contracts.item_lists import ItemLists
from stages.contracts.ragged import row_offsets
from stages.contracts.tables import ScoredItems


@dataclass(frozen=True)
class ListedBlock:
    """The lists of B requests, and their targets.

    Attributes:
        lists: of every generator, by name.
        target_offsets: int64 ``[B + 1]``; the targets of request b are
            ``targets[target_offsets[b]:target_offsets[b + 1]]``.
        targets: int64 items.
    """

    lists: Mapping[str, ItemLists]
    target_offsets: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class ListedItems:
    """Every item of the generators' lists, request by request; each begins with the two-tower list in its order.

    Attributes:
        names: S generators.
        ranks: int32 ``[E, S]``, 0-based position in the generator's list, -1 where it is not in it.
        request: int64 ``[E]``, 0 to R - 1, ascending.
        gains: float64 ``[E]``, what the item adds to its request's recall; 0 for an item that is no target.
        n_requests: R.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    request: np.ndarray
    gains: np.ndarray
    n_requests: int

    @classmethod
    def of(cls, names: Sequence[str], requests: Iterable[tuple[Mapping[str, ScoredItems], np.ndarray]]) -> ListedItems:
        """Join the lists of all requests.

        Args:
            names: S generators, one of them ``tower``.
            requests: for each request its lists by generator, and its int64 targets.
        """
        found = list(requests)
        lists = {name: ItemLists.join([by_name[name] for by_name, _ in found]) for name in names}
        targets = [np.zeros(0, dtype=np.int64), *(each.astype(np.int64) for _, each in found)]
        block = ListedBlock(lists, row_offsets([len(each) for each in targets[1:]]), np.concatenate(targets))
        largest = [each.ids.max(initial=-1) for each in lists.values()] + [block.targets.max(initial=-1)]
        return cls.of_blocks(names, int(max(largest)) + 1, [block])

    @classmethod
    def of_blocks(cls, names: Sequence[str], n_items: int, blocks: Iterable[ListedBlock]) -> ListedItems:
        """Join the lists of all requests, block by block.

        Args:
            names: S generators, one of them ``tower``.
            n_items: N.
            blocks: the lists and targets of the requests.
        """
        ranks = [np.zeros((0, len(names)), dtype=np.int32)]
        gains, lengths = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for block in blocks:
            columns = Columns.of([block.lists[name] for name in names])
            offsets = np.zeros(len(block.target_offsets), dtype=np.int64)
            ranks_ES = np.full((len(columns.ids), len(names)), -1, dtype=np.int32)
            gains_E = np.zeros(len(columns.ids))
            given = columns.offsets, columns.ids, tuple(names).index(TOWER), block.target_offsets, block.targets
            _list_items(*given, n_items, offsets, ranks_ES, gains_E)
            ranks.append(ranks_ES[: offsets[-1]].copy())
            gains.append(gains_E[: offsets[-1]].copy())
            lengths.append(np.diff(offsets))
        counts = np.concatenate(lengths)
        return cls(
            names=tuple(names),
            ranks=np.concatenate(ranks),
            request=np.repeat(np.arange(len(counts)), counts),
            gains=np.concatenate(gains),
            n_requests=len(counts),
        )

    def recalls(self, quotas: Mapping[str, int], k: int) -> np.ndarray:
        """Return float64 ``[R]``: the recall of each request, of ``k`` items as ``Blend.mix`` chooses them."""
        limits = np.array([quotas[name] for name in self.names])
        named = ((self.ranks >= 0) & (self.ranks < limits)).any(axis=1)
        left = k - np.bincount(self.request, named, minlength=self.n_requests)
        filling = ~named & (self.ranks[:, self.names.index(TOWER)] >= 0)
        before: np.ndarray = np.cumsum(filling) - filling
        starts = np.searchsorted(self.request, np.arange(self.n_requests))
        place = before - np.append(before, 0)[starts][self.request]
        chosen = named | (filling & (place < left[self.request]))
        recalls: np.ndarray = np.bincount(self.request, self.gains * chosen, minlength=self.n_requests)
        return recalls

    def alone(self, name: str, k: int) -> float:
        """Return the mean recall of one generator's first ``k`` items."""
        place = self.names.index(name)
        found = (self.ranks[:, place] >= 0) & (self.ranks[:, place] < k)
        return float(self.gains[found].sum() / max(self.n_requests, 1))


def learn_quotas(listed: ListedItems, candidate_k: int, block: int) -> dict[str, int]:
    """Begin with the two-tower index alone, and move places between generators while recall grows.

    Each step tries to move a block from every generator that has places to every other, and takes the move with the
    largest mean recall (of equals the first). A gain counts if it is above its standard error over the requests. Where
    no block gains, the step tries four blocks, then a generator's whole quota and everything to one generator; after
    a gain it tries single blocks again. So on these requests the result is never below the two-tower index, and below
    no other generator by more than chance.

    Args:
        listed: of requests that no evaluation reads.
        candidate_k: places to share out.
        block: places that move at a time.

    Returns:
        The quota of each generator; their sum is ``candidate_k``.
    """
    quotas = dict.fromkeys(listed.names, 0) | {TOWER: candidate_k}
    best = listed.recalls(quotas, candidate_k)
    level, amounts = 0, (block, 4 * block, candidate_k)
    while level < len(amounts) and len(quotas) > 1:
        tried = _moves(quotas, amounts[level])
        recalls = [listed.recalls(each, candidate_k) for each in tried]
        chosen = int(np.argmax([values.mean() for values in recalls]))
        gain = recalls[chosen] - best
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            quotas, best, level = tried[chosen], recalls[chosen], 0
        else:
            level += 1
    return quotas


def _moves(quotas: Mapping[str, int], amount: int) -> list[dict[str, int]]:
    """Return the quotas after moving up to ``amount`` from each generator to each other, the two-tower index first.

    Where ``amount`` is all places, giving all of them to one generator is among the moves.
    """
    whole = sum(quotas.values())
    donors = [name for name in (TOWER, *(name for name in quotas if name != TOWER)) if quotas[name]]
    found = []
    for donor in donors:
        size = min(amount, quotas[donor])
        found += [
            {**quotas, donor: quotas[donor] - size, name: quotas[name] + size} for name in quotas if name != donor
        ]
    if amount >= whole:
        found += [dict.fromkeys(quotas, 0) | {name: whole} for name in quotas]
    return [each for place, each in enumerate(found) if each != dict(quotas) and each not in found[:place]]


@compiled
def _list_items(
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    tower: int,
    target_offsets: np.ndarray,
    targets: np.ndarray,
    n_items: int,
    offsets: np.ndarray,
    ranks_ES: np.ndarray,
    gains_E: np.ndarray,
) -> None:
    """Write the items of each request, the tower's first and the others by index: their ranks and gains."""
    listed_in = np.full(n_items, -1, dtype=np.int32)  # the last request that lists the item
    place, others = np.empty(n_items, dtype=np.int64), np.empty(n_items, dtype=np.int64)
    for row in range(len(offsets) - 1):
        start = offsets[row]
        offsets[row + 1] = start + _place_items(row, start, offsets_SB, listed, tower, listed_in, place, others)
        for column in range(len(offsets_SB)):
            first = offsets_SB[column, row]
            for entry in range(first, offsets_SB[column, row + 1]):
                ranks_ES[place[listed[entry]], column] = entry - first
        n_targets = target_offsets[row + 1] - target_offsets[row]
        for entry in range(target_offsets[row], target_offsets[row + 1]):
            if listed_in[targets[entry]] == row:
                gains_E[place[targets[entry]]] = 1.0 / n_targets


@compiled
def _place_items(
    row: int,
    start: int,
    offsets_SB: np.ndarray,
    listed: np.ndarray,
    tower: int,
    listed_in: np.ndarray,
    place: np.ndarray,
    others: np.ndarray,
) -> int:
    """Write the place of each item of one request, from ``start``; return how many there are."""
    n_tower = offsets_SB[tower, row + 1] - offsets_SB[tower, row]
    for rank, item in enumerate(listed[offsets_SB[tower, row] : offsets_SB[tower, row + 1]]):
        listed_in[item], place[item] = row, start + rank
    n_others = 0
    for column in range(len(offsets_SB)):
        for item in listed[offsets_SB[column, row] : offsets_SB[column, row + 1]]:
            if listed_in[item] != row:
                listed_in[item], others[n_others] = row, item
                n_others += 1
    others[:n_others].sort()
    for number, item in enumerate(others[:n_others]):
        place[item] = start + n_tower + number
    return int(n_tower) + n_others
