"""The ``build_examples`` step: point-in-time features and labels of the candidates that the rankers learn from.

Shapes: R rows, Q requests, N items, F features, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stages.contracts.candidate_blocks import CANDIDATES_FILE, CandidateBlock, candidate_blocks, candidate_rows
from stages.contracts.config import Config
from stages.contracts.disk import require_disk
from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.examples import ExampleRows, ExamplesFile, read_array
from stages.contracts.progress import progress_of
from stages.contracts.ragged import places_in_rows, run_offsets
from stages.contracts.ranking import SOURCE_POPULAR
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.sources import SourceScores
from stages.contracts.steps import Outcome
from stages.contracts.summaries import SCHEMA_FILE, VECTORS_FILE, SchemaSummary, read_summary
from stages.contracts.tables import PART_CANDIDATE, PART_RANKER, CandidateTable, RequestTable
from stages.features.config import FeatureConfig, SamplingConfig, TrendsConfig
from stages.features.feature_blocks import feature_blocks
from stages.features.needs import require_replay_memory
from stages.features.ranking import FeatureSchema, feature_schema
from stages.features.sampling import choose_requests, keep_probabilities, sample, windows_of
from stages.features.state import FunnelState

STATE_DIRECTORY = "state"
_GROUP_ROWS = 1 << 16
"""Rows of a row group, at least; the last one may hold fewer."""


class ExamplesConfig(Config):
    """Configuration of ``build_examples``.

    Attributes:
        features: configuration of the state and the features.
        sources: candidate generators whose scores are features; empty if there is only one generator.
        trending: recent touches that the state counts for trending generators; None without any.
        sampling: which candidates the rankers learn from.
    """

    features: FeatureConfig = FeatureConfig()
    sources: tuple[str, ...] = ()
    trending: TrendsConfig | None = None
    sampling: SamplingConfig = SamplingConfig()


@dataclass
class _Counted:
    """What a look through the candidates of the ranker period found.

    Attributes:
        requests: int64 ids of requests with candidates of their own, ascending.
        positive: bool, parallel: whether one of them is a target.
        found: targets among the candidates.
        popular: requests that the popular list answered.
        rows: candidates of the ranker period.
    """

    requests: np.ndarray
    positive: np.ndarray
    found: int
    popular: int
    rows: int


def build_examples(config: ExamplesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Choose requests and candidates of the ranker period, compute their features, and save the state at the log's end.

    Memory is bounded by the log, the state and one row group. Requests that the popular list answered teach a ranker
    nothing, since it leaves them as they are. Evaluation requests are left to ``rank_held_out``.

    Args:
        config: configuration of the state, the features, the candidate generators and the sample.
        inputs: ``snapshot``, ``candidate`` (``item_vectors.npy``) and ``retrieve``
            (``candidates.parquet``; with several generators ``source_scores.parquet``).
        directory: receives ``examples.parquet``, ``feature_schema.json`` and ``state/``.

    Raises:
        DataError: if the inputs do not belong together.
        EmptyDatasetError: if no request of the ranker period has a target among its candidates; with the counts.
        OutOfSpaceError: if the disk is too small for what is chosen.
        ConfigError: if the log and its state will not fit the memory.
    """
    snapshot = Snapshot(inputs["snapshot"])
    require_replay_memory("build_examples", snapshot, config.features, config.trending)
    requests, items, meta = snapshot.requests(), snapshot.items(), snapshot.meta
    vectors = read_array(inputs["candidate"] / VECTORS_FILE)
    _check_inputs(requests, vectors, len(items))
    schema = feature_schema(config.features, meta.tasks, meta.context, config.sources)
    targets, events = snapshot.targets(), snapshot.events()
    counted = _count(inputs["retrieve"] / CANDIDATES_FILE, requests, targets, len(items))
    chosen = _chosen(config.sampling, counted, requests)
    known = meta.touching[events.signal] & (events.part == PART_CANDIDATE)
    picking = _Picking(
        config.sampling, requests, targets, chosen, np.bincount(events.item_index[known], minlength=len(items))
    )
    _require_space(config.sampling, directory, len(chosen), counted, len(schema.names))

    users = snapshot.n_users()
    state = FunnelState.empty(items, config.features, meta.signals, meta.tasks, users, meta.context, config.trending)
    contexts = snapshot.contexts()
    rows = positives = 0
    task_names = tuple(task.name for task in meta.tasks)
    blocks = picking.blocks(candidate_blocks(inputs["retrieve"], config.sources))
    with (
        ExamplesFile.writer(directory, schema.names, task_names) as append,
        progress_of("build_examples", len(chosen), "request") as advance,
    ):
        for made in feature_blocks(blocks, events, requests, state, vectors, contexts):
            example = picking.rows(made.candidates.rows, made.features)
            append(example)
            rows, positives = rows + len(example), positives + int((example.relevance > 0).sum())
            advance(len(run_offsets(example.request_id)) - 1)
    _write_schema(directory, schema, config)
    (directory / STATE_DIRECTORY).mkdir()
    state.save(directory / STATE_DIRECTORY)
    wanted = int((requests.part[targets.request_id] == PART_RANKER).sum())
    metrics = {
        "rows": float(rows),
        "requests": float(len(chosen)),
        "positive_share": positives / max(rows, 1),
        "requests_without_positive": float((~counted.positive).sum()),
        "popular_requests": float(counted.popular),
        "missed_positives": float(wanted - counted.found),
        "missed_share": (wanted - counted.found) / max(wanted, 1),
    }
    return metrics, {"feature_schema_hash": schema.hash, "features": len(schema.names)}


