"""Answers blocks of requests with candidates, each request from the state at its time.

Shapes: B requests of a block, D dimensions, N items, n candidates of all requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from stages.candidate.generators.blend import Blend
from stages.candidate.generators.generator import CandidateRequest, RequestBlock
from stages.candidate.generators.mixing import MixedLists
from stages.candidate.generators.newcomers import popular_half_life
from stages.candidate.generators.table import TOWER
from stages.candidate.onnx_towers import ranker_query
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import ConfigError
from stages.contracts.exclusions import Exclusions
from stages.contracts.item_lists import ItemLists
from stages.contracts.newcomers import NewcomerList
from stages.contracts.ragged import places_in_rows, row_offsets
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import SourceScores, source_code
from stages.contracts.tables import (
    PART_EVALUATION,
    PART_RANKER,
    CandidateTable,
    EventTable,
    RequestTable,
    ScoredItems,
)
from stages.features.config import FeatureConfig
from stages.features.history import TowerInputs
from stages.features.reading import COVISITATION, Reading, Wanted, read_blocks
from stages.features.state import FunnelState

PARTS = (PART_RANKER, PART_EVALUATION)
"""The periods that have requests, in the order of the rows of ``Exclusions.available_ms``."""
_NOTHING = ScoredItems(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


@dataclass(frozen=True)
class Answers:
    """Candidates of a block of requests.

    Attributes:
        rows: int64 ``[B]``, rows of the request table, ascending in time.
        queries: float32 ``[B, D]``; zeros without history.
        items: the candidates of each request.
        source: int8 ``[n]`` codes of their generators.
        sources: score and rank of each candidate in every generator's list; None where there is one generator.
        popular: bool ``[B]``, requests without history, which the popular list answers.
        history_lengths: int64 ``[B]``, items of each request's history.
        lists: every generator's list by name where there are several, as long as the blend reads them; empty for a
            request without history.
    """

    rows: np.ndarray
    queries: np.ndarray
    items: ItemLists
    source: np.ndarray
    sources: SourceScores | None
    popular: np.ndarray
    history_lengths: np.ndarray
    lists: dict[str, ItemLists]

    def table(self) -> CandidateTable:
        """Return the candidates as rows sorted by (request_id, rank)."""
        lengths = self.items.lengths
        return CandidateTable(
            request_id=np.repeat(self.rows, lengths),
            item_index=self.items.ids,
            score=self.items.scores,
            rank=places_in_rows(lengths).astype(np.int32),
            source=self.source,
        )


class Retriever:
    """Replays the log and answers the requests in blocks.

    Args:
        scorer: the two-tower index; None answers with the lists of the other generators alone.
        state: the replay advances it.
        snapshot: holds requests and contexts.
        candidate_k: items of an answer.
        blend: the other generators, None without any.
        newcomers: the list for users without history; None as in ``popular_half_life``.
    """

    def __init__(
        self,
        scorer: CandidateScorer | None,
        state: FunnelState,
        snapshot: Snapshot,
        candidate_k: int,
        blend: Blend | None,
        newcomers: NewcomerList | None = None,
    ) -> None:
        self._scorer, self._state, self._k, self._blend = scorer, state, candidate_k, blend
        self._half_life = popular_half_life(newcomers, state.config)
        self._list_k = candidate_k if blend is None else blend.list_length(candidate_k)
        self._contexts = snapshot.contexts()
        self._requests: RequestTable = snapshot.requests()
        self._available_PN = np.stack([state.items.available_from_ms(part) for part in PARTS])
        self._search = None if scorer is None else scorer.blocks(self._available_PN)
        self._visited: dict[int, dict[str, ScoredItems]] = {}

    def answers(self, events: EventTable, size: int, chosen: np.ndarray | None = None) -> Iterator[Answers]:
        """Yield the answers to the requests in the order of time, block by block.

        Args:
            events: in time order.
            size: requests of a block, at most.
            chosen: bool ``[Q]``, the requests to answer; None for all.

        Raises:
            DataError: if the events are not in time order.
        """
        available_ms = dict(zip(PARTS, self._available_PN, strict=True))
        wanted = Wanted(available_ms, lists_k=self._list_k, popular_k=self._k, popular_half_life=self._half_life)
        if self._blend is not None:
            wanted = self._blend.want(wanted)
            if self._blend.visits:
                wanted = replace(wanted, visit=self._visit)
        for reading in read_blocks(events, self._requests, self._state, wanted, size, self._contexts, chosen):
            yield self._answer(reading)

    def _visit(self, row: int, state: FunnelState) -> None:
        """Call the generators that have no reader of their own."""
        if self._blend is None:
            return
        user = int(self._requests.user_index[row])
        request = CandidateRequest(
            history=state.history(user).items,
            time_ms=int(self._requests.request_time_ms[row]),
            context=tuple(self._contexts[self._requests.context[row]].tolist()),
            seen=state.touched(user),
            available_ms=self._available_PN[PARTS.index(int(self._requests.part[row]))],
        )
        self._visited[row] = self._blend.visit(request, state, self._list_k)

    def _answer(self, reading: Reading) -> Answers:
        rows = reading.rows
        period = np.searchsorted(PARTS, self._requests.part[rows])
        times = self._requests.request_time_ms[rows]
        exclusions = Exclusions(reading.seen_offsets, reading.seen, times, period, self._available_PN)
        known = reading.lengths > 0
        queries, tower = self._tower(reading, exclusions, np.flatnonzero(known))
        lists: dict[str, ItemLists] = {}
        popular, mixed = reading.popular, _of_one(tower)
        if self._blend is not None:
            popular, lists, mixed = self._blended(self._blend, reading, exclusions, tower)
        answered = _with_popular(mixed, popular, known)
        return Answers(rows, queries, *answered, popular=~known, history_lengths=reading.lengths, lists=lists)

    def _tower(self, reading: Reading, exclusions: Exclusions, known: np.ndarray) -> tuple[np.ndarray, ItemLists]:
        """Return the queries of all requests, and the two-tower list of those that have a history."""
        queries = np.zeros((len(reading), 0 if self._scorer is None else self._scorer.dim), dtype=np.float32)
        if self._scorer is None or self._search is None or not len(known):
            return queries, ItemLists.join([_NOTHING] * len(reading))
        inputs = reading.inputs
        columns = (inputs.items, inputs.signals, inputs.ages, inputs.users, inputs.context)
        found = self._scorer.embed(TowerInputs(*(column[known] for column in columns)))
        queries[known] = ranker_query(found)
        lists = self._search.search(found, self._list_k, exclusions.take(known))
        lengths = np.zeros(len(reading), dtype=np.int64)
        lengths[known] = lists.lengths
        return queries, ItemLists(row_offsets(lengths), lists.ids, lists.scores)

    def _blended(
        self, blend: Blend, reading: Reading, exclusions: Exclusions, tower: ItemLists
    ) -> tuple[ItemLists, dict[str, ItemLists], MixedLists]:
        """Return the answers to requests without history, and the lists and the mix of the others."""
        n_items, known = exclusions.n_items, reading.lengths > 0
        block = RequestBlock(reading.inputs.items, reading.lengths, reading.inputs.context, exclusions)
        read = {**reading.lists, **_joined([self._visited.pop(row, {}) for row in reading.rows.tolist()])}
        found = blend.block_lists(read, block, self._state, self._list_k)
        newcomers = {name: _only(lists, ~known) for name, lists in found.items()}
        popular = blend.block_for_newcomers(newcomers, reading.popular, self._k, n_items)
        lists = {TOWER: tower, **{name: _only(lists, known) for name, lists in found.items()}}
        lists = {name: lists[name] for name in blend.names}
        return popular, lists, blend.mix_block(lists, self._k, n_items, reading.lengths)


def _of_one(tower: ItemLists) -> MixedLists:
    """Return the candidates of the two-tower index alone."""
    return MixedLists(tower, np.full(len(tower.ids), source_code(TOWER), dtype=np.int8))


def _joined(visited: list[dict[str, ScoredItems]]) -> dict[str, ItemLists]:
    """Return lists by request and name as lists by name."""
    return {name: ItemLists.join([lists[name] for lists in visited]) for name in visited[0]}


def _only(lists: ItemLists, kept: np.ndarray) -> ItemLists:
    """Return the lists of the requests in a bool array; those of the others are empty."""
    entries = np.repeat(kept, lists.lengths)
    return ItemLists(row_offsets(lists.lengths * kept), lists.ids[entries], lists.scores[entries])


def _with_popular(
    mixed: MixedLists, popular: ItemLists, known: np.ndarray
) -> tuple[ItemLists, np.ndarray, SourceScores | None]:
    """Put the popular lists in the places of the requests without history, whose own lists are empty."""
    popular = _only(popular, ~known)
    lengths = mixed.items.lengths + popular.lengths
    own = np.repeat(known, lengths)
    ids, scores = np.empty(len(own), dtype=np.int64), np.empty(len(own), dtype=np.float32)
    source = np.full(len(own), source_code("popular"), dtype=np.int8)
    ids[own], scores[own], source[own] = mixed.items.ids, mixed.items.scores, mixed.source
    ids[~own], scores[~own] = popular.ids, popular.scores
    sources = None
    if mixed.sources is not None:
        sources = SourceScores.nothing(mixed.sources.names, len(own))
        sources.scores[own], sources.ranks[own] = mixed.sources.scores, mixed.sources.ranks
    return ItemLists(row_offsets(lengths), ids, scores), source, sources


def empty_state(snapshot: Snapshot, features: FeatureConfig, blend: Blend | None) -> FunnelState:
    """Return a state before any event that keeps what the generators read, and no links where none reads them."""
    if blend is None or (COVISITATION not in blend.names and not blend.visits):
        features = features.model_copy(update={"covisitation_window": 0})
    meta, trending = snapshot.meta, None if blend is None else blend.trending
    segmented = trending is not None and trending.segment is not None
    context = meta.context if segmented else ()
    n_users = snapshot.n_users()
    return FunnelState.empty(snapshot.items(), features, meta.signals, meta.tasks, n_users, context, trending)


def check_features(features: FeatureConfig, scorer: CandidateScorer) -> None:
    """Refuse history features other than those that the tower was trained with.

    Raises:
        ConfigError: naming the fields that differ.
    """
    for name in ("history_length", "history_decay", "exposure_signals"):
        found, trained = features.model_dump(mode="json")[name], scorer.features[name]
        if found != trained:
            raise ConfigError(f"features.{name} = {found!r}, the candidate tower was trained with {trained!r}")
