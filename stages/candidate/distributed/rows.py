"""Brings looked-up rows to the ranks that asked for them, and their gradients back, with few copies.

TorchRec does the same for every kind of sharding, but copies each row three times on its way and each gradient four
times. Where whole tables lie on the ranks, rows go straight from the lookup to whoever needs them and
gradients straight from the towers to the rank that updates the rows. Other kinds are left to TorchRec.

Shapes: S bags of a feature, A of all ranks together, D columns of a feature, W columns of a rank's features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.sharding.tw_sharding import TwPooledEmbeddingSharding
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stages.candidate.distributed.ids import Sending, send_by_torchrec, send_to_tables
from stages.candidate.towers.inputs import SentFeatures

Pooled = dict[str, torch.Tensor]
_WAITS = "ReqBackward"
"""How the names end of the nodes in which TorchRec's backward pass waits for what other ranks have sent."""


def nothing() -> None:
    """Do nothing."""


class RowExchange:
    """Looks up rows for all ranks, once it has been sent their ids.

    Args:
        tables: TorchRec's sharded ``EmbeddingBagCollection``.
    """

    def __init__(self, tables: nn.Module) -> None:
        self._tables = tables
        self._layout: list[dict[str, int]] | None = None
        shardings = tables._embedding_shardings  # TorchRec tells nowhere else what is sharded how
        if len(shardings) == 1 and type(shardings[0]) is TwPooledEmbeddingSharding:
            dims = iter(shardings[0].embedding_dims())
            self._layout = [{name: next(dims) for name in own} for own in shardings[0].embedding_names_per_rank()]

    def send_ids(self, features: KeyedJaggedTensor) -> Sending:
        """Send the ids of this rank's batch to the ranks that have their rows."""
        if self._layout is None:
            return send_by_torchrec(self._tables, features)
        return send_to_tables(self._tables, self._layout, features)

    def start(self, sent: SentFeatures, meanwhile: Callable[[], None] = nothing) -> Callable[[], Pooled]:
        """Look up what all ranks asked for and send it off; return what waits for this rank's rows, once.

        Args:
            sent: the features of all ranks.
            meanwhile: is called in the backward pass while gradients travel, if they do. It takes part in no exchange.

        Returns:
            A function that returns float32 ``[S, D]`` by feature, differentiable.
        """
        if self._layout is None:
            rows = self._tables.compute_and_output_dist(sent.context, sent.features)
            return lambda: _cut(rows.wait(), meanwhile)
        (looked_up,) = self._tables.compute(sent.context, sent.features)
        travel = _Travel(self._layout, sent.strides, meanwhile)
        ticket = _Send.apply(looked_up.view(travel.n_bags, -1), travel)
        names = [name for own in self._layout for name in own]
        return lambda: dict(zip(names, _Receive.apply(ticket, travel), strict=True))


def _cut(rows: KeyedTensor, meanwhile: Callable[[], None]) -> Pooled:
    """Return TorchRec's rows by feature; ``meanwhile`` is called before it waits for their gradients."""
    nodes = deque([rows.values().grad_fn])
    while nodes:
        node = nodes.popleft()
        if node is not None and node.name().endswith(_WAITS):
            node.register_prehook(lambda _: meanwhile())
            break
        nodes += (after for after, _ in node.next_functions) if node is not None else ()
    pooled: Pooled = rows.to_dict()
    return pooled


