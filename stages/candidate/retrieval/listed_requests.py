"""Requests of the ranker period with the list of every generator: what quotas and a mixture are learned from.

Shapes: B requests, E items of all pools, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import TrainSourcesConfig
from stages.candidate.generators.pools import Pools
from stages.candidate.generators.quotas import ListedBlock, ListedItems
from stages.candidate.retrieval.retriever import Answers, Retriever, check_features, empty_state
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.item_lists import ItemLists
from stages.contracts.memory import require_memory
from stages.contracts.progress import progress_of
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.snapshot import NEVER_AVAILABLE_MS, Snapshot, Targets
from stages.contracts.tables import PART_RANKER, RequestTable

_BLOCK = 512
_PAIR_BYTES = 64
"""Memory of an item of a list: id and score, up to four times while blocks are joined and split, and ranks."""


@dataclass(frozen=True)
class ListedRequests:
    """Requests with their lists and targets, in the order of time.

    Attributes:
        n_items: N.
        listed: lists and targets of B requests.
        history_lengths: int64 ``[B]``, items of each request's history.
    """

    n_items: int
    listed: ListedBlock
    history_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.history_lengths)

    @property
    def n_targets(self) -> np.ndarray:
        """Targets of each request, int64 ``[B]``, at least 1."""
        return np.diff(self.listed.target_offsets)

    @classmethod
    def join(cls, n_items: int, names: Sequence[str], parts: Sequence[ListedRequests]) -> ListedRequests:
        """Return the requests of several blocks, one after the other."""
        blocks = [part.listed for part in parts]
        targets = [np.zeros(0, dtype=np.int64), *(block.targets for block in blocks)]
        lengths = [np.zeros(0, dtype=np.int64), *(part.history_lengths for part in parts)]
        counts = [np.zeros(0, dtype=np.int64), *(part.n_targets for part in parts)]
        return cls(
            n_items,
            ListedBlock(
                lists={name: _joined([block.lists[name] for block in blocks]) for name in names},
                target_offsets=row_offsets(np.concatenate(counts)),
                targets=np.concatenate(targets),
            ),
            np.concatenate(lengths),
        )

    def take(self, rows: np.ndarray) -> ListedRequests:
        """Return some of the requests, int ``[n]``, in that order."""
        counts = self.n_targets[rows]
        entries = ranges(self.listed.target_offsets[rows], counts)
        lists = {name: each.take(rows) for name, each in self.listed.lists.items()}
        block = ListedBlock(lists, row_offsets(counts), self.listed.targets[entries])
        return ListedRequests(self.n_items, block, self.history_lengths[rows])

    def items(self, k: int) -> ListedItems:
        """Return the first ``k`` items of every list, as quotas are learned from them."""
        lists = {name: each.first(k) for name, each in self.listed.lists.items()}
        block = ListedBlock(lists, self.listed.target_offsets, self.listed.targets)
        return ListedItems.of_blocks(tuple(lists), self.n_items, [block])

    def pools(self) -> Pools:
        """Return the pool of each request."""
        return Pools.of(list(self.listed.lists.values()), self.history_lengths)

    def gains(self, offsets: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return what each item adds to its request's recall, float64 ``[E]``.

        Args:
            offsets: int64 ``[B + 1]``, of each request's items.
            ids: int64 ``[E]`` items, distinct within a request.
        """
        keys = np.repeat(np.arange(len(self)), np.diff(offsets)) * self.n_items + ids
        order = np.argsort(keys)
        wanted = np.repeat(np.arange(len(self)), self.n_targets) * self.n_items + self.listed.targets
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
        gains = np.zeros(len(keys))
        if len(keys):
            found = keys[order[place]] == wanted
            gains[order[place[found]]] = np.repeat(1.0 / self.n_targets, self.n_targets)[found]
        return gains


def _joined(lists: Sequence[ItemLists]) -> ItemLists:
    lengths = [np.zeros(0, dtype=np.int64), *(each.lengths for each in lists)]
    ids = [np.zeros(0, dtype=np.int64), *(each.ids for each in lists)]
    scores = [np.zeros(0, dtype=np.float32), *(each.scores for each in lists)]
    return ItemLists(row_offsets(np.concatenate(lengths)), np.concatenate(ids), np.concatenate(scores))


