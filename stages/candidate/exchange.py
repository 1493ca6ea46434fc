"""One global batch on several ranks: who holds which rows, and candidates that all ranks share.

The batch, its order, its negatives and what is hidden are drawn alike on every rank, whatever their
number; a rank then embeds its share. Candidates are gathered with their gradient, so that each query
meets all of the batch's candidates and N ranks compute the loss of one rank with the whole batch.

Shapes: B queries and C candidates of the whole batch, b and c of one rank, D dimensions, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Share:
    """What one rank holds of a batch of ``n_queries`` positives and ``n_uniform`` shared negatives.

    Every rank sends equally many rows, as collectives want them; the last ones may be padding.

    Attributes:
        n_queries: B.
        n_uniform: uniform negatives of the batch.
        rank: of R.
        world: R.
    """

    n_queries: int
    n_uniform: int
    rank: int
    world: int

    @property
    def queries(self) -> slice:
        """Return the rank's rows of the batch."""
        return part(self.n_queries, self.rank, self.world)

    @property
    def uniform(self) -> slice:
        """Return the rank's rows of the uniform negatives."""
        return part(self.n_uniform, self.rank, self.world)

    @property
    def rows(self) -> int:
        """Return c, the candidates that each rank embeds: its positives, its negatives, padding."""
        return -(-self.n_queries // self.world) + -(-self.n_uniform // self.world)

    @property
    def weight(self) -> float:
        """Return what the mean over the rank's queries counts for in the mean over ranks."""
        own = range(self.n_queries)[self.queries]
        return len(own) * self.world / self.n_queries

    def order(self) -> np.ndarray:
        """Return int64 ``[C]``, candidates in the order of this rank's loss: first its own positives.

        The other ranks' positives follow, then the uniform negatives; numbers are positions in the
        batch, positives before uniform negatives.
        """
        own = self.queries
        others = np.r_[0 : own.start, own.stop : self.n_queries + self.n_uniform]
        return np.concatenate([np.arange(own.start, own.stop), others]).astype(np.int64)

    def places(self) -> np.ndarray:
        """Return int64 ``[C]``, where each candidate of ``order`` lies in the gathered ``[R * c]`` rows."""
        place = np.empty(self.n_queries + self.n_uniform, dtype=np.int64)
        for rank in range(self.world):
            own = Share(self.n_queries, self.n_uniform, rank, self.world)
            queries, uniform = own.queries, own.uniform
            n_queries = queries.stop - queries.start
            start = rank * self.rows
            place[queries] = start + np.arange(n_queries)
            place[self.n_queries + uniform.start : self.n_queries + uniform.stop] = (
                start + n_queries + np.arange(uniform.stop - uniform.start)
            )
        found: np.ndarray = place[self.order()]
        return found


def part(n: int, rank: int, world: int) -> slice:
    """Return the rank's even share of n rows."""
    return slice(n * rank // world, n * (rank + 1) // world)


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """All ranks' rows on every rank; a row's gradient is the sum of what the ranks have for it."""

    @staticmethod
    def forward(ctx: Any, rows_cD: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows_cD) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows_cD.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient_RD: torch.Tensor) -> torch.Tensor:
        parts = list(gradient_RD.contiguous().chunk(dist.get_world_size()))
        own_cD = torch.empty_like(parts[0])
        dist.reduce_scatter(own_cD, parts)
        return own_cD


def gather_candidates(rows_cD: torch.Tensor, share: Share) -> torch.Tensor:
    """Return the whole batch's candidates ``[C, D]`` in the order of ``share.order``, differentiable.

    Args:
        rows_cD: what this rank embedded, ``share.rows`` of them.
        share: of this rank.
    """
    if share.world == 1:
        return rows_cD
    places_C = torch.from_numpy(share.places()).to(rows_cD.device)
    whole_CD: torch.Tensor = _Gather.apply(rows_cD)[places_C]
    return whole_CD