class _Travel:
    """One lookup's rows on their way, and then their gradients; a rank's own ones stay where they are.

    Args:
        layout: features of each rank's tables in order of their columns, and their D.
        strides: S of each rank.
        meanwhile: see ``RowExchange.start``.
    """

    def __init__(self, layout: list[dict[str, int]], strides: Sequence[int], meanwhile: Callable[[], None]) -> None:
        rank = self._rank = dist.get_rank()
        self._sizes, self.meanwhile = [list(own.values()) for own in layout], meanwhile
        self._stride, self.n_bags, before = strides[rank], sum(strides), sum(strides[:rank])
        self._own = slice(before, before + strides[rank])
        # How many numbers come from and go to each rank with the rows; gradients go the other way.
        self._come = [strides[rank] * sum(own) * (peer != rank) for peer, own in enumerate(self._sizes)]
        self._go = [stride * sum(self._sizes[rank]) * (peer != rank) for peer, stride in enumerate(strides)]
        self._under_way: list[tuple[dist.Work, torch.Tensor, torch.Tensor]] = []

    def send_rows(self, rows_AW: torch.Tensor) -> None:
        """Send each rank what it asked for of this rank's tables: A bags of all ranks."""
        come = rows_AW.new_empty(sum(self._come))
        work = self._exchange(come, self._of_others(rows_AW), self._come, self._go)
        self._under_way.append((work, come, rows_AW[self._own]))

    def rows(self) -> tuple[torch.Tensor, ...]:
        """Wait for what this rank asked for and return ``[S, D]`` by feature."""
        work, come, own_SW = self._under_way.pop()
        work.wait()
        return tuple(self._by_feature(come, own_SW))

    def send_gradients(self, gradients: Sequence[torch.Tensor]) -> None:
        """Send each rank the mean over the ranks of the gradients of its tables' rows; as ``rows``."""
        come_AW = gradients[0].new_empty(self.n_bags, sum(self._sizes[self._rank]))
        leaving = come_AW.new_empty(sum(self._come))
        for place, gradient in zip(self._by_feature(leaving, come_AW[self._own]), gradients, strict=True):
            torch.div(gradient, len(self._sizes), out=place)
        others = self._of_others(come_AW) if self._is_at_an_end else come_AW.new_empty(sum(self._go))
        self._under_way.append((self._exchange(others, leaving, self._go, self._come), others, come_AW))

    def gradients(self) -> torch.Tensor:
        """Wait for the gradients of what this rank sent, ``[A, W]``."""
        work, others, come_AW = self._under_way.pop()
        work.wait()
        if not self._is_at_an_end:
            others_AW = others.view(-1, come_AW.shape[1])
            come_AW[: self._own.start] = others_AW[: self._own.start]
            come_AW[self._own.stop :] = others_AW[self._own.start :]
        return come_AW

    @property
    def _is_at_an_end(self) -> bool:
        return self._rank in (0, len(self._sizes) - 1)

    def _of_others(self, rows_AW: torch.Tensor) -> torch.Tensor:
        """Return what is other ranks' of ``[A, W]``, side by side: of the first and the last rank it lies so."""
        before, after = rows_AW[: self._own.start], rows_AW[self._own.stop :]
        if self._is_at_an_end:
            return after if self._rank == 0 else before
        return torch.cat([before, after])

    @staticmethod
    def _exchange(come: torch.Tensor, go: torch.Tensor, n_come: list[int], n_go: list[int]) -> dist.Work:
        return dist.all_to_all_single(come.view(-1), go.view(-1), n_come, n_go, async_op=True)

    def _by_feature(self, others: torch.Tensor, own_SW: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield ``[S, D]`` of all features, in rows of other ranks, one after another, and rows of this one."""
        for peer, (rows, sizes) in enumerate(zip(others.split(self._come), self._sizes, strict=True)):
            rows_SW = own_SW if peer == self._rank else rows.view(self._stride, sum(sizes))
            yield from rows_SW.split(sizes, dim=1) if sizes else ()


class _Send(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, rows_AW: torch.Tensor, travel: _Travel) -> torch.Tensor:
        ctx.travel = travel
        travel.send_rows(rows_AW.detach())
        return rows_AW.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.travel.meanwhile()
        return ctx.travel.gradients(), None


class _Receive(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, ticket: torch.Tensor, travel: _Travel) -> tuple[torch.Tensor, ...]:
        ctx.travel = travel
        ctx.save_for_backward(ticket)
        return travel.rows()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (ticket,) = ctx.saved_tensors
        ctx.travel.send_gradients(gradients)
        return torch.zeros_like(ticket), None
