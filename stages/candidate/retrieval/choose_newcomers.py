"""Chooses the list for users without history: of those that the state can answer with, the best by NDCG@10.

Shapes: B requests, L lists, Q requests of the snapshot.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import TrainSourcesConfig
from stages.candidate.generators.generator import CandidateRequest
from stages.candidate.generators.newcomers import newcomer_lists, popular_half_life
from stages.candidate.retrieval.retriever import empty_state
from stages.contracts.ndcg import dcg, ideal_dcg
from stages.contracts.newcomers import NewcomerList
from stages.contracts.progress import progress_of
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.tables import PART_RANKER, RequestTable
from stages.contracts.touches import TouchedBefore, first_touches
from stages.features.needs import require_replay_memory
from stages.features.reading import Wanted, read_blocks
from stages.features.state import FunnelState

K = 10
"""The cut-off of the measurement."""
_BLOCK = 512

log = logging.getLogger("sluice")


def choose_newcomers(config: TrainSourcesConfig, snapshot: Snapshot, blend: Blend | None) -> NewcomerList:
    """Return the list for users without history.

    Every list answers requests of the ranker period as the server would, each from the state at its time: those without
    history, or where they are fewer than ``newcomers.min_requests``, those of all users, without what they have seen.
    The list with the largest mean NDCG@10 is chosen, of equals the one that comes first. Nothing of the evaluation
    period is read.

    Args:
        config: of the step.
        snapshot: of the run.
        blend: the generators beside the index; None without any.

    Raises:
        ConfigError: if ``newcomers.list`` names no list, or the log and its state will not fit the memory.
    """
    settings = config.sources.newcomers
    lists = newcomer_lists(config.features, () if blend is None else blend.newcomer_generators)
    if settings.list != "measured":
        return lists[settings.list].model_copy(update={"reason": "sources.newcomers.list names it"})
    rows, measured_on = _requests(config, snapshot)
    if not len(rows):
        reason = f"not measured: fewer than {settings.min_requests:,} requests of the ranker period have targets"
        return _said(next(iter(lists.values())).model_copy(update={"reason": reason}))
    measured = _measure(config, snapshot, blend, lists, rows)
    best = _chosen(lists, measured)
    whose = "without history" if measured_on == "no_history" else "of all users"
    others = ", ".join(f"{name} {value:.4f}" for name, value in measured.items() if name != best.name)
    reason = f"NDCG@{K} {measured[best.name]:.4f} on {len(rows):,} requests {whose} of the ranker period; {others}"
    found = {"measured": measured, "requests": len(rows), "measured_on": measured_on, "reason": reason}
    return _said(best.model_copy(update=found))


def _said(chosen: NewcomerList) -> NewcomerList:
    log.info("[sluice] users without history get %s: %s", chosen.name, chosen.reason)
    return chosen


def _chosen(lists: dict[str, NewcomerList], measured: dict[str, float]) -> NewcomerList:
    """Return the best list; behind a generator's items come the best of the popular ones."""
    best = lists[max(measured, key=lambda name: measured[name])]
    popular = max((name for name in measured if lists[name].generator is None), key=lambda name: measured[name])
    return best.model_copy(update={"half_life_days": lists[popular].half_life_days})


def _requests(config: TrainSourcesConfig, snapshot: Snapshot) -> tuple[np.ndarray, str]:
    """Return int64 rows of the requests that are measured, and which they are."""
    settings, requests, events = config.sources.newcomers, snapshot.requests(), snapshot.events()
    with_targets = np.isin(requests.request_id, snapshot.targets().request_id)
    rows = np.flatnonzero((requests.part == PART_RANKER) & with_targets)
    first = events.take(np.sort(first_touches(events, snapshot.meta.touching)))
    before = TouchedBefore(first.user_index, first.item_index, first.event_time_ms)
    starts, ends = before.ends(requests.user_index[rows], requests.request_time_ms[rows])
    without, measured_on = rows[starts == ends], "no_history"
    if len(without) < settings.min_requests:
        without, measured_on = rows, "all"
    if len(without) < settings.min_requests:
        return rows[:0], "none"
    if len(without) > settings.max_requests:
        chosen = np.random.default_rng(settings.seed).choice(without, settings.max_requests, replace=False)
        without = np.sort(chosen)
    return without, measured_on