def _count(path: Path, requests: RequestTable, targets: Targets, n_items: int) -> _Counted:
    """Look through the candidates once, without what the generators said of them.

    Raises:
        DataError: if a row names a request or an item that does not exist.
        EmptyDatasetError: if there are no candidates at all.
    """
    ids, positive, found, popular, rows, of_ranker = [], [], 0, 0, 0, 0
    for block in candidate_rows(path):
        _check_rows(block, path, requests, n_items)
        rows += len(block)
        ranker = block.take(requests.part[block.request_id] == PART_RANKER)
        relevance, _ = join_labels(ranker, targets, n_items)
        found += int((relevance > 0).sum())
        of_ranker += len(ranker)
        offsets = run_offsets(ranker.request_id)[:-1]
        own = ranker.source[offsets] != SOURCE_POPULAR
        popular += int((~own).sum())
        if len(offsets):
            ids.append(ranker.request_id[offsets][own])
            positive.append((np.maximum.reduceat(relevance, offsets) > 0)[own])
    if not rows:
        raise EmptyDatasetError(f"{path} holds no candidates, at least one row is needed")
    none = np.zeros(0, dtype=np.int64)
    is_positive = np.concatenate([none.astype(bool), *positive])
    return _Counted(np.concatenate([none, *ids]), is_positive, found, popular, of_ranker)


def _chosen(config: SamplingConfig, counted: _Counted, requests: RequestTable) -> np.ndarray:
    """Return the int64 ids of the requests that the rankers learn from, ascending.

    Raises:
        EmptyDatasetError: if there are none, with the counts that explain it.
    """
    if not (len(counted.requests) if config.inject_missed else counted.positive.any()):
        raise EmptyDatasetError(
            f"rankers: none of {len(counted.requests) + counted.popular} requests of the ranker period has a target "
            f"among its candidates ({len(counted.requests)} of them come from the generators, the others from the "
            "popular list); raise funnel.candidate_k, or train longer"
        )
    ids = counted.requests
    if not (config.requests.without_positive or config.inject_missed):
        ids = ids[counted.positive]
    return choose_requests(config.requests, config.seed, ids, requests.user_index[ids])


