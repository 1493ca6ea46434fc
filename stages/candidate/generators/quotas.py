"""Learns quotas: from the two-tower index alone, blocks of places move to the generator that gains most recall.

Shapes: R requests, E listed items of all requests, S generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.candidate.generators.table import TOWER
from stages.contracts.tables import ScoredItems


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
        ranks, lengths, gains = [], [], []
        for lists, targets in requests:
            tower = lists[TOWER].ids
            others = np.unique(np.concatenate([lists[name].ids for name in names]))
            items = np.concatenate([tower, others[~np.isin(others, tower)]])
            ranks.append(_ranks(items, lists, names))
            lengths.append(len(items))
            gains.append(np.isin(items, targets) / max(len(targets), 1))
        return cls(
            names=tuple(names),
            ranks=np.concatenate([np.zeros((0, len(names)), dtype=np.int32), *ranks]),
            request=np.repeat(np.arange(len(lengths)), lengths),
            gains=np.concatenate([np.zeros(0), *gains]),
            n_requests=len(lengths),
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


def _ranks(items: np.ndarray, lists: Mapping[str, ScoredItems], names: Sequence[str]) -> np.ndarray:
    """Return int32 ``[n, S]``: where each list has each of the distinct ``items``."""
    ranks = np.full((len(items), len(names)), -1, dtype=np.int32)
    by_id = np.argsort(items)
    for column, name in enumerate(names):
        ids = lists[name].ids
        ranks[by_id[np.searchsorted(items[by_id], ids)], column] = np.arange(len(ids))
    return ranks
