"""Sends the ids of the next batches to the ranks that hold their rows while the current batch trains.

Before a rank can look up rows for the others it must know the largest stride, then how many ids each sends, then the
ids: three exchanges that each wait for the slowest rank. Here they are started a step before they are waited for.
Ids do not depend on weights, so that nothing else changes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

from torch import nn

from stages.candidate.inputs import ModelInputs, SentFeatures, largest_stride, with_stride

Raw = TypeVar("Raw")


def sent_ahead(ready: Iterable[tuple[Raw, ModelInputs]], tables: nn.Module) -> Iterator[tuple[Raw, ModelInputs]]:
    """Yield batches with inputs whose ids are where their rows are; three further ones are on their way by then.

    Every rank must draw equally many.

    Args:
        ready: batches, with anything beside their inputs.
        tables: TorchRec's sharded ``EmbeddingBagCollection``.
    """
    under_way: deque[Generator[None, None, tuple[Raw, ModelInputs]]] = deque()
    for batch, inputs in ready:
        under_way.append(_sending(batch, inputs, tables))
        yield from _advanced(under_way)
    while under_way:
        yield from _advanced(under_way)


def _advanced(
    under_way: deque[Generator[None, None, tuple[Raw, ModelInputs]]],
) -> Iterator[tuple[Raw, ModelInputs]]:
    """Take each batch one exchange further, the oldest first; yield it if it has arrived."""
    arrived = []
    for sending in tuple(under_way):
        try:
            next(sending)
        except StopIteration as done:
            under_way.popleft()
            arrived.append(done.value)
    yield from arrived


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