def _require_space(config: SamplingConfig, directory: Path, requests: int, counted: _Counted, features: int) -> None:
    """Refuse a sample that will not fit the disk; random features take their whole 4 bytes."""
    answered = max(len(counted.requests) + counted.popular, 1)
    per_request, retrieved = config.negatives.per_request, counted.rows / answered
    rows = round(requests * (retrieved if per_request is None else min(retrieved, per_request + 2)))
    require_disk("build_examples", directory, rows * (4 * (features + 2) + 40))


@dataclass
class _Picking:
    """Picks the rows of the chosen requests, and gives them weights, labels and windows.

    Attributes:
        config: of the sample.
        requests: all requests.
        targets: all targets.
        chosen: int64 ids, ascending.
        popularity: int64 ``[N]``, touches of each item before the ranker period.
        windows: int16 by position in ``chosen``.
        weights: of the rows that were picked and not yet asked for, block by block.
    """

    config: SamplingConfig
    requests: RequestTable
    targets: Targets
    chosen: np.ndarray
    popularity: np.ndarray
    windows: np.ndarray = field(init=False)
    weights: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.windows = windows_of(len(self.chosen), self.config.windows)

    def blocks(self, retrieved: Iterator[CandidateBlock]) -> Iterator[CandidateBlock]:
        """Yield the picked rows, as many blocks joined as make a row group."""
        waiting: list[CandidateBlock] = []
        weights: list[np.ndarray] = []
        for block in retrieved:
            picked, weight = self._pick(block.take(np.isin(block.rows.request_id, self.chosen)))
            if len(picked.rows):
                waiting.append(picked)
                weights.append(weight)
            if sum(len(each.rows) for each in waiting) >= _GROUP_ROWS:
                self.weights.append(np.concatenate(weights))
                yield CandidateBlock.join(waiting)
                waiting, weights = [], []
        if waiting:
            self.weights.append(np.concatenate(weights))
            yield CandidateBlock.join(waiting)

    def _pick(self, block: CandidateBlock) -> tuple[CandidateBlock, np.ndarray]:
        if self.config.inject_missed:
            block = self._with_missed(block)
        relevance, _ = join_labels(block.rows, self.targets, len(self.popularity))
        probability = keep_probabilities(self.config.negatives, block.rows, relevance == 0, self.popularity)
        kept = sample(self.config.seed, block.rows, probability)
        return block.take(kept), (1.0 / probability[kept]).astype(np.float32)

    def _with_missed(self, block: CandidateBlock) -> CandidateBlock:
        """Return the block with the targets that retrieval missed, each request's behind its own candidates."""
        rows, n_items = block.rows, len(self.popularity)
        offsets = run_offsets(rows.request_id)
        ids, last = rows.request_id[offsets[:-1]], offsets[1:] - 1
        of_block = np.flatnonzero(np.isin(self.targets.request_id, ids))
        keys = self.targets.request_id[of_block] * n_items + self.targets.item_index[of_block]
        missed = of_block[~np.isin(keys, rows.request_id * n_items + rows.item_index)]
        missing = self.targets.request_id[missed]
        place = last[np.searchsorted(ids, missing)]
        behind = 1 + places_in_rows(np.diff(run_offsets(missing)))
        added = CandidateTable(
            request_id=missing,
            item_index=self.targets.item_index[missed],
            score=rows.score[place],
            rank=(rows.rank[place] + behind).astype(np.int32),
            source=np.zeros(len(missed), dtype=np.int8),
        )
        sources = None if block.sources is None else SourceScores.nothing(block.sources.names, len(missed))
        joined = CandidateBlock.join([block, CandidateBlock(added, sources)])
        return joined.take(np.argsort(joined.rows.request_id, kind="stable"))

    def rows(self, table: CandidateTable, features: np.ndarray) -> ExampleRows:
        """Return the next block's rows with their features."""
        relevance, labels = join_labels(table, self.targets, len(self.popularity))
        return ExampleRows(
            request_id=table.request_id,
            user_index=self.requests.user_index[table.request_id],
            window=self.windows[np.searchsorted(self.chosen, table.request_id)],
            item_index=table.item_index,
            score=table.score,
            rank=table.rank,
            source=table.source,
            weight=self.weights.pop(0),
            relevance=relevance,
            labels=labels,
            features=features,
        )


