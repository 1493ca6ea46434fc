"""Answers requests with candidates in blocks, each request from the state at its time.

Shapes: D dimensions, N items, B requests of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stages.candidate.generators.blend import Blend, Blended
from stages.candidate.generators.generator import CandidateRequest
from stages.candidate.onnx_towers import ranker_query
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import ConfigError
from stages.contracts.ragged import places_in_rows
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import SourceScores
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable, RequestTable, ScoredItems
from stages.features.config import FeatureConfig
from stages.features.history import Moment, tower_inputs
from stages.features.state import FunnelState, History


@dataclass
class Block:
    """Requests that are answered together.

    Attributes:
        rows: request rows in order.
        waiting: the rows among them that have a history; the lists below are parallel to it.
        histories, moments, exclude: inputs of the tower and the index.
        requests: inputs of the other generators.
        state_lists: the lists of the generators that read the state.
        popular: answers to rows without history, by request row.
        answers: all answers by request row.
        lists: every generator's list by request row, where there are several generators.
    """

    rows: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    exclude: list[np.ndarray] = field(default_factory=list)
    requests: list[CandidateRequest] = field(default_factory=list)
    state_lists: list[dict[str, ScoredItems]] = field(default_factory=list)
    popular: dict[int, ScoredItems] = field(default_factory=dict)
    answers: dict[int, Blended] = field(default_factory=dict)
    lists: dict[int, dict[str, ScoredItems]] = field(default_factory=dict)

    def table(self) -> CandidateTable:
        """Return the answers as rows sorted by (request_id, rank)."""
        found = [self.answers[row] for row in self.rows]
        lengths = [len(answer.items) for answer in found]
        return CandidateTable(
            request_id=np.repeat(np.array(self.rows, dtype=np.int64), lengths),
            item_index=np.concatenate([answer.items.ids for answer in found]),
            score=np.concatenate([answer.items.scores for answer in found]),
            rank=places_in_rows(np.array(lengths)).astype(np.int32),
            source=np.concatenate([answer.source for answer in found]),
        )

    def sources(self) -> SourceScores:
        """Return scores and ranks by generator, rows as in ``table``; only where there are several generators."""
        source_scores = [self.answers[row].sources for row in self.rows]
        return SourceScores.concatenate([each for each in source_scores if each is not None])


class Retriever:
    """Reads what a request needs from the state at its time, and answers in blocks.

    Args:
        scorer: the two-tower index.
        state: the caller advances it.
        snapshot: holds the requests.
        features: those of the tower.
        candidate_k: items of an answer.
        blend: the other generators, None without any.
    """

    def __init__(
        self,
        scorer: CandidateScorer,
        state: FunnelState,
        snapshot: Snapshot,
        features: FeatureConfig,
        candidate_k: int,
        blend: Blend | None = None,
    ) -> None:
        self._scorer, self._state, self._features, self._k = scorer, state, features, candidate_k
        self._blend = blend
        self._names = () if blend is None else blend.names
        self._requests: RequestTable = snapshot.requests()
        self._contexts = [tuple(codes) for codes in snapshot.contexts().tolist()]
        parts = {part: state.items.available_from_ms(part) for part in (PART_RANKER, PART_EVALUATION)}
        self._available_ms = parts
        self._births = {part: Births(scorer.indexed, times) for part, times in parts.items()}

    def read(self, row: int, block: Block) -> None:
        """Copy what depends on the state into ``block``; answer the request if it has no history."""
        user, time_ms = int(self._requests.user_index[row]), int(self._requests.request_time_ms[row])
        part, context = int(self._requests.part[row]), self._contexts[int(self._requests.context[row])]
        available_ms = self._available_ms[part]
        block.rows.append(row)
        history, seen = self._state.history(user), self._state.touched(user)
        request = CandidateRequest(history.items, time_ms, context, seen, available_ms)
        if len(history.items) == 0:
            popular = self._state.popular(time_ms, self._k, seen, available_ms)
            if self._blend is not None:
                popular = self._blend.for_newcomer(request, self._state, popular, self._k)
            block.popular[row] = popular
            return
        block.waiting.append(row)
        block.histories.append(history)
        block.moments.append(Moment(time_ms, user, context))
        block.exclude.append(np.concatenate([seen, self._births[part].after(time_ms)]))
        if self._blend is not None:
            block.requests.append(request)
            block.state_lists.append(self._blend.read(request, self._state, self._k))

    def answer(self, block: Block) -> np.ndarray:
        """Fill ``block.answers``; return float32 ``[B, D]`` queries, zeros without history."""
        queries = np.zeros((len(block.rows), self._scorer.dim), dtype=np.float32)
        block.answers = {row: Blended.of_one(items, "popular", self._names) for row, items in block.popular.items()}
        if block.waiting:
            inputs = tower_inputs(block.histories, block.moments, self._features, self._scorer.n_items)
            found = self._scorer.embed(inputs)
            queries[np.isin(block.rows, block.waiting)] = ranker_query(found)
            tower = self._scorer.search(found, self._k, block.exclude)
            self._mix(block, tower)
        return queries

    def _mix(self, block: Block, tower: list[ScoredItems]) -> None:
        if self._blend is None:
            block.answers |= {
                row: Blended.of_one(items, "tower") for row, items in zip(block.waiting, tower, strict=True)
            }
            return
        for row, request, state_lists, items in zip(
            block.waiting, block.requests, block.state_lists, tower, strict=True
        ):
            block.lists[row] = self._blend.complete(state_lists, request, self._state, items, self._k)
            block.answers[row] = self._blend.mix(block.lists[row], self._k)


class Births:
    """Items by the time from which they may be recommended.

    Args:
        items: int64 items to look at.
        available_ms: int64 ``[N]`` times of all items.
    """

    def __init__(self, items: np.ndarray, available_ms: np.ndarray) -> None:
        self._order = items[np.argsort(available_ms[items], kind="stable")]
        self._sorted_ms = available_ms[self._order]

    def after(self, time_ms: int) -> np.ndarray:
        """Return the int64 items that may not be recommended yet at ``time_ms``."""
        return self._order[np.searchsorted(self._sorted_ms, time_ms, side="right") :]


def empty_state(snapshot: Snapshot, features: FeatureConfig, blend: Blend | None) -> FunnelState:
    """Return a state before any event that keeps what the generators read."""
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
