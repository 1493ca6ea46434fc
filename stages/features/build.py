"""The ``build_examples`` step: point-in-time features and labels of every candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.contracts.config import Config
from stages.contracts.errors import DataError, EmptyDatasetError
from stages.contracts.examples import read_array
from stages.contracts.files import create_array
from stages.contracts.release_code import shared_code
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores
from stages.contracts.steps import Outcome
from stages.contracts.summaries import SCHEMA_FILE, VECTORS_FILE, SchemaSummary, read_summary
from stages.contracts.tables import CandidateTable, RequestTable
from stages.features.config import FeatureConfig, TrendingConfig
from stages.features.ranking import FeatureSchema, feature_schema, ranking_features
from stages.features.replay import replay
from stages.features.state import FunnelState

STATE_DIRECTORY = "state"


class ExamplesConfig(Config):
    """Configuration of ``build_examples``.

    Attributes:
        features: configuration of the state and the features.
        sources: candidate generators whose scores are features; empty if there is only one generator.
        trending: windows that the state counts for the trending generator; None without that generator.
    """

    features: FeatureConfig = FeatureConfig()
    sources: tuple[str, ...] = ()
    trending: TrendingConfig | None = None


def build_examples(config: ExamplesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Compute features and labels in one replay and save the state at its end.

    Memory stays bounded: features are written to a memory-mapped file request by request.

    Args:
        config: configuration of the state, the features and the candidate generators.
        inputs: ``snapshot``, ``candidate`` (``item_vectors.npy``) and ``retrieve``
            (``candidates.parquet``; with several generators ``source_scores.parquet``).
        directory: receives ``rows.parquet``, ``features.npy`` float32 ``[R, F]``, ``relevance.npy``
            float32 ``[R]``, ``labels.npy`` float32 ``[R, T]``, ``feature_schema.json`` and ``state/``.

    Raises:
        DataError: if the inputs do not belong together.
        EmptyDatasetError: if there are no candidates.
    """
    snapshot = Snapshot(inputs["snapshot"])
    requests, items, tasks = snapshot.requests(), snapshot.items(), snapshot.meta.tasks
    vectors = read_array(inputs["candidate"] / VECTORS_FILE)
    path = inputs["retrieve"] / "candidates.parquet"
    rows = CandidateTable.read(path)
    _check_inputs(rows, path, requests, vectors, len(items))

    source_scores = _read_sources(config, inputs["retrieve"], len(rows))

    meta, contexts = snapshot.meta, snapshot.contexts()
    schema = feature_schema(config.features, tasks, meta.context, config.sources)
    relevance, labels = join_labels(rows, snapshot.targets(), len(items))
    n_users = snapshot.n_users()
    state = FunnelState.empty(items, config.features, meta.signals, tasks, n_users, meta.context, config.trending)
    features = create_array(directory / "features.npy", np.float32, (len(rows), len(schema.names)))
    moments = replay(snapshot.events(), requests, state, contexts)
    answered = _fill_features(features, rows, source_scores, requests, moments, state, vectors, contexts)
    features.flush()

    rows.write(directory / "rows.parquet")
    np.save(directory / "relevance.npy", relevance)
    np.save(directory / "labels.npy", labels)
    _write_schema(directory, schema, config)
    (directory / STATE_DIRECTORY).mkdir()
    state.save(directory / STATE_DIRECTORY)
    metrics = {
        "rows": float(len(rows)),
        "requests": float(answered),
        "positive_share": float(np.mean(relevance > 0)),
    }
    return metrics, {"feature_schema_hash": schema.hash, "features": len(schema.names)}


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
    meta = snapshot.meta
    schema = feature_schema(config.features, meta.tasks, meta.context, config.sources)
    wanted = read_summary(inputs["champion"] / SCHEMA_FILE, SchemaSummary).hash
    if schema.hash != wanted:
        raise DataError(f"feature schema {schema.hash[:12]}…, the champion's rankers read {wanted[:12]}…; train anew")
    items, users = snapshot.items(), snapshot.n_users()
    state = FunnelState.empty(items, config.features, meta.signals, meta.tasks, users, meta.context, config.trending)
    events, none = snapshot.events(), np.zeros(0, dtype=np.int64)
    nothing = RequestTable(none, none, none, none.astype(np.int8))
    for _ in replay(events, nothing, state, snapshot.contexts()):
        pass
    _write_schema(directory, schema, config)
    (directory / STATE_DIRECTORY).mkdir()
    state.save(directory / STATE_DIRECTORY)
    return {"events": float(len(events)), "users": float(users)}, {"feature_schema_hash": schema.hash}


def _write_schema(directory: Path, schema: FeatureSchema, config: ExamplesConfig) -> None:
    summary = SchemaSummary(names=schema.names, hash=schema.hash, sources=config.sources, code=shared_code())
    summary.write(directory / SCHEMA_FILE)


def _fill_features(
    features: np.ndarray,
    rows: CandidateTable,
    source_scores: SourceScores | None,
    requests: RequestTable,
    moments: Iterator[int],
    state: FunnelState,
    vectors: np.ndarray,
    contexts: np.ndarray,
) -> int:
    """Compute each request's features when the replay reaches it; return the number of requests with candidates."""
    starts = np.searchsorted(rows.request_id, np.arange(len(requests) + 1)).tolist()
    answered = 0
    for request in tqdm(moments, total=len(requests), desc="features", unit="request", disable=None):
        if starts[request] == starts[request + 1]:
            continue
        answered += 1
        of_request = slice(starts[request], starts[request + 1])
        features[of_request] = ranking_features(
            state,
            int(requests.user_index[request]),
            int(requests.request_time_ms[request]),
            rows.item_index[of_request],
            rows.score[of_request],
            rows.rank[of_request],
            vectors,
            contexts[requests.context[request]].tolist(),
            None if source_scores is None else source_scores.take(of_request),
        )
    return answered


def _read_sources(config: ExamplesConfig, directory: Path, n_rows: int) -> SourceScores | None:
    """Return each generator's score and rank of each candidate row, or None if there is only one generator."""
    path = directory / SOURCE_SCORES_FILE
    if not config.sources:
        if path.is_file():
            raise DataError(f"{path} has scores by generator, but sources = []: retrieve followed another recipe")
        return None
    source_scores = SourceScores.read(path, config.sources)
    if len(source_scores) != n_rows:
        raise DataError(f"{path} has {len(source_scores)} rows, the candidates have {n_rows}")
    return source_scores


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


def _check_inputs(rows: CandidateTable, path: Path, requests: RequestTable, vectors: np.ndarray, n_items: int) -> None:
    if not len(rows):
        raise EmptyDatasetError(f"{path} holds no candidates, at least one row is needed")
    if vectors.ndim != 2 or len(vectors) != n_items:
        raise DataError(f"item_vectors.npy has shape {list(vectors.shape)}, the snapshot has {n_items} items")
    if (np.diff(rows.request_id) < 0).any():
        raise DataError(f"{path} must be sorted by request_id")
    if not np.array_equal(requests.request_id, np.arange(len(requests))):
        raise DataError("requests.parquet: request_id must equal the row number")
    for name, values, limit in (
        ("request_id", rows.request_id, len(requests)),
        ("item_index", rows.item_index, n_items),
    ):
        if values.min() < 0 or values.max() >= limit:
            raise DataError(f"{path}: {name} spans {values.min()} to {values.max()}, allowed are 0 to {limit - 1}")
