"""The step ``rank_baselines``: EASE and implicit ALS answer the held-out requests, for the stage ledger.

Both are fitted to the touches that the two-tower model trains on, and answer from the history strictly before each
request. The history of a user without training rows is folded in like any other: through the item-item weights, or as
the best factors of a new row.

Shapes: B requests of a block, N items, U users with training rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse
from tqdm import tqdm

from stages.candidate.data.examples import touch_matrix, training_examples
from stages.candidate.data.validation import checked_tables
from stages.candidate.linear.config import BaselinesConfig, RankBaselinesConfig
from stages.candidate.linear.models import Ease, ImplicitAls, als_gigabytes, ease_gigabytes, recency_weights
from stages.contracts.files import write_json
from stages.contracts.ragged import row_offsets
from stages.contracts.ranking import BASELINES_FILE, ranked_table
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_EVALUATION, EventTable, RankedTable, RequestTable, ScoredItems
from stages.features.replay import replay
from stages.features.state import FunnelState

_REQUESTS, _SCORES = 1024, 1 << 24
"""Most requests of a block, and most scores of one model in it (200 MB while they are computed)."""


class Baseline(NamedTuple):
    """A fitted model and how it weighs a history, see ``BaselineEase.decay``."""

    model: Ease | ImplicitAls
    decay: float | None = None


@dataclass
class Block:
    """Requests that are answered together; the lists are parallel.

    Attributes:
        request_id: ascending in time.
        time_ms: of the requests.
        seen: int64 items that each request's user has touched, oldest first.
        popular: the popular list, where no item of the history has a training row; else None.
    """

    request_id: list[int] = field(default_factory=list)
    time_ms: list[int] = field(default_factory=list)
    seen: list[np.ndarray] = field(default_factory=list)
    popular: list[ScoredItems | None] = field(default_factory=list)


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
        # Nothing here reads links between items, and keeping them is most of the cost of replaying an event.
        features, meta = config.features.model_copy(update={"covisitation_window": 0}), snapshot.meta
        state = FunnelState.empty(items, features, meta.signals, meta.tasks, snapshot.n_users())
        requests = snapshot.requests()
        requests = requests.take(requests.part == PART_EVALUATION)
        trained_N = np.bincount(touched_UN.indices, minlength=len(items)) > 0
        answering = Answering(state, requests, trained_N, config.k)
        answer_all(fitted, answering, events, directory)
        metrics |= {"requests": float(len(requests)), "popular_share": answering.n_popular / max(1, len(requests))}
    write_json(directory / BASELINES_FILE, {"rows": list(fitted), "left_out": left_out})
    return metrics, {"left_out": left_out}


def answer_all(fitted: Mapping[str, Baseline], answering: Answering, events: EventTable, directory: Path) -> None:
    """Replay the events and write each baseline's answers to ``<name>.parquet``."""
    requests = answering.requests
    size, block = max(1, min(_REQUESTS, _SCORES // len(answering.trained))), Block()
    rows = replay(events, requests, answering.state)
    with ExitStack() as files:
        write = {name: files.enter_context(RankedTable.writer(directory / f"{name}.parquet")) for name in fitted}
        for row in tqdm(rows, "rank_baselines", len(requests), mininterval=1, file=sys.stderr):
            answering.read(row, block)
            if len(block.seen) == size or row == len(requests) - 1:
                for name, baseline in fitted.items():
                    write[name](answering.answer(baseline, block))
                block = Block()


def fit_baselines(config: BaselinesConfig, touched_UN: sparse.csr_matrix) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Fit the baselines in ``config.rows`` that fit into memory.

    Returns:
        Models by the name of their row, and for every other row why there is none.
    """
    users, items = touched_UN.shape
    needed = {
        "ease": ease_gigabytes(items, touched_UN.nnz),
        "ials": als_gigabytes(users, items, touched_UN.nnz, config.ials.factors),
    }
    left_out = {}
    for name, gigabytes in needed.items():
        if name not in config.rows:
            left_out[name] = f"baselines.rows = {list(config.rows)}"
        elif gigabytes > config.memory_gb:
            left_out[name] = f"{items:,} items need {gigabytes:.3g} GB, baselines.memory_gb = {config.memory_gb:g}"
    fitted = {}
    if "ease" not in left_out:
        ease = Ease.fit(touched_UN, config.ease, config.memory_gb)
        fitted["ease"] = Baseline(ease, config.ease.decay)
    if "ials" not in left_out:
        als = ImplicitAls.fit(touched_UN, config.ials, config.ials.seed)
        fitted["ials"] = Baseline(als)
    return fitted, left_out


class Answering:
    """Reads what a request needs from the state at its time, and ranks the catalogue in blocks.

    Args:
        state: the replay advances it.
        requests: to answer.
        trained: bool ``[N]``, items with a training row.
        k: items an answer holds, at most.

    Attributes:
        n_popular: requests so far that got the popular list.
    """

    def __init__(self, state: FunnelState, requests: RequestTable, trained: np.ndarray, k: int) -> None:
        self.state, self.requests, self.trained, self._k = state, requests, trained, k
        self._available_ms = state.items.available_from_ms(PART_EVALUATION)
        self.n_popular = 0

    def read(self, row: int, block: Block) -> None:
        """Copy what the answer to the request of ``row`` needs into ``block``."""
        time_ms = int(self.requests.request_time_ms[row])
        seen = self.state.touched(int(self.requests.user_index[row]))
        known = bool(self.trained[seen].any())
        block.request_id.append(int(self.requests.request_id[row]))
        block.time_ms.append(time_ms)
        block.seen.append(seen)
        block.popular.append(None if known else self.state.popular(time_ms, self._k, seen, self._available_ms))
        self.n_popular += not known

    def answer(self, baseline: Baseline, block: Block) -> RankedTable:
        """Return the block's answers, sorted by request and rank."""
        found = {place: items for place, items in enumerate(block.popular) if items is not None}
        rest = [place for place in range(len(block.seen)) if place not in found]
        if rest:
            history_BN = history_matrix([block.seen[place] for place in rest], len(self.trained), baseline.decay)
            for place, scores_N in zip(rest, baseline.model.score(history_BN), strict=True):
                allowed_N = self._available_ms <= block.time_ms[place]
                allowed_N[block.seen[place]] = False
                found[place] = best_items(scores_N, allowed_N, self._k)
        return ranked_table(block.request_id, [found[place] for place in range(len(block.seen))])


def history_matrix(histories: Sequence[np.ndarray], n_items: int, decay: float | None = None) -> sparse.csr_matrix:
    """Return histories, oldest item first, as rows of float64 ``[B, N]``: ones, or weights by recency."""
    lengths = [len(items) for items in histories]
    offsets = row_offsets(lengths)
    items = np.concatenate(histories)
    weights = np.ones(len(items))
    if decay is not None:
        weights = recency_weights(np.repeat(offsets[1:], lengths) - 1 - np.arange(len(items)), decay)
    return sparse.csr_matrix((weights, items, offsets), shape=(len(histories), n_items))


def best_items(scores_N: np.ndarray, allowed_N: np.ndarray, k: int) -> ScoredItems:
    """Return the ``k`` best of the allowed items, ties by item index."""
    ids = np.flatnonzero(allowed_N)
    return ScoredItems.sort(ids, scores_N[ids], k)
