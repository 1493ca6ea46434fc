"""One global batch on several ranks: who holds which rows, and candidates that all ranks share.

The batch, its order, its negatives and what is hidden are drawn alike on every rank, whatever their
number; a rank then embeds its share. Candidates are gathered with their gradient, so that each query
meets all of the batch's candidates and N ranks compute the loss of one rank with the whole batch.

Shapes: B queries and C candidates of the whole batch, b and c of one rank, D dimensions, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Share:
    """What one rank holds of a batch's positives and shared negatives.

    Every rank sends equally many rows, as collectives want them; the last ones may be padding.

    Attributes:
        borders: R + 1 positions in the batch: rank r has the queries from border r to the next one.
        n_shared: shared negatives of the batch.
        rank: of R.
        with_positives: whether positives are candidates of their own; otherwise they are among the shared ones.
    """

    borders: tuple[int, ...]
    n_shared: int
    rank: int
    with_positives: bool = True

    @classmethod
    def even(cls, n_queries: int, n_shared: int, rank: int, world: int, with_positives: bool = True) -> Share:
        """Return an even share of ``n_queries`` queries."""
        borders = (0, *(part(n_queries, each, world).stop for each in range(world)))
        return cls(borders, n_shared, rank, with_positives)

    @property
    def n_queries(self) -> int:
        """Return B."""
        return self.borders[-1]

    @property
    def world(self) -> int:
        """Return R."""
        return len(self.borders) - 1

    @property
    def queries(self) -> slice:
        """Return the rank's rows of the batch."""
        return self._queries_of(self.rank)

    @property
    def shared(self) -> slice:
        """Return the rank's rows of the shared negatives."""
        return part(self.n_shared, self.rank, self.world)

    @property
    def rows(self) -> int:
        """Return c, the candidates that each rank embeds: its positives, its negatives, padding."""
        most = max(late - early for early, late in pairwise(self.borders))
        return most * self.with_positives + -(-self.n_shared // self.world)

    def own(self, values: np.ndarray) -> np.ndarray:
        """Return this rank's share of values of all positives, then all shared negatives; zeros pad it."""
        positives = values[self.queries] if self.with_positives else values[:0]
        shared = values[self.n_queries :][self.shared]
        padding = np.zeros(self.rows - len(positives) - len(shared), dtype=values.dtype)
        return np.concatenate([positives, shared, padding])

    def _queries_of(self, rank: int) -> slice:
        return slice(self.borders[rank], self.borders[rank + 1])

    @property
    def weight(self) -> float:
        """Return what the mean over the rank's queries counts for in the mean over ranks."""
        own = range(self.n_queries)[self.queries]
        return len(own) * self.world / self.n_queries

    def order(self) -> np.ndarray:
        """Return int64 ``[C]``, candidates in the order of this rank's loss: first its own positives.

        The other ranks' positives follow, then the shared negatives; numbers are positions in the
        batch, positives before shared negatives.
        """
        if not self.with_positives:
            return self.n_queries + np.arange(self.n_shared, dtype=np.int64)
        own = self.queries
        others = np.r_[0 : own.start, own.stop : self.n_queries + self.n_shared]
        return np.concatenate([np.arange(own.start, own.stop), others]).astype(np.int64)

    def blocks(self) -> list[slice]:
        """Return where the candidates of ``order``, one block after another, lie in the gathered ``[R * c]`` rows."""
        positives, shared = [], []
        for rank in range(self.world):
            queries, negatives = self._queries_of(rank), part(self.n_shared, rank, self.world)
            start = rank * self.rows
            middle = start + (queries.stop - queries.start) * self.with_positives
            positives.append(slice(start, middle))
            shared.append(slice(middle, middle + negatives.stop - negatives.start))
        return [positives.pop(self.rank), *positives, *shared]


def part(n: int, rank: int, world: int) -> slice:
    """Return the rank's even share of n rows."""
    return slice(n * rank // world, n * (rank + 1) // world)


class CandidateExchange:
    """Brings all ranks' candidates to every rank while other work goes on, and their gradients back.

    What stands between ``send`` and ``receive`` in the forward pass overlaps with the exchange, in the backward
    pass as well: autograd runs backwards what was recorded last first, so that the gradients leave where
    ``receive`` was and are waited for where ``send`` was. A row's gradient is the sum of what the ranks have for it.

    Args:
        share: of this rank.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self._under_way: list[tuple[dist.Work, torch.Tensor]] = []

    def send(self, rows_cD: torch.Tensor) -> torch.Tensor:
        """Start to send what this rank embedded, and return what ``receive`` takes.

        Args:
            rows_cD: ``share.rows`` candidates.
        """
        if self.share.world == 1:
            return rows_cD.float()
        ticket: torch.Tensor = _Send.apply(rows_cD.float(), self)
        return ticket

    def receive(self, ticket: torch.Tensor) -> torch.Tensor:
        """Return the whole batch's candidates float32 ``[C, D]`` in the order of ``share.order``, differentiable.

        Args:
            ticket: what ``send`` returned.
        """
        if self.share.world == 1:
            return ticket
        candidates_CD: torch.Tensor = _Receive.apply(ticket, self)
        return candidates_CD

    def start(self, work: dist.Work, buffer: torch.Tensor) -> None:
        """Remember the exchange that fills ``buffer``; there is one at a time."""
        self._under_way.append((work, buffer))

    def wait(self) -> torch.Tensor:
        """Return the buffer of the exchange that goes on, once it is filled."""
        work, buffer = self._under_way.pop()
        work.wait()
        return buffer


class _Send(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, rows_cD: torch.Tensor, exchange: CandidateExchange) -> torch.Tensor:
        ctx.exchange = exchange
        whole_RD = rows_cD.new_empty(exchange.share.world * len(rows_cD), rows_cD.shape[1])
        exchange.start(dist.all_gather_into_tensor(whole_RD, rows_cD.contiguous(), async_op=True), whole_RD)
        return rows_cD.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.exchange.wait().unflatten(0, (ctx.exchange.share.world, -1)).sum(dim=0), None


class _Receive(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, ticket: torch.Tensor, exchange: CandidateExchange) -> torch.Tensor:
        ctx.exchange = exchange
        whole_RD = exchange.wait()
        ctx.save_for_backward(ticket)
        return torch.cat([whole_RD[block] for block in exchange.share.blocks()])

    @staticmethod
    def backward(ctx: Any, gradient_CD: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ticket,), share = ctx.saved_tensors, ctx.exchange.share
        n_rows = share.world * share.rows
        make = gradient_CD.new_empty if n_rows == len(gradient_CD) else gradient_CD.new_zeros  # padding has none
        sent_RD, start = make(n_rows, gradient_CD.shape[1]), 0
        for block in share.blocks():
            size = block.stop - block.start
            sent_RD[block] = gradient_CD[start : start + size]
            start += size
        # Sums of what all ranks sent are taken where it is received: gloo's reduce-scatter takes several times as long.
        received_RD = torch.empty_like(sent_RD)
        ctx.exchange.start(dist.all_to_all_single(received_RD, sent_RD, async_op=True), received_RD)
        return torch.zeros_like(ticket), None
