"""The step ``rank_baselines``: EASE and implicit ALS answer the held-out requests, for the stage ledger.

Both are fitted to the touches that the two-tower model trains on, and answer from the history strictly before each
request. The history of a user without training rows is folded in like any other: through the item-item weights, or as
the best factors of a new row.

Shapes: B requests of a block, N items, U users with training rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from stages.candidate.data.examples import touch_matrix, training_examples
from stages.candidate.data.validation import checked_tables
from stages.candidate.linear.config import BaselinesConfig, RankBaselinesConfig
from stages.candidate.linear.models import Ease, ImplicitAls, recency_weights
from stages.candidate.linear.needs import baselines_left_out
from stages.contracts.best_items import best_scored
from stages.contracts.compiled import compiled
from stages.contracts.exclusions import Exclusions
from stages.contracts.files import write_json
from stages.contracts.item_lists import ItemLists
from stages.contracts.progress import progress_of
from stages.contracts.ragged import places_in_rows
from stages.contracts.ranking import BASELINES_FILE
from stages.contracts.snapshot import NEVER_AVAILABLE_MS, Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.tables import DAY_MS, PART_EVALUATION, EventTable, RankedTable, RequestTable
from stages.contracts.touches import TouchedBefore, first_touches, touching

_REQUESTS, _SCORES = 1024, 1 << 24
"""Most requests of a block, and most scores of one model in it (200 MB while they are computed)."""


class Baseline(NamedTuple):
    """A fitted model and how it weighs a history, see ``BaselineEase.decay``."""

    model: Ease | ImplicitAls
    decay: float | None = None


def rank_baselines(config: RankBaselinesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Answer the evaluation period's requests with the best ``k`` of all unseen items that existed at the time.

    A request whose history holds no item with a training row gets the popular list, like one without history. A
    model that needs more memory than it may take is left out.

    Args:
        config: what is fitted, and how deep answers are.
        inputs: ``snapshot``.
        directory: receives ``ease.parquet`` and ``ials.parquet`` (RankedTable) and ``baselines.json``.

    Raises:
        DataError: if an event or an item is malformed.
        EmptyDatasetError: if there is nothing to learn from.
    """
    snapshot = Snapshot(inputs["snapshot"])
    events, items = checked_tables(snapshot)
    touched_UN = touch_matrix(training_examples(events, snapshot.meta, config.features), len(items))
    fitted, left_out = fit_baselines(config.baselines, touched_UN)
    metrics = {"training_users": float(touched_UN.shape[0]), "training_touches": float(touched_UN.nnz)}
    if fitted:
        touching_S = touching(snapshot.meta.signals, config.features.exposure_signals)
        requests = snapshot.requests()
        requests = requests.take(requests.part == PART_EVALUATION)
        trained_N = np.bincount(touched_UN.indices, minlength=len(items)) > 0
        half_life_ms = config.features.half_lives_days[-1] * DAY_MS
        popularity = Popularity(events.take(np.sort(first_touches(events, touching_S))), len(items), half_life_ms)
        answering = Answering(popularity, items.available_from_ms(PART_EVALUATION), trained_N, config.k)
        answer_all(fitted, answering, requests, directory)
        metrics |= {"requests": float(len(requests)), "popular_share": answering.n_popular / max(1, len(requests))}
    write_json(directory / BASELINES_FILE, {"rows": list(fitted), "left_out": left_out})
    methods = {name: each.model.method for name, each in fitted.items() if isinstance(each.model, Ease)}
    return metrics, {"left_out": left_out, "methods": methods}