def build_state(config: ExamplesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Replay the events into a serving state, without requests or features.

    Args:
        config: configuration of the state and the features.
        inputs: ``snapshot``, and ``champion``, the release whose rankers will read the features.
        directory: receives ``feature_schema.json`` and ``state/``.

    Raises:
        DataError: if the champion's rankers read other features, or features computed by other code.
        ReleaseError: if the champion's ``feature_schema.json`` is not readable by this version.
    """
    snapshot = Snapshot(inputs["snapshot"])
    require_replay_memory("refresh_state", snapshot, config.features, config.trending)
    meta = snapshot.meta
    schema = feature_schema(config.features, meta.tasks, meta.context, config.sources)
    wanted = read_summary(inputs["champion"] / SCHEMA_FILE, SchemaSummary).hash
    if schema.hash != wanted:
        raise DataError(f"feature schema {schema.hash[:12]}…, the champion's rankers read {wanted[:12]}…; train anew")
    items, users = snapshot.items(), snapshot.n_users()
    state = FunnelState.empty(items, config.features, meta.signals, meta.tasks, users, meta.context, config.trending)
    events = snapshot.events()
    state.apply_all(state.columns(events, snapshot.contexts()), 0, len(events))
    _write_schema(directory, schema, config)
    (directory / STATE_DIRECTORY).mkdir()
    state.save(directory / STATE_DIRECTORY)
    return {"events": float(len(events)), "users": float(users)}, {"feature_schema_hash": schema.hash}


def _write_schema(directory: Path, schema: FeatureSchema, config: ExamplesConfig) -> None:
    summary = SchemaSummary(names=schema.names, hash=schema.hash, sources=config.sources, code=shared_code())
    summary.write(directory / SCHEMA_FILE)


def join_labels(rows: CandidateTable, targets: Targets, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Look up the relevance and the labels of candidate rows.

    Args:
        rows: R candidate rows.
        targets: sorted by (request_id, item_index), unique pairs.
        n_items: N.

    Returns:
        relevance float32 ``[R]`` and labels float32 ``[R, T]``, 0 for a row that is no target.
    """
    relevance = np.zeros(len(rows), dtype=np.float32)
    labels = np.zeros((len(rows), targets.labels.shape[1]), dtype=np.float32)
    if not len(targets.request_id):
        return relevance, labels
    target_keys = targets.request_id * n_items + targets.item_index
    row_keys = rows.request_id * n_items + rows.item_index
    position = np.minimum(np.searchsorted(target_keys, row_keys), len(target_keys) - 1)
    found = target_keys[position] == row_keys
    relevance[found] = targets.relevance[position[found]]
    labels[found] = targets.labels[position[found]]
    return relevance, labels


def _check_inputs(requests: RequestTable, vectors: np.ndarray, n_items: int) -> None:
    if vectors.ndim != 2 or len(vectors) != n_items:
        raise DataError(f"item_vectors.npy has shape {list(vectors.shape)}, the snapshot has {n_items} items")
    if not np.array_equal(requests.request_id, np.arange(len(requests))):
        raise DataError("requests.parquet: request_id must equal the row number")


def _check_rows(rows: CandidateTable, path: Path, requests: RequestTable, n_items: int) -> None:
    for name, values, limit in (
        ("request_id", rows.request_id, len(requests)),
        ("item_index", rows.item_index, n_items),
    ):
        if values.min() < 0 or values.max() >= limit:
            raise DataError(f"{path}: {name} spans {values.min()} to {values.max()}, allowed are 0 to {limit - 1}")
