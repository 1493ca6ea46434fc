"""Tiny worlds: catalogues, events, requests and states, and what the step ``build_examples`` reads, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.contracts.examples import ExampleRows, ExamplesFile
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.snapshot import ContextColumn, ItemTable, Task
from stages.contracts.sources import SourceScores
from stages.contracts.tables import DAY_MS, PART_EVALUATION, CandidateTable, EventTable, RequestTable
from stages.features.build import ExamplesConfig
from stages.features.config import FeatureConfig
from stages.features.state import FunnelState
from tests.builders.snapshots import catalogue, write_snapshot

T0 = 10_000 * DAY_MS
N, USERS = 8, 3
SIGNALS = ("click", "rating", "impression")
TASKS = (
    Task(name="click", signals=("click", "rating"), relevance=1.0),
    Task(name="like", signals=("rating",), min_value=0.7, relevance=2.0),
)
ALL = {"negatives": {"per_request": None}}
CONFIG = ExamplesConfig(features=FeatureConfig(history_length=3))
EVENTS = [
    (0, 1, 0, 1.0, T0),
    (1, 1, 0, 1.0, T0 + 1),
    (1, 4, 1, 0.9, T0 + 2),
    (0, 4, 1, 0.8, T0 + 5),
    (0, 5, 0, 1.0, T0 + 8),
]
REQUESTS = [(0, T0 + 5), (2, T0 + 6)]
TARGETS = [(0, 4, 3), (0, 5, 1), (1, 6, 1)]
"""Request, item and relevance; a relevance of 3 is a like."""
CANDIDATES = [(0, 5), (0, 4), (0, 2), (1, 1), (1, 6)]
VECTORS = np.eye(N, 4, dtype=np.float32)
CONTEXT = (ContextColumn(name="device", values=("phone", "tv", "web")), ContextColumn(name="region", values=("n", "s")))
CONTEXTS = np.array([[0, 0], [1, 0], [2, 1], [3, 2], [0, 2]], dtype=np.int32)
NAMES = ("tower", "trending")
OWN_SCORES = np.array([[3, np.nan], [2, 7], [1, np.nan], [np.nan, np.nan], [np.nan, 5]], dtype=np.float32)
OWN_RANKS = np.array([[0, -1], [1, 2], [2, -1], [-1, -1], [-1, 0]], dtype=np.int32)
BLEND = SourceScores(NAMES, OWN_SCORES, OWN_RANKS)
"""What two generators said of ``CANDIDATES``."""

Event = tuple[int, int, int, float, int] | tuple[int, int, int, float, int, int]


def build_items(n: int = 8) -> ItemTable:
    """Item i has main category i % 3; odd ones also category 3; item 7 has none; every 4th lacks a duration."""
    lists = [[] if i == 7 else [i % 3] + ([3] if i % 2 else []) for i in range(n)]
    return ItemTable(
        item_id=np.array([f"i{i}" for i in range(n)], dtype=object),
        title=np.array([f"title {i}" for i in range(n)], dtype=object),
        created_at_ms=np.array([T0 - i * DAY_MS for i in range(n)], dtype=np.int64),
        duration_s=np.array([np.nan if i % 4 == 3 else 60.0 * (i + 1) for i in range(n)], dtype=np.float32),
        category_offsets=np.concatenate([[0], np.cumsum([len(c) for c in lists])]).astype(np.int64),
        category_codes=np.array([code for codes in lists for code in codes], dtype=np.int32),
        n_categories=4,
    )


def build_events(events: Sequence[Event]) -> EventTable:
    """Rows (user, item, signal, value, time in ms, row of CONTEXTS), sorted by time here, stably."""
    rows = sorted(((*event, 0)[:6] for event in events), key=lambda event: event[4])
    columns = list(zip(*rows, strict=True)) if rows else [()] * 6
    return EventTable(
        user_index=np.array(columns[0], dtype=np.int64),
        item_index=np.array(columns[1], dtype=np.int64),
        event_time_ms=np.array(columns[4], dtype=np.int64),
        signal=np.array(columns[2], dtype=np.int16),
        value=np.array(columns[3], dtype=np.float32),
        part=np.zeros(len(rows), dtype=np.int8),
        active=np.ones(len(rows), dtype=np.bool_),
        context=np.array(columns[5], dtype=np.int32),
    )


def build_requests(requests: Sequence[tuple[int, ...]]) -> RequestTable:
    """Rows (user, time in ms, row of CONTEXTS), in the order given."""
    return RequestTable(
        request_id=np.arange(len(requests), dtype=np.int64),
        user_index=np.array([request[0] for request in requests], dtype=np.int64),
        request_time_ms=np.array([request[1] for request in requests], dtype=np.int64),
        part=np.ones(len(requests), dtype=np.int8),
        context=np.array([(*request, 0)[2] for request in requests], dtype=np.int32),
    )


def build_state(
    events: Sequence[Event] = (), n_items: int = 8, context: tuple[ContextColumn, ...] = (), **config: object
) -> FunnelState:
    """A state after ``events``, applied in the order given."""
    parsed = FeatureConfig.model_validate(config)
    state = FunnelState.empty(build_items(n_items), parsed, SIGNALS, TASKS, context=context)
    for event in events:
        moment = CONTEXTS[(*event, 0)[5]].tolist()
        state.apply(*event[:5], state.context_values(moment) if context else ())
    return state


def candidates(rows: Sequence[tuple[int, int]], popular: Sequence[int] = ()) -> CandidateTable:
    """Rows (request, item); ranks and scores follow from the order. Some requests have the popular list."""
    request_id = np.array([request for request, _ in rows], dtype=np.int64)
    rank = np.array([sum(r == request for r, _ in rows[:p]) for p, (request, _) in enumerate(rows)], dtype=np.int32)
    return CandidateTable(
        request_id=request_id,
        item_index=np.array([item for _, item in rows], dtype=np.int64),
        score=(1.0 / (1 + rank)).astype(np.float32),
        rank=rank,
        source=np.where(np.isin(request_id, popular), SOURCE_POPULAR, 0).astype(np.int8),
    )


def sampled(**section: object) -> ExamplesConfig:
    return ExamplesConfig.model_validate({**CONFIG.model_dump(), "sampling": section})


def write_inputs(
    root: Path,
    events: Sequence[Event] = EVENTS,
    requests: Sequence[tuple[int, ...]] = REQUESTS,
    targets: Sequence[tuple[int, int, int]] = TARGETS,
    rows: CandidateTable | Sequence[tuple[int, int]] = CANDIDATES,
    evaluated: Sequence[int] = (),
    n_items: int = N,
    row_groups: Sequence[int] = (),
) -> dict[str, Path]:
    """Write the inputs of the step below ``root``, and make the directory ``out``.

    Args:
        root: exists.
        events: as ``build_events`` takes them.
        requests: user and time.
        targets: see ``TARGETS``.
        rows: request and item of the candidates.
        evaluated: requests of the evaluation part; the others are of the ranker part.
        n_items: of the catalogue.
        row_groups: first candidate of each row group but the first one.
    """
    directories = {name: root / name for name in ("snapshot", "candidate", "retrieve", "out")}
    for directory in directories.values():
        directory.mkdir()
    asked = build_requests(requests)
    asked.part[list(evaluated)] = PART_EVALUATION
    columns = [np.array([target[place] for target in targets]) for place in range(3)]
    write_snapshot(
        directories["snapshot"],
        (T0, T0 + 3, T0 + 6, T0 + 9),
        signals=SIGNALS,
        tasks=TASKS,
        categories="abcd",
        events=build_events(events),
        requests=asked,
        targets={
            "request_id": columns[0],
            "item_index": columns[1],
            "relevance": columns[2],
            "task_like": columns[2] == 3,
        },
        items=written(build_items(n_items)),
        users=[f"u{number}" for number in range(USERS)],
    )
    np.save(directories["candidate"] / "item_vectors.npy", np.eye(n_items, 4, dtype=np.float32))
    table = rows if isinstance(rows, CandidateTable) else candidates(rows)
    with CandidateTable.writer(directories["retrieve"] / "candidates.parquet") as append:
        for part in np.split(np.arange(len(table)), list(row_groups)):
            append(table.take(part))
    return directories


def written(items: ItemTable) -> pa.Table:
    spans = zip(items.category_offsets[:-1], items.category_offsets[1:], strict=True)
    columns = ("item_id", "title", "created_at_ms", "duration_s", "eligible")
    return catalogue(
        len(items),
        categories=[items.category_codes[start:end].tolist() for start, end in spans],
        **{name: getattr(items, name) for name in columns},
    )


def read(directory: Path) -> ExampleRows:
    return ExamplesFile(directory).read()


def pairs(rows: ExampleRows) -> list[tuple[int, int]]:
    return list(zip(rows.request_id.tolist(), rows.item_index.tolist(), strict=True))
