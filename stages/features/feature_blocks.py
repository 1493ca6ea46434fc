"""Ranking features of many requests' candidates, computed while the log is replayed.

Shapes: n candidates of a block, F features, N items, D vector dimensions, Q requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stages.contracts.candidate_blocks import CandidateBlock
from stages.contracts.compiled import frozen
from stages.contracts.errors import DataError
from stages.contracts.ragged import run_offsets
from stages.contracts.tables import EventTable, RequestTable
from stages.features.feature_arrays import Requests
from stages.features.feature_kernels import block_features
from stages.features.ranking import FeatureMaker, candidate_columns, feature_schema
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

    A request's features are those of ``ranking_features``, whatever other candidates and requests the block holds.

    Args:
        blocks: candidates, sorted by request.
        events: in time order.
        requests: sorted by time; ``request_id`` is the row number.
        state: advanced in place; after the last block all events are applied.
        vectors: float32 ``[N, D]`` item vectors.
        contexts: int32 ``[X, C]``, as ``Snapshot.contexts``.

    Raises:
        DataError: if the requests are not sorted by time, or an event is out of range or out of the order of time.
    """
    if (np.diff(requests.request_time_ms) < 0).any():
        raise DataError("requests must be sorted by request_time_ms")
    columns = state.columns(events, contexts)
    borders = np.searchsorted(events.event_time_ms, requests.request_time_ms, side="left")
    asked = (requests.user_index, requests.request_time_ms, requests.context, contexts, borders)
    compiled_requests = Requests(*(frozen(column) for column in asked))
    done = 0
    for block in blocks:
        offsets = run_offsets(block.rows.request_id)
        rows = block.rows.request_id[offsets[:-1]]
        maker = FeatureMaker(state, vectors, int(np.diff(offsets).max(initial=0)))
        sources = block.sources
        candidates = candidate_columns(block.rows.item_index, block.rows.score, block.rows.rank, sources)
        names = feature_schema(state.config, state.tasks, state.context, () if sources is None else sources.names).names
        features = np.empty((len(block.rows), len(names)), dtype=np.float32)
        answered = 0
        while answered < len(rows):
            done, answered = block_features(
                state.arrays,
                columns,
                done,
                maker.settings,
                maker.scratch,
                maker.vectors,
                compiled_requests,
                frozen(rows),
                frozen(offsets),
                candidates,
                answered,
                features,
            )
            if answered < len(rows):
                state.make_room(int(events.user_index[done]))
        yield FeatureBlock(block, features)
    state.apply_all(columns, done, len(events))
