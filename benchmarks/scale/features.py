"""Milliseconds for the ranking features of one request's candidates: in the server's call, and in blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.scale.made import CONTEXTS, MadeLog, made_log
from benchmarks.scale.turns import Cost, cost_of, markdown, medians, middle
from stages.features.feature_blocks import feature_blocks
from stages.features.ranking import ranking_features
from stages.features.state import FunnelState

REQUESTS_A_BLOCK = 32


def measure_features(n_events: int, n_requests: int, candidates: int, turns: int) -> dict[str, Any]:
    """Return milliseconds a request for ``served`` and ``built`` features; medians of alternating turns.

    All requests are at the end of the log, so that no event is replayed between them. The first block of a turn,
    before which the events are replayed, is not counted.

    Args:
        n_events: of the log.
        n_requests: of a turn; at least two blocks.
        candidates: of a request.
        turns: at least 1.

    Raises:
        ValueError: if there are fewer than two blocks of requests, or fewer items than candidates.
    """
    if n_requests < 2 * REQUESTS_A_BLOCK:
        raise ValueError(f"requests = {n_requests}: allowed is {2 * REQUESTS_A_BLOCK} or more")
    log = made_log(n_events, exposures=True)
    vectors, state = log.vectors(), log.state()
    state.apply_all(state.columns(log.events, CONTEXTS), 0, len(log.events))
    arguments = (log, vectors, n_requests, candidates)
    works = {"served": partial(_served, state, *arguments), "built": partial(_built, *arguments)}
    for work in works.values():
        work()  # compiles what is compiled on its first use
    costs = medians(works, turns)
    rows = [
        {"call": name, "ms_a_request": 1000 * cost.clock, "processor_ms_a_request": 1000 * cost.processor}
        for name, cost in costs.items()
    ]
    return {
        "turns": turns,
        "events": n_events,
        "users": log.n_users,
        "items": len(log.items),
        "requests": n_requests,
        "candidates": candidates,
        "rows": rows,
    }


def _served(state: FunnelState, log: MadeLog, vectors: np.ndarray, n_requests: int, candidates: int) -> Cost:
    """Return the median cost of one request in the server's call."""
    requests = log.requests(n_requests, log.end_ms)
    taken = []
    for block in log.candidates(requests, candidates, requests_a_block=1):
        user = int(requests.user_index[block.rows.request_id[0]])
        columns = (block.rows.item_index, block.rows.score, block.rows.rank)
        taken.append(cost_of(partial(ranking_features, state, user, log.end_ms, *columns, vectors)))
    return middle(taken)


def _built(log: MadeLog, vectors: np.ndarray, n_requests: int, candidates: int) -> Cost:
    """Return the median, over blocks, of the cost of a request."""
    requests = log.requests(n_requests, log.end_ms)
    blocks = list(log.candidates(requests, candidates, REQUESTS_A_BLOCK))
    features = feature_blocks(iter(blocks), log.events, requests, log.state(), vectors, CONTEXTS)
    next(features)
    return middle([cost_of(partial(next, features)).of_one(len(block.rows) // candidates) for block in blocks[1:]])


def render_features(found: dict[str, Any]) -> str:
    """Return the figures as a table."""
    names = ("ms_a_request", "processor_ms_a_request")
    rows = [(row["call"], found["candidates"], *(f"{row[name]:.3g}" for name in names)) for row in found["rows"]]
    return markdown(("call", "candidates", "ms a request", "processor ms"), rows)
