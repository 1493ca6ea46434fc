"""The step ``rank_held_out``: what every ranking stage makes of the held-out requests, as the server would.

Shapes: Q requests, N items, D vector dimensions, F ranking features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from stages.contracts.arrays import load_npy
from stages.contracts.candidate_blocks import CANDIDATES_FILE, CandidateBlock, candidate_blocks
from stages.contracts.disk import require_disk
from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.progress import progress_of
from stages.contracts.ranking_stages import RANKING_STAGES, ranking_file
from stages.contracts.snapshot import Snapshot
from stages.contracts.stage_runs import LoadedStage
from stages.contracts.steps import Outcome
from stages.contracts.summaries import VECTORS_FILE
from stages.contracts.tables import PART_EVALUATION, CandidateTable, RankedTable, RequestTable
from stages.features.feature_blocks import FeatureBlock, feature_blocks
from stages.features.needs import require_replay_memory
from stages.features.ranking import feature_schema
from stages.features.state import FunnelState
from stages.held_out.blocks import BlockRanker, PopularRows, pieces
from stages.held_out.config import RankHeldOutConfig

QUERIES_FILE = "queries.npy"
ROWS = 1 << 16
"""Candidates of a block."""

ROW_BYTES = 6
"""Bytes of a row of a ranking on disk: 5.6 with 300 of 40,000 items a request and scores of a normal distribution."""


def rank_held_out(config: RankHeldOutConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Rank the candidates of every evaluation request by every stage that was trained.

    The log is replayed once; features are computed for a block of requests, scored, and dropped. A stage's ranking
    holds all items that it gets: the retrieved ones for the first stage, what the stages before pass on for the others.
    Requests that were answered from the popular list keep their order.

    In memory are the events, the state, and ``threads + 2`` blocks of ``ROWS`` candidates with about ``8 (F + 3 D)``
    bytes a candidate, however many requests there are. Requests of the popular list add 25 bytes a candidate until a
    request with a history comes.

    Args:
        config: features, sizes and objective of the funnel.
        inputs: ``snapshot``, ``candidate``, ``retrieve``, and by its name each ranking stage that was trained.
        directory: receives the ranking of each stage, ``<stage>.parquet``: RankedTable, sorted by (request_id, rank).

    Raises:
        EmptyDatasetError: if there is no evaluation request, or none with a candidate.
        DataError: if the inputs do not belong together.
        OutOfSpaceError: if the rankings will not fit the disk.
        ConfigError: if the log and its state will not fit the memory.
        ReleaseError: if a stage's file is missing, or it was trained on other features.
    """
    snapshot = Snapshot(inputs["snapshot"])
    require_replay_memory("rank_held_out", snapshot, config.features, config.trending)
    requests, items, meta = snapshot.requests(), snapshot.items(), snapshot.meta
    wanted = requests.part == PART_EVALUATION
    if not wanted.any():
        raise EmptyDatasetError(
            f"requests.parquet: none of {len(requests)} requests is of the evaluation part, at least one is needed"
        )
    schema = feature_schema(config.features, meta.tasks, meta.context, config.sources)
    stages = load_stages(inputs, schema.hash, config.objective)
    ranker = BlockRanker(stages, config, *_vectors(inputs, requests, len(items)))
    path = inputs["retrieve"] / CANDIDATES_FILE
    require_disk("rank_held_out", directory, needed_bytes(config, CandidateTable.count(path), wanted, stages))
    state = FunnelState.empty(
        items, config.features, meta.signals, meta.tasks, snapshot.n_users(), meta.context, config.trending
    )
    found = _checked(candidate_blocks(inputs["retrieve"], config.sources), path, len(requests), len(items))
    popular = PopularRows()
    featured = feature_blocks(
        popular.without(pieces(found, wanted, ROWS)),
        snapshot.events(),
        requests,
        state,
        ranker.vectors,
        snapshot.contexts(),
    )
    counts = _write(_rankings(ranker, featured, popular, config.threads), stages, int(wanted.sum()), directory)
    if not counts["requests"]:
        raise EmptyDatasetError(f"{path} holds no candidate of the {int(wanted.sum())} evaluation requests")
    return counts, {"feature_schema_hash": schema.hash, "stages": [stage.row.name for stage in stages]}


def load_stages(
    inputs: Mapping[str, Path], feature_schema_hash: str, objective: Mapping[str, float]
) -> list[LoadedStage]:
    """Load the ranking stages among the inputs, in the order in which they run.

    Raises:
        DataError: if there is none, or one reads the scores of a stage that is not there.
        ReleaseError: if a file is missing or unreadable, or was trained on other features.
    """
    rows = [row for name, row in RANKING_STAGES.items() if name in inputs]
    if not rows:
        raise DataError(f"no ranking stage was trained, at least one of {', '.join(RANKING_STAGES)} is needed")
    for row in rows:
        if missing := [name for name in row.reads if name not in inputs]:
            raise DataError(f"the {row.name} ranker reads the scores of {', '.join(missing)}, which was not trained")
    return [LoadedStage.load(row, inputs[row.name], feature_schema_hash, objective) for row in rows]


