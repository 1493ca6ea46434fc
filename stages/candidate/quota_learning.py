"""Quotas that are learned: blocks go, one at a time, to the source whose next items find most of what is missing.

Shapes: P targets, S sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stages.candidate.source_config import TOWER


@dataclass(frozen=True)
class TargetRanks:
    """Where each source has the targets of some requests.

    Attributes:
        names: S sources.
        ranks: int32 ``[P, S]``, 0-based position in the source's list, -1 where it is not in it.
        weights: float64 ``[P]``, what finding a target adds to the mean recall of the requests.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], request_of: np.ndarray, ranks: np.ndarray) -> TargetRanks:
        """Weigh each target by its share of its request's targets.

        Args:
            names: S sources.
            request_of: int64 ``[P]``, the request of each target.
            ranks: int32 ``[P, S]``.
        """
        _, request, counts = np.unique(request_of, return_inverse=True, return_counts=True)
        return cls(tuple(names), ranks, 1.0 / (counts[request] * max(len(counts), 1)))

    def recall(self, quotas: Mapping[str, int]) -> float:
        """Return the mean recall of each source's first items together; what fills a list up is left out."""
        limits = np.array([quotas[name] for name in self.names])
        found = ((self.ranks >= 0) & (self.ranks < limits)).any(axis=1)
        return float(self.weights[found].sum())


def learn_quotas(targets: TargetRanks, candidate_k: int, block: int) -> dict[str, int]:
    """Give ``candidate_k`` away in blocks, each to the source with the largest gain in recall.

    Recall of a union of lists is submodular in the lists, for which greedy choice is good (Nemhauser, Wolsey and
    Fisher, 1978); blocks are ranges of one list, so that their bound is not ours. Where gains are equal, such as none,
    the two-tower index gets the block; where the result finds less than it would alone, it gets everything.

    Args:
        targets: of requests that nothing is judged on.
        candidate_k: items to give away.
        block: items at a time.

    Returns:
        The quota of each source; their sum is ``candidate_k``.
    """
    names = targets.names
    tower = names.index(TOWER)
    quotas = np.zeros(len(names), dtype=np.int64)
    missing = np.ones(len(targets.ranks), dtype=bool)
    while (left := candidate_k - int(quotas.sum())) > 0:
        size = min(block, left)
        next_PS = (targets.ranks >= quotas) & (targets.ranks < quotas + size)
        gains = targets.weights[missing] @ next_PS[missing]
        chosen = tower if gains[tower] >= gains.max() else int(gains.argmax())
        missing &= ~next_PS[:, chosen]
        quotas[chosen] += size
    learned = dict(zip(names, quotas.tolist(), strict=True))
    alone = {name: candidate_k if name == TOWER else 0 for name in names}
    return learned if targets.recall(learned) >= targets.recall(alone) else alone
