"""The step ``train_sources``: neighbours of items for the sources that need them, and the quota of each source.

Shapes: N items.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.candidate.data.examples import touch_matrix, training_examples
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import TOWER, TrainSourcesConfig
from stages.candidate.generators.files import SOURCES_DIRECTORY, SourcesSummary, write_neighbours, write_summary
from stages.candidate.generators.neighbour_lists import content_neighbours, fitted_neighbours
from stages.candidate.generators.quotas import ListedItems, learn_quotas
from stages.candidate.retrieval.retriever import Block, Retriever, check_features, empty_state
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.snapshot import Snapshot, Targets
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_RANKER, RequestTable, ScoredItems
from stages.features.replay import replay

_BLOCK = 512


def train_sources(config: TrainSourcesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Fit what the sources in use need, and settle their quotas.

    EASE and implicit ALS see touches of the candidate part, like the towers. Quotas are learned, where asked for, from
    requests of the ranker part; nothing of the evaluation part is looked at.

    Args:
        config: which sources, and their settings.
        inputs: ``snapshot``, ``candidate`` and ``index``.
        directory: receives ``sources/``; with the two-tower index alone it holds ``sources.json`` only.

    Returns:
        Quotas as shares of ``candidate_k``; where they are learned, recall of the requests looked at.

    Raises:
        ConfigError: if a source cannot be fitted within its limits, or the tower has other history features.
        EmptyDatasetError: if quotas are to be learned and no request of the ranker part has history and targets.
    """
    target = directory / SOURCES_DIRECTORY
    target.mkdir()
    snapshot = Snapshot(inputs["snapshot"])
    scorer = CandidateScorer.load(inputs["candidate"], inputs["index"])
    learned = config.sources.quotas == "learned" and config.sources.blends
    names: tuple[str, ...] = config.sources.names
    # Lists do not depend on quotas: until these are learned, none are good enough.
    quotas = dict.fromkeys(names, 0) if learned else _configured(config)
    summary = SourcesSummary(
        names=names,
        quotas=quotas,
        learned=learned,
        candidate_k=config.candidate_k,
        n_items=scorer.n_items,
        tower_version=scorer.tower_version,
        data_fingerprint=snapshot.meta.fingerprint,
        config=config.sources,
        files=_write_files(config, snapshot, target),
    )
    write_summary(target, summary)
    metrics: dict[str, float] = {}
    if learned:
        listed = listed_items(config, snapshot, scorer, target)
        block = max(1, round(config.sources.learning.block_share * config.candidate_k))
        quotas = learn_quotas(listed, config.candidate_k, block)
        write_summary(target, summary.model_copy(update={"quotas": quotas}))
        metrics = {"learned_recall": float(listed.recalls(quotas, config.candidate_k).mean())}
        metrics |= {f"recall_{name}": listed.alone(name, config.candidate_k) for name in names}
    shares = {f"quota_{name}": quota / config.candidate_k for name, quota in quotas.items()}
    return shares | metrics, {"quotas": quotas, "learned": learned}


def _configured(config: TrainSourcesConfig) -> dict[str, int]:
    if not config.sources.blends:
        return {TOWER: config.candidate_k}
    return config.sources.counts(config.candidate_k)


def _write_files(config: TrainSourcesConfig, snapshot: Snapshot, target: Path) -> dict[str, str]:
    """Fit and write the neighbours of every source that has some; return the files' sha256."""
    sources, items = config.sources, snapshot.items()
    allowed = items.recommendable()
    hashes: dict[str, str] = {}
    fitted = [name for name in sources.names if name in ("ease", "ials")]
    if fitted:
        history_UN = touch_matrix(training_examples(snapshot.events(), snapshot.meta, config.features), len(items))
        for name in fitted:
            hashes |= write_neighbours(target, name, fitted_neighbours(name, history_UN, sources, allowed))
    if "content" in sources.names:
        hashes |= write_neighbours(target, "content", content_neighbours(items, sources.neighbours, allowed))
    return hashes


def listed_items(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, directory: Path
) -> ListedItems:
    """Ask every source for lists of ``candidate_k`` at requests of the ranker part.

    Requests without history are left out: the popular list answers them.

    Args:
        config: see ``TrainSourcesConfig``.
        snapshot: of the run.
        scorer: the two-tower index.
        directory: holds the sources' files.

    Raises:
        ConfigError: if the tower was trained with other history features.
        EmptyDatasetError: if no request is left.
    """
    check_features(config.features, scorer)
    targets = snapshot.targets()
    wanted = _sample(snapshot.requests(), targets, config)
    answered = _lists(config, snapshot, scorer, Blend.load(directory, scorer.n_items), wanted)
    starts = np.searchsorted(targets.request_id, np.arange(len(snapshot.requests()) + 1))
    pairs = ((lists, targets.item_index[starts[row] : starts[row + 1]]) for row, lists in answered)
    listed = ListedItems.of(config.sources.names, pairs)
    if not listed.n_requests:
        raise EmptyDatasetError(
            f"sources.quotas = 'learned': none of {len(wanted)} requests of the ranker part has a history"
        )
    return listed


def _lists(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, blend: Blend | None, wanted: np.ndarray
) -> Iterator[tuple[int, dict[str, ScoredItems]]]:
    """Yield each wanted request that has a history with the lists of all sources, from the state of its moment."""
    state = empty_state(snapshot, config.features, blend)
    answering = Retriever(scorer, state, snapshot, config.features, config.candidate_k, blend)
    moments = replay(snapshot.events(), snapshot.requests(), state, snapshot.contexts() if state.context else None)
    left, block = set(wanted.tolist()), Block()
    for row in tqdm(moments, "quotas", mininterval=1, file=sys.stderr):
        if row in left:
            left.discard(row)
            answering.read(row, block)
        if len(block.rows) == _BLOCK or (block.rows and not left):
            answering.answer(block)
            yield from block.lists.items()
            block = Block()
        if not left:
            return


def _sample(requests: RequestTable, targets: Targets, config: TrainSourcesConfig) -> np.ndarray:
    """Return int64 rows of requests of the ranker part with targets, at most ``max_requests`` of them."""
    rows = np.flatnonzero((requests.part == PART_RANKER) & np.isin(requests.request_id, targets.request_id))
    limit = config.sources.learning.max_requests
    if len(rows) > limit:
        rows = np.random.default_rng(config.sources.learning.seed).choice(rows, limit, replace=False)
    return rows