def needed_bytes(config: RankHeldOutConfig, n_rows: int, wanted: np.ndarray, stages: Iterable[LoadedStage]) -> int:
    """Estimate what the rankings need on disk: ``ROW_BYTES`` for each row that each stage gets.

    Args:
        config: has the sizes by which the stages cut.
        n_rows: candidates of all requests.
        wanted: bool ``[Q]``, the requests that are ranked.
        stages: in the order in which they run.
    """
    a_request = n_rows / len(wanted)
    rows = 0.0
    for stage in stages:
        rows += a_request
        if stage.row.cut is not None:
            a_request = min(a_request, float(getattr(config, stage.row.cut)))
    return round(rows * int(wanted.sum()) * ROW_BYTES)


def _vectors(inputs: Mapping[str, Path], requests: RequestTable, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the users' vectors by request and the item vectors, mapped from their files."""
    queries_path, vectors_path = inputs["retrieve"] / QUERIES_FILE, inputs["candidate"] / VECTORS_FILE
    queries, vectors = _array(queries_path), _array(vectors_path)
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape != (len(requests), vectors.shape[1]):
        raise DataError(
            f"{queries_path} has shape {list(queries.shape)} and {vectors_path} {list(vectors.shape)}: needed are "
            f"[{len(requests)}, D] and [{n_items}, D]"
        )
    if len(vectors) != n_items:
        raise DataError(f"{vectors_path} has shape {list(vectors.shape)}, the snapshot has {n_items} items")
    return queries, vectors


def _array(path: Path) -> np.ndarray:
    try:
        return load_npy(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable array: {error}") from None


def _checked(blocks: Iterable[CandidateBlock], path: Path, n_requests: int, n_items: int) -> Iterator[CandidateBlock]:
    """Yield the blocks; refuse rows that refer to requests or items that there are not."""
    for block in blocks:
        for name, limit in (("request_id", n_requests), ("item_index", n_items)):
            values = getattr(block.rows, name)
            if values.min() < 0 or values.max() >= limit:
                raise DataError(f"{path}: {name} spans {values.min()} to {values.max()}, allowed are 0 to {limit - 1}")
        yield block


def _rankings(
    ranker: BlockRanker, blocks: Iterable[FeatureBlock], popular: PopularRows, threads: int
) -> Iterator[dict[str, RankedTable]]:
    """Yield what each stage made of consecutive requests, those of the popular list in their places."""

    def jobs() -> Iterator[Callable[[], dict[str, RankedTable]]]:
        for block in blocks:
            ids = block.candidates.rows.request_id
            aside = popular.before(int(ids[-1]))
            n_earlier = sum(table.request_id[-1] < ids[0] for table in aside)
            yield from (partial(_rank, ranker, [], [table]) for table in aside[:n_earlier])
            yield partial(_rank, ranker, [block], aside[n_earlier:])
        yield from (partial(_rank, ranker, [], [rest]) for rest in popular.before(None))

    with ThreadPoolExecutor(threads, thread_name_prefix="rank_held_out") as pool:
        waiting: deque[Future[dict[str, RankedTable]]] = deque()
        for job in jobs():
            waiting.append(pool.submit(job))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _rank(ranker: BlockRanker, blocks: list[FeatureBlock], aside: list[CandidateTable]) -> dict[str, RankedTable]:
    """Return the rows of blocks and of what was set aside, by stage, sorted by request."""
    parts = [*map(ranker.rank, blocks), *map(ranker.keep, aside)]
    joined = {}
    for name in parts[0]:
        table = RankedTable.concatenate([part[name] for part in parts])
        joined[name] = table.take(np.argsort(table.request_id, kind="stable")) if len(parts) > 1 else table
    return joined


def _write(
    rankings: Iterable[dict[str, RankedTable]], stages: Iterable[LoadedStage], n_requests: int, directory: Path
) -> dict[str, float]:
    """Write the rankings block by block; return counts of requests and rows."""
    counts = {"requests": 0.0}
    with ExitStack() as files, progress_of("rank_held_out", n_requests, "request") as advance:
        names = [stage.row.name for stage in stages]
        writers = {name: files.enter_context(RankedTable.writer(directory / ranking_file(name))) for name in names}
        for tables in rankings:
            for name, table in tables.items():
                writers[name](table)
                counts[f"rows_{name}"] = counts.get(f"rows_{name}", 0.0) + len(table)
            n_done = len(np.unique(next(iter(tables.values())).request_id)) if tables else 0
            counts["requests"] += n_done
            advance(n_done)
    return counts
