"""Ranking features of many requests' candidates, computed while the log is replayed.

Shapes: n candidates of a block, F features, N items, D vector dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.errors import DataError
from stages.contracts.tables import EventTable, RequestTable
from stages.features.ranking import ranking_features
from stages.features.replay import replay
from stages.features.state import FunnelState


@dataclass(frozen=True)
class FeatureBlock:
    """Candidates with their features.

    Attributes:
        candidates: n rows of whole requests.
        features: float32 ``[n, F]``, columns in the order of ``feature_schema``.
    """

    candidates: CandidateBlock
    features: np.ndarray


def feature_blocks(
    blocks: Iterable[CandidateBlock],
    events: EventTable,
    requests: RequestTable,
    state: FunnelState,
    vectors: np.ndarray,
    contexts: np.ndarray,
) -> Iterator[FeatureBlock]:
    """Replay the events, and yield each block with the features of its candidates, each request's as of its time.

    Args:
        blocks: candidates, sorted by request.
        events: in time order.
        requests: sorted by time; ``request_id`` is the row number.
        state: advanced in place; after the last block all events are applied.
        vectors: float32 ``[N, D]`` item vectors.
        contexts: int32 ``[X, C]``, as ``Snapshot.contexts``.

    Raises:
        DataError: if the requests are not sorted by time, or the events are not.
    """
    if (np.diff(requests.request_time_ms) < 0).any():
        raise DataError("requests must be sorted by request_time_ms")
    moments = replay(events, requests, state, contexts)
    for block in blocks:
        pieces = []
        ids, starts = np.unique(block.rows.request_id, return_index=True)
        stops = [*starts[1:].tolist(), len(block.rows)]
        for request, start, stop in zip(ids.tolist(), starts.tolist(), stops, strict=True):
            while next(moments) != request:
                pass
            rows = slice(start, stop)
            pieces.append(
                ranking_features(
                    state,
                    int(requests.user_index[request]),
                    int(requests.request_time_ms[request]),
                    block.rows.item_index[rows],
                    block.rows.score[rows],
                    block.rows.rank[rows],
                    vectors,
                    contexts[requests.context[request]].tolist(),
                    None if block.sources is None else block.sources.take(rows),
                )
            )
        yield FeatureBlock(block, np.concatenate(pieces))
    for _ in moments:
        pass