def listed_requests(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, directory: Path
) -> ListedRequests:
    """Return requests of the ranker period, each with every generator's list and its targets.

    Lists hold ``candidate_k`` items; for a learned mixture ``sources.mixture.pool``. Requests without history are left
    out, since the popular list answers them.

    Args:
        config: see ``TrainSourcesConfig``.
        snapshot: of the run.
        scorer: the two-tower index.
        directory: holds the generators' files.

    Raises:
        ConfigError: if the tower was trained with other history features, or the lists will not fit the memory.
        EmptyDatasetError: if no request is left.
    """
    check_features(config.features, scorer)
    targets = snapshot.targets()
    wanted = _sample(snapshot.requests(), targets, config)
    names, length = config.sources.names, config.sources.mixture.length(config.candidate_k)
    listed = min(length, scorer.n_items)
    require_memory(
        f"train_sources ({len(wanted):,} requests x {len(names)} lists of {listed:,} items)",
        len(wanted) * len(names) * listed * (_PAIR_BYTES + 4 * len(names)),
        "sources.learning.max_requests, sources.mixture.max_requests or sources.mixture.pool",
    )
    starts = np.searchsorted(targets.request_id, np.arange(len(snapshot.requests()) + 1))
    blend = Blend.load(directory, scorer.n_items)
    blocks = [
        _with_targets(answers, targets, starts, scorer.n_items)
        for answers in _answers(config, snapshot, scorer, blend, wanted)
    ]
    found = ListedRequests.join(scorer.n_items, names, blocks)
    if not len(found):
        learned = "mixture.kind" if config.sources.mixture.kind == "learned" else "quotas"
        raise EmptyDatasetError(
            f"sources.{learned} = 'learned': none of {len(wanted)} requests of the ranker part has a history"
        )
    return found


def _with_targets(answers: Answers, targets: Targets, starts: np.ndarray, n_items: int) -> ListedRequests:
    """Return the lists and the targets of the requests that have a history."""
    known = np.flatnonzero(~answers.popular)
    rows = answers.rows[known]
    counts = starts[rows + 1] - starts[rows]
    lists = {
        name: ItemLists(row_offsets(each.lengths[known]), each.ids, each.scores) for name, each in answers.lists.items()
    }
    block = ListedBlock(lists, row_offsets(counts), targets.item_index[ranges(starts[rows], counts)])
    return ListedRequests(n_items, block, answers.history_lengths[known])


def _answers(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, blend: Blend | None, wanted: np.ndarray
) -> Iterator[Answers]:
    """Yield the answers to the wanted requests; what comes after the last of them is not replayed."""
    requests, events = snapshot.requests(), snapshot.events()
    chosen = np.zeros(len(requests), dtype=bool)
    chosen[wanted] = True
    last_ms = int(requests.request_time_ms[wanted].max(initial=-NEVER_AVAILABLE_MS))
    events = events.take(np.arange(np.searchsorted(events.event_time_ms, last_ms, side="left")))
    length = config.sources.mixture.length(config.candidate_k)
    retriever = Retriever(scorer, empty_state(snapshot, config.features, blend), snapshot, length, blend)
    with progress_of("lists", len(wanted), "request") as advance:
        for answers in retriever.answers(events, _BLOCK, chosen):
            yield answers
            advance(len(answers.rows))


def _sample(requests: RequestTable, targets: Targets, config: TrainSourcesConfig) -> np.ndarray:
    """Return int64 rows of requests of the ranker period with targets, at most ``max_requests`` of them."""
    rows = np.flatnonzero((requests.part == PART_RANKER) & np.isin(requests.request_id, targets.request_id))
    settings = config.sources.mixture if config.sources.mixture.kind == "learned" else config.sources.learning
    if len(rows) > settings.max_requests:
        rows = np.random.default_rng(settings.seed).choice(rows, settings.max_requests, replace=False)
    return rows
