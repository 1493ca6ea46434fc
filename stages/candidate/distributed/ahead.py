"""Sends the ids of the next batches to the ranks that hold their rows while the current batch trains.

Before a rank can look up rows for the others it must know how many ids each sends, and then the ids: exchanges that
each wait for the slowest rank (see ``ids``). Here they are started a step before they are waited for. Ids do not depend
on weights, so that nothing else changes. What then is left to wait for are the rows and, in the backward pass, their
gradients: meanwhile the next batches are prepared and sent off.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stages.candidate.distributed.ids import Sending
from stages.candidate.towers.inputs import ModelInputs

Raw = TypeVar("Raw")


class SentAhead(Generic[Raw]):
    """Iterates over batches with inputs whose ids are where their rows are; further ones are on their way.

    Every rank must draw equally many. Between two of them ``draw`` and then ``advance`` may be called where there is
    something to wait for; what has not been done by then is done when the next one is asked for.

    Args:
        ready: batches, with anything beside their inputs.
        send: begins to send features.
    """

    def __init__(self, ready: Iterable[tuple[Raw, ModelInputs]], send: Callable[[KeyedJaggedTensor], Sending]) -> None:
        self._ready, self._send = iter(ready), send
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
        self._under_way += (self._sending(*drawn) for drawn in self._drawn)
        self._drawn.clear()
        for sending in tuple(self._under_way):
            try:
                next(sending)
            except StopIteration as done:
                self._under_way.popleft()
                self._arrived.append(done.value)

    def _sending(self, batch: Raw, inputs: ModelInputs) -> Generator[None, None, tuple[Raw, ModelInputs]]:
        """Yield while an exchange goes on, and return the batch when the last one has ended."""
        return batch, dataclasses.replace(inputs, sent=(yield from self._send(inputs.features)))
