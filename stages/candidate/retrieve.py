"""The step ``retrieve``: candidates of every request, from the state of its moment.

Shapes: D dimensions, L history length, N items, Q requests.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.candidate.config import RetrieveConfig
from stages.candidate.scorer import CandidateScorer, ranker_query
from stages.contracts.errors import ConfigError
from stages.contracts.ranking import SOURCE_POPULAR, SOURCE_TOWER
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_EVALUATION, PART_RANKER, CandidateTable, RequestTable, ScoredItems
from stages.features.config import FeatureConfig
from stages.features.history import Moment, tower_inputs
from stages.features.replay import replay
from stages.features.state import FunnelState, History


def retrieve(config: RetrieveConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Answer every request with ``candidate_k`` unseen items that existed at its time.

    A request without history gets the popular list instead.

    Args:
        config: sizes; its features must be those of the tower.
        inputs: ``snapshot``, ``candidate`` and ``index``.
        directory: receives ``candidates.parquet`` and ``queries.npy``.

    Raises:
        ConfigError: if the tower was trained with other history features.
        ReleaseError: if tower, vectors and index do not belong together.
    """
    snapshot = Snapshot(inputs["snapshot"])
    scorer = CandidateScorer.load(inputs["candidate"], inputs["index"])
    check_features(config.features, scorer)
    items, requests, targets = snapshot.items(), snapshot.requests(), snapshot.targets()
    state = FunnelState.empty(
        items, config.features, snapshot.meta.signals, snapshot.meta.tasks, len(snapshot.user_ids())
    )
    answering = Retriever(scorer, state, requests, config, snapshot.contexts())
    queries_QD = np.zeros((len(requests), scorer.dim), dtype=np.float32)
    recalls = np.full(len(requests), np.nan)
    sources = np.full(len(requests), SOURCE_TOWER, dtype=np.int8)
    block = Block()
    rows = tqdm(replay(snapshot.events(), requests, state), "retrieve", len(requests), mininterval=1, file=sys.stderr)
    with CandidateTable.writer(directory / "candidates.parquet") as write:
        for row in rows:
            answering.read(row, block)
            if len(block.rows) == config.block or row == len(requests) - 1:
                queries_QD[block.rows] = answering.answer(block)
                for number in block.popular:
                    sources[number] = SOURCE_POPULAR
                table = block.table(sources)
                write(table)
                measure(table, targets, recalls)
                block = Block()
    np.save(directory / "queries.npy", queries_QD)
    return retrieval_metrics(requests, sources, recalls), {"tower_version": scorer.tower_version}


@dataclass
class Block:
    """Requests that are answered together.

    Attributes:
        rows: request rows in order.
        histories, moments, exclude: of the requests in ``waiting``.
        waiting: request rows that the tower answers.
        popular: answers from the popular list by request row.
        answers: all answers by request row.
    """

    rows: list[int] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    exclude: list[np.ndarray] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    popular: dict[int, ScoredItems] = field(default_factory=dict)
    answers: dict[int, ScoredItems] = field(default_factory=dict)

    def table(self, sources: np.ndarray) -> CandidateTable:
        """Return the answers as rows sorted by (request_id, rank)."""
        found = [self.answers[row] for row in self.rows]
        lengths = [len(items) for items in found]
        request_id = np.repeat(np.array(self.rows, dtype=np.int64), lengths)
        return CandidateTable(
            request_id=request_id,
            item_index=np.concatenate([items.ids for items in found]),
            score=np.concatenate([items.scores for items in found]),
            rank=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            source=sources[request_id],
        )


