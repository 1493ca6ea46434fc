"""Sends the ids of the next batches to the ranks that hold their rows while the current batch trains.

Before a rank can look up rows for the others it must know the largest stride, then how many ids each sends, then the
ids: three exchanges that each wait for the slowest rank. Here they are started a step before they are waited for.
Ids do not depend on weights, so that nothing else changes. What then is left to wait for are the rows and, in the
backward pass, their gradients: meanwhile the next batches are prepared and sent off.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from torch import nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import KeyedTensor

from stages.candidate.inputs import ModelInputs, SentFeatures, largest_stride, with_stride

Raw = TypeVar("Raw")
_WAITS = "ReqBackward"
"""How the names end of the nodes in which TorchRec's backward pass waits for what other ranks have sent."""


class SentAhead(Generic[Raw]):
    """Iterates over batches with inputs whose ids are where their rows are; three further ones are on their way.

    Every rank must draw equally many. Between two of them ``draw`` and then ``advance`` may be called where there is
    something to wait for; what has not been done by then is done when the next one is asked for.

    Args:
        ready: batches, with anything beside their inputs.
        tables: TorchRec's sharded ``EmbeddingBagCollection``.
    """

    def __init__(self, ready: Iterable[tuple[Raw, ModelInputs]], tables: nn.Module) -> None:
        self._ready, self._tables = iter(ready), tables
        self._drawn: list[tuple[Raw, ModelInputs]] = []
        self._under_way: deque[Generator[None, None, tuple[Raw, ModelInputs]]] = deque()
        self._arrived: deque[tuple[Raw, ModelInputs]] = deque()

    def __iter__(self) -> Iterator[tuple[Raw, ModelInputs]]:
        self.advance()
        while self._under_way or self._arrived:
            if self._arrived:
                yield self._arrived.popleft()
            if not self._arrived:
                self.advance()

    def draw(self) -> None:
        """Draw the next batch, if there is one; no exchange begins."""
        if not self._drawn:
            self._drawn += islice(self._ready, 1)

    def advance(self) -> None:
        """Send the next batch off and take each one that is on its way, the oldest first, an exchange further."""
        self.draw()
        self._under_way += (_sending(*drawn, self._tables) for drawn in self._drawn)
        self._drawn.clear()
        for sending in tuple(self._under_way):
            try:
                next(sending)
            except StopIteration as done:
                self._under_way.popleft()
                self._arrived.append(done.value)


def _sending(batch: Raw, inputs: ModelInputs, tables: nn.Module) -> Generator[None, None, tuple[Raw, ModelInputs]]:
    """Yield while an exchange goes on, and return the batch when the last one has ended."""
    stride = largest_stride(inputs.features)
    yield
    aligned = with_stride(inputs, stride())
    context = tables.create_context()
    numbers = tables.input_dist(context, aligned.features)
    yield
    ids = numbers.wait()
    yield
    return batch, dataclasses.replace(aligned, sent=SentFeatures(context, ids.wait()))


def looked_up(inputs: ModelInputs, tables: nn.Module) -> ModelInputs:
    """Return inputs whose rows are on their way from the ranks that hold them; whoever reads them waits.

    Args:
        inputs: of this rank.
        tables: TorchRec's sharded ``EmbeddingBagCollection``.
    """
    sent = inputs.sent
    if sent is None:
        return dataclasses.replace(inputs, rows=tables(inputs.features))
    return dataclasses.replace(inputs, rows=tables.compute_and_output_dist(sent.context, sent.features))


def while_gradients_travel(rows: LazyAwaitable[KeyedTensor], work: Callable[[], None]) -> None:
    """Have ``work`` done in the backward pass between sending the gradients of rows and waiting for those of others.

    Args:
        rows: of ``looked_up``, after they were read. Where they did not travel, ``work`` is not called.
        work: takes part in no exchange.
    """
    nodes = deque([rows.values().grad_fn])
    while nodes:
        node = nodes.popleft()
        if node is None:
            continue
        if node.name().endswith(_WAITS):
            node.register_prehook(lambda _: work())
            return
        nodes += (after for after, _ in node.next_functions)