def answer_all(fitted: Mapping[str, Baseline], answering: Answering, requests: RequestTable, directory: Path) -> None:
    """Write each baseline's answers to ``<name>.parquet``, block by block."""
    size = max(1, min(_REQUESTS, _SCORES // len(answering.trained)))
    with ExitStack() as files:
        write = {name: files.enter_context(RankedTable.writer(directory / f"{name}.parquet")) for name in fitted}
        advance = files.enter_context(progress_of("rank_baselines", len(requests), "request"))
        for start in range(0, len(requests), size):
            rows = requests.take(np.arange(start, min(start + size, len(requests))))
            block = answering.read(rows)
            for name, baseline in fitted.items():
                write[name](answering.answer(baseline, block))
            advance(len(rows))


def fit_baselines(config: BaselinesConfig, touched_UN: sparse.csr_matrix) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Fit the baselines in ``config.rows`` that fit into memory.

    Returns:
        Models by the name of their row, and for every other row why there is none.
    """
    left_out = baselines_left_out(config, touched_UN.shape[0], touched_UN.shape[1], touched_UN.nnz)
    fitted = {}
    if "ease" not in left_out:
        ease = Ease.fit(touched_UN, config.ease, config.memory_gb)
        fitted["ease"] = Baseline(ease, config.ease.decay)
    if "ials" not in left_out:
        als = ImplicitAls.fit(touched_UN, config.ials, config.ials.seed)
        fitted["ials"] = Baseline(als)
    return fitted, left_out


class Popularity:
    """First touches with a decay, counted in the order of time like ``FunnelState.popular``.

    Args:
        touches: the first touch of each user-item pair, in time order.
        n_items: N.
        half_life_ms: of a touch's weight.

    Attributes:
        before: what users had touched.
    """

    def __init__(self, touches: EventTable, n_items: int, half_life_ms: float) -> None:
        self.before = TouchedBefore(touches.user_index, touches.item_index, touches.event_time_ms)
        self._items, self._times, self._half_life_ms = touches.item_index, touches.event_time_ms, half_life_ms
        self._counts, self._last_ms = np.zeros(n_items), np.full(n_items, -NEVER_AVAILABLE_MS)
        self._next = 0

    def scores(self, time_ms: np.ndarray) -> np.ndarray:
        """Return float32 ``[B, N]`` counts of the touches strictly before each time.

        Args:
            time_ms: int64 ``[B]``, ascending, and none before that of an earlier call.
        """
        ends = np.searchsorted(self._times, time_ms, side="left")
        scores_BN = np.empty((len(time_ms), len(self._counts)), dtype=np.float32)
        counted = self._counts, self._last_ms, self._next, self._half_life_ms
        _count(self._items, self._times, ends, time_ms, *counted, scores_BN)
        self._next = max(self._next, int(ends[-1]) if len(ends) else 0)
        return scores_BN


@dataclass(frozen=True)
class Block:
    """Requests that are answered together.

    Attributes:
        requests: B requests.
        exclusions: what each may not be answered with; seen items are oldest first.
        known: bool ``[B]``, whether an item of the history has a training row.
        popular: the popular lists of the other requests, in their order.
    """

    requests: RequestTable
    exclusions: Exclusions
    known: np.ndarray
    popular: ItemLists


class Answering:
    """Reads what requests need from the touches before them, and ranks the catalogue in blocks.

    Args:
        popularity: of the items, and what users had touched.
        available_ms: int64 ``[N]``, from when each item may be recommended.
        trained: bool ``[N]``, items with a training row.
        k: items an answer holds, at most.

    Attributes:
        n_popular: requests so far that got the popular list.
    """

    def __init__(self, popularity: Popularity, available_ms: np.ndarray, trained: np.ndarray, k: int) -> None:
        self.trained, self._k, self._popularity = trained, k, popularity
        self._available_PN = available_ms[None]
        self.n_popular = 0

    def read(self, requests: RequestTable) -> Block:
        """Return what the answers need; the requests are in the order of time, block after block."""
        times = requests.request_time_ms
        offsets, seen = self._popularity.before.items(requests.user_index, times)
        period = np.zeros(len(requests), dtype=np.int64)
        exclusions = Exclusions(offsets, seen, times, period, self._available_PN)
        rows = np.repeat(np.arange(len(requests)), np.diff(offsets))
        known = np.bincount(rows, self.trained[seen], minlength=len(requests)) > 0
        strange = exclusions.take(np.flatnonzero(~known))
        popular = self._best(self._popularity.scores(strange.time_ms), strange)
        self.n_popular += len(strange)
        return Block(requests, exclusions, known, popular)

    def answer(self, baseline: Baseline, block: Block) -> RankedTable:
        """Return the block's answers, sorted by request and rank."""
        own = block.exclusions.take(np.flatnonzero(block.known))
        answers = ItemLists.join([])
        if len(own):
            history_BN = history_matrix(own.seen_offsets, own.seen, len(self.trained), baseline.decay)
            answers = self._best(baseline.model.score(history_BN), own)
        lengths = np.zeros(len(block.known), dtype=np.int64)
        lengths[block.known], lengths[~block.known] = answers.lengths, block.popular.lengths
        known = np.repeat(block.known, lengths)
        items, scores = np.empty(len(known), dtype=np.int64), np.empty(len(known), dtype=np.float32)
        for mask, lists in ((known, answers), (~known, block.popular)):
            items[mask], scores[mask] = lists.ids, lists.scores
        return RankedTable(
            request_id=np.repeat(block.requests.request_id, lengths),
            item_index=items,
            score=scores,
            rank=places_in_rows(lengths).astype(np.int32),
        )

    def _best(self, scores_BN: np.ndarray, exclusions: Exclusions) -> ItemLists:
        return best_scored(scores_BN, np.arange(len(self.trained)), exclusions, self._k)


def history_matrix(
    offsets: np.ndarray, items: np.ndarray, n_items: int, decay: float | None = None
) -> sparse.csr_matrix:
    """Return histories as rows of float64 ``[B, N]``: ones, or weights by recency.

    Args:
        offsets: int64 ``[B + 1]``, where each history begins and ends.
        items: int64, oldest first.
        n_items: N.
        decay: of ``recency_weights``; None weighs all items alike.
    """
    weights = np.ones(len(items))
    if decay is not None:
        weights = recency_weights(np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(items)), decay)
    return sparse.csr_matrix((weights, items, offsets), shape=(len(offsets) - 1, n_items))


@compiled
def _count(
    items: np.ndarray,
    times: np.ndarray,
    ends: np.ndarray,
    time_ms: np.ndarray,
    counts: np.ndarray,
    last_ms: np.ndarray,
    counted: int,
    half_life_ms: float,
    scores_BN: np.ndarray,
) -> None:
    """Count the touches before each request, and write the counts as of its time."""
    for row in range(len(ends)):
        for touch in range(counted, ends[row]):
            item = items[touch]
            counts[item] = counts[item] * 2.0 ** ((last_ms[item] - times[touch]) / half_life_ms) + 1.0
            last_ms[item] = times[touch]
        counted = max(counted, ends[row])
        for item in range(len(counts)):
            scores_BN[row, item] = counts[item]
            if counts[item] > 0:
                scores_BN[row, item] = counts[item] * np.exp2((last_ms[item] - time_ms[row]) / half_life_ms)