class Retriever:
    """Reads what a request needs while the state stands at its moment, and answers block by block."""

    def __init__(
        self,
        scorer: CandidateScorer,
        state: FunnelState,
        requests: RequestTable,
        config: RetrieveConfig,
        contexts: np.ndarray,
    ) -> None:
        self._scorer, self._state, self._requests, self._config = scorer, state, requests, config
        self._contexts = [tuple(codes) for codes in contexts.tolist()]
        parts = {part: state.items.available_from_ms(part) for part in (PART_RANKER, PART_EVALUATION)}
        self._available_ms = parts
        self._births = {part: Births(scorer.indexed, times) for part, times in parts.items()}

    def read(self, row: int, block: Block) -> None:
        """Copy a request's history and exclusions into ``block``; answer it if it has no history."""
        user, time_ms = int(self._requests.user_index[row]), int(self._requests.request_time_ms[row])
        part = int(self._requests.part[row])
        block.rows.append(row)
        history, seen = self._state.history(user), self._state.seen(user)
        if len(history.items) == 0:
            available = self._available_ms[part]
            block.popular[row] = self._state.popular(time_ms, self._config.candidate_k, seen, available)
            return
        block.waiting.append(row)
        block.histories.append(history)
        block.moments.append(Moment(time_ms, user, self._contexts[int(self._requests.context[row])]))
        block.exclude.append(np.concatenate([seen, self._births[part].after(time_ms)]))

    def answer(self, block: Block) -> np.ndarray:
        """Fill ``block.answers``; return float32 ``[len(rows), D]`` queries, zeros without history."""
        queries = np.zeros((len(block.rows), self._scorer.dim), dtype=np.float32)
        block.answers = dict(block.popular)
        if block.waiting:
            inputs = tower_inputs(block.histories, block.moments, self._config.features, self._scorer.n_items)
            found = self._scorer.embed(inputs)
            queries[np.isin(block.rows, block.waiting)] = ranker_query(found)
            answers = self._scorer.search(found, self._config.candidate_k, block.exclude)
            block.answers.update(zip(block.waiting, answers, strict=True))
        return queries


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


def check_features(features: FeatureConfig, scorer: CandidateScorer) -> None:
    """Refuse history features other than those that the tower was trained with.

    Raises:
        ConfigError: naming the fields that differ.
    """
    for name in ("history_length", "history_decay", "exposure_signals"):
        found, trained = features.model_dump(mode="json")[name], scorer.features[name]
        if found != trained:
            raise ConfigError(f"features.{name} = {found!r}, the candidate tower was trained with {trained!r}")


def measure(table: CandidateTable, targets: Targets, recalls: np.ndarray) -> None:
    """Write the share of each request's targets that ``table`` holds into ``recalls``."""
    if not len(table):
        return
    first, last = int(table.request_id[0]), int(table.request_id[-1])
    rows = slice(*np.searchsorted(targets.request_id, [first, last + 1]))
    wanted_request, wanted_item = targets.request_id[rows], targets.item_index[rows]
    width = int(max(table.item_index.max(initial=0), wanted_item.max(initial=0))) + 1
    found = np.isin(wanted_request * width + wanted_item, table.request_id * width + table.item_index)
    wanted = np.bincount(wanted_request - first, minlength=last - first + 1)
    hits = np.bincount(wanted_request - first, found, minlength=last - first + 1)
    asked = wanted > 0
    recalls[first : last + 1][asked] = hits[asked] / wanted[asked]


def retrieval_metrics(requests: RequestTable, sources: np.ndarray, recalls: np.ndarray) -> dict[str, float]:
    """Return counts, the popular list's share and mean recall of each part's requests with targets."""
    metrics = {
        "requests": float(len(requests)),
        "popular_share": float((sources == SOURCE_POPULAR).mean()) if len(requests) else 0.0,
    }
    for name, part in (("ranker", PART_RANKER), ("evaluation", PART_EVALUATION)):
        rows = (requests.part == part) & ~np.isnan(recalls)
        metrics[f"{name}_requests"] = float((requests.part == part).sum())
        metrics[f"{name}_recall"] = float(recalls[rows].mean()) if rows.any() else 0.0
    return metrics