@dataclass(frozen=True)
class _Answering:
    """Answers single requests from the state, as the server does."""

    lists: dict[str, NewcomerList]
    requests: RequestTable
    contexts: np.ndarray
    available_ms: np.ndarray
    blend: Blend | None
    found: list[list[np.ndarray]]

    def answer(self, row: int, state: FunnelState) -> None:
        """Append the first ``K`` items of every list."""
        time_ms, user = int(self.requests.request_time_ms[row]), int(self.requests.user_index[row])
        context = tuple(self.contexts[self.requests.context[row]].tolist())
        seen = state.touched(user)
        request = CandidateRequest(seen[:0], time_ms, context, seen, self.available_ms)
        answers = []
        for each in self.lists.values():
            items = state.popular(time_ms, K, seen, self.available_ms, popular_half_life(each, state.config))
            if self.blend is not None:
                items = self.blend.for_newcomer(request, state, items, K, each)
            answers.append(items.ids)
        self.found.append(answers)


def _measure(
    config: TrainSourcesConfig,
    snapshot: Snapshot,
    blend: Blend | None,
    lists: dict[str, NewcomerList],
    rows: np.ndarray,
) -> dict[str, float]:
    """Return the mean NDCG@10 of every list at some requests, int64 ``[B]``, ascending."""
    events, requests, targets = snapshot.events(), snapshot.requests(), snapshot.targets()
    state = empty_state(snapshot, config.features, blend)
    require_replay_memory("train_sources", snapshot, state.config, None if blend is None else blend.trending)
    last_ms = int(requests.request_time_ms[rows].max())
    events = events.take(np.arange(np.searchsorted(events.event_time_ms, last_ms, side="left")))
    chosen = np.zeros(len(requests), dtype=bool)
    chosen[rows] = True
    available_ms = state.items.available_from_ms(PART_RANKER)
    contexts, found = snapshot.contexts(), list[list[np.ndarray]]()
    answering = _Answering(lists, requests, contexts, available_ms, blend, found)
    asked = Wanted(dict.fromkeys(np.unique(requests.part).tolist(), available_ms), visit=answering.answer)
    with progress_of("lists for newcomers", len(rows), "request") as advance:
        for reading in read_blocks(events, requests, state, asked, _BLOCK, contexts, chosen):
            advance(len(reading))
    return _ndcg(targets, requests, rows, found, list(lists))


def _ndcg(
    targets: Targets, requests: RequestTable, rows: np.ndarray, found: list[list[np.ndarray]], names: list[str]
) -> dict[str, float]:
    """Return the mean NDCG@10 of each list's answers to the requests of ``rows``."""
    starts = np.searchsorted(targets.request_id, np.arange(len(requests) + 1))
    counts = starts[rows + 1] - starts[rows]
    wanted = ranges(starts[rows], counts)
    items, gains = targets.item_index[wanted], targets.relevance[wanted].astype(np.float64)
    owner, offsets = np.repeat(np.arange(len(rows)), counts), row_offsets(counts)
    ideal = np.maximum(ideal_dcg(owner, gains, K, len(rows)), 1e-12)
    measured = {}
    for place, name in enumerate(names):
        rank = np.full(len(items), K)
        for row in range(len(rows)):
            mine = slice(offsets[row], offsets[row + 1])
            hit = found[row][place][None] == items[mine, None]
            rank[mine] = np.where(hit.any(axis=1), hit.argmax(axis=1) if hit.shape[1] else K, K)
        measured[name] = float((dcg(owner, gains, rank, K, len(rows)) / ideal).mean())
    return measured
