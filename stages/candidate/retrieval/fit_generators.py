"""The step ``train_sources``: fits the candidate generators in use, and settles the quota of each.

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from scipy import sparse

from stages.candidate.data.examples import Examples, touch_matrix, training_examples
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import TrainSourcesConfig
from stages.candidate.generators.files import SOURCES_DIRECTORY, SourcesSummary, write_arrays, write_summary
from stages.candidate.generators.generator import FitData
from stages.candidate.generators.quotas import ListedBlock, ListedItems, learn_quotas
from stages.candidate.generators.table import TOWER, generator_class
from stages.candidate.retrieval.retriever import Answers, Retriever, check_features, empty_state
from stages.candidate.scorer import CandidateScorer
from stages.contracts.errors import EmptyDatasetError
from stages.contracts.item_lists import ItemLists
from stages.contracts.progress import progress_of
from stages.contracts.ragged import ranges, row_offsets
from stages.contracts.snapshot import NEVER_AVAILABLE_MS, Snapshot, Targets
from stages.contracts.steps import Outcome
from stages.contracts.tables import PART_RANKER, RequestTable

_BLOCK = 512


def train_sources(config: TrainSourcesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Fit the generators in use, and settle their quotas.

    They are fitted to the candidate period, like the towers. Quotas are learned, where the recipe asks for it, from
    requests of the ranker period. Nothing of the evaluation period is read.

    Args:
        config: which generators, and their settings.
        inputs: ``snapshot``, ``candidate`` and ``index``.
        directory: receives ``sources/``; with the two-tower index alone it holds ``sources.json`` only.

    Returns:
        Quotas as shares of ``candidate_k``. Where they are learned, also the recall of each generator, and of all with
        these quotas, at the requests that were read.

    Raises:
        ConfigError: if a generator cannot be fitted within its limits, or the tower has other history features.
        EmptyDatasetError: if quotas are to be learned and no request of the ranker period has history and targets.
    """
    target = directory / SOURCES_DIRECTORY
    target.mkdir()
    snapshot = Snapshot(inputs["snapshot"])
    scorer = CandidateScorer.load(inputs["candidate"], inputs["index"])
    learned = config.sources.quotas == "learned" and config.sources.blends
    names: tuple[str, ...] = config.sources.names
    # Lists do not depend on quotas, so quotas are 0 until they are learned.
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
    """Fit every generator beside the index and write its arrays; return the files' sha256."""
    items = snapshot.items()

    @cache
    def examples() -> Examples:
        return training_examples(snapshot.events(), snapshot.meta, config.features)

    @cache
    def touches() -> sparse.csr_matrix:
        return touch_matrix(examples(), len(items))

    def sequences() -> tuple[np.ndarray, np.ndarray]:
        return examples().users.astype(np.int64), examples().items.astype(np.int64)

    data = FitData(snapshot, config.features, items, items.recommendable(), touches, sequences)
    hashes: dict[str, str] = {}
    for name in config.sources.names:
        if name != TOWER:
            kind = generator_class(name)
            hashes |= write_arrays(target, kind, kind.fit(config.sources, data))
    return hashes


def listed_items(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, directory: Path
) -> ListedItems:
    """Return every generator's list of ``candidate_k`` items for requests of the ranker period.

    Requests without history are left out, since the popular list answers them.

    Args:
        config: see ``TrainSourcesConfig``.
        snapshot: of the run.
        scorer: the two-tower index.
        directory: holds the generators' files.

    Raises:
        ConfigError: if the tower was trained with other history features.
        EmptyDatasetError: if no request is left.
    """
    check_features(config.features, scorer)
    targets = snapshot.targets()
    wanted = _sample(snapshot.requests(), targets, config)
    starts = np.searchsorted(targets.request_id, np.arange(len(snapshot.requests()) + 1))
    blend = Blend.load(directory, scorer.n_items)
    listed = ListedItems.of_blocks(
        config.sources.names,
        scorer.n_items,
        (_with_targets(answers, targets, starts) for answers in _answers(config, snapshot, scorer, blend, wanted)),
    )
    if not listed.n_requests:
        raise EmptyDatasetError(
            f"sources.quotas = 'learned': none of {len(wanted)} requests of the ranker part has a history"
        )
    return listed


def _with_targets(answers: Answers, targets: Targets, starts: np.ndarray) -> ListedBlock:
    """Return the lists and the targets of the requests that have a history."""
    known = np.flatnonzero(~answers.popular)
    rows = answers.rows[known]
    counts = starts[rows + 1] - starts[rows]
    lists = {
        name: ItemLists(row_offsets(each.lengths[known]), each.ids, each.scores) for name, each in answers.lists.items()
    }
    return ListedBlock(lists, row_offsets(counts), targets.item_index[ranges(starts[rows], counts)])


def _answers(
    config: TrainSourcesConfig, snapshot: Snapshot, scorer: CandidateScorer, blend: Blend | None, wanted: np.ndarray
) -> Iterator[Answers]:
    """Yield the answers to the wanted requests; what comes after the last of them is not replayed."""
    requests, events = snapshot.requests(), snapshot.events()
    chosen = np.zeros(len(requests), dtype=bool)
    chosen[wanted] = True
    last_ms = int(requests.request_time_ms[wanted].max(initial=-NEVER_AVAILABLE_MS))
    events = events.take(np.arange(np.searchsorted(events.event_time_ms, last_ms, side="left")))
    retriever = Retriever(scorer, empty_state(snapshot, config.features, blend), snapshot, config.candidate_k, blend)
    with progress_of("quotas", len(wanted), "request") as advance:
        for answers in retriever.answers(events, _BLOCK, chosen):
            yield answers
            advance(len(answers.rows))


def _sample(requests: RequestTable, targets: Targets, config: TrainSourcesConfig) -> np.ndarray:
    """Return int64 rows of requests of the ranker period with targets, at most ``max_requests`` of them."""
    rows = np.flatnonzero((requests.part == PART_RANKER) & np.isin(requests.request_id, targets.request_id))
    limit = config.sources.learning.max_requests
    if len(rows) > limit:
        rows = np.random.default_rng(config.sources.learning.seed).choice(rows, limit, replace=False)
    return rows
