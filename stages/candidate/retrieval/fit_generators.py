"""The step ``train_sources``: fits the candidate generators in use, and settles how their lists are mixed.

Shapes: N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stages.candidate.data.examples import Examples, touch_matrix, training_examples
from stages.candidate.generators.blend import Blend
from stages.candidate.generators.config import TrainSourcesConfig
from stages.candidate.generators.files import SOURCES_DIRECTORY, SourcesSummary, write_arrays, write_summary
from stages.candidate.generators.generator import FitData
from stages.candidate.generators.quotas import learn_quotas
from stages.candidate.generators.table import TOWER, generator_class
from stages.candidate.retrieval.choose_newcomers import choose_newcomers
from stages.candidate.retrieval.earlier_learning import take_over
from stages.candidate.retrieval.listed_requests import ListedRequests, listed_requests
from stages.candidate.scorer import CandidateScorer
from stages.contracts.snapshot import Snapshot
from stages.contracts.steps import Outcome
from stages.features.config import FeatureConfig


def train_sources(config: TrainSourcesConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Fit the generators in use, settle their quotas or learn their mixture, and choose the list for newcomers.

    They are fitted to the candidate period, like the towers. Quotas and a mixture are learned, where the recipe asks
    for it, from requests of the ranker period, or taken over from an earlier run. Nothing of the evaluation period is
    read.

    Args:
        config: which generators, and their settings.
        inputs: ``snapshot``, ``candidate`` and ``index``.
        directory: receives ``sources/``; with the two-tower index alone it holds ``sources.json`` only.

    Returns:
        Quotas as shares of ``candidate_k``. Where they are learned, also the recall of each generator, and of all with
        these quotas, at the requests that were read. For a learned mixture, see ``fit_mixture``. And NDCG@10 of each
        list for users without history, where they were measured.

    Raises:
        ConfigError: if a generator cannot be fitted within its limits, the tower has other history features, what is
            learned from will not fit the memory, or something else was learned at ``sources.learned_from``.
        EmptyDatasetError: if quotas or a mixture are to be learned and no request of the ranker period has history
            and targets.
    """
    target = directory / SOURCES_DIRECTORY
    target.mkdir()
    snapshot = Snapshot(inputs["snapshot"])
    scorer = CandidateScorer.load(inputs["candidate"], inputs["index"])
    learns_quotas = config.sources.quotas == "learned" and config.sources.blends
    learns_mixture = config.sources.mixture.kind == "learned"
    names: tuple[str, ...] = config.sources.names
    # Lists do not depend on quotas, so quotas are 0 until they are learned.
    quotas = dict.fromkeys(names, 0) if learns_quotas else _configured(config)
    summary = SourcesSummary(
        names=names,
        quotas=quotas,
        learned=learns_quotas,
        candidate_k=config.candidate_k,
        n_items=scorer.n_items,
        tower_version=scorer.tower_version,
        data_fingerprint=snapshot.meta.fingerprint,
        config=config.sources,
        files=_write_files(config, snapshot, target),
    )
    write_summary(target, summary)
    newcomers = choose_newcomers(config, snapshot, Blend.load(target, scorer.n_items))
    summary = summary.model_copy(update={"newcomers": newcomers})
    write_summary(target, summary)
    metrics: dict[str, float] = {}
    info: dict[str, Any] = {"learned": learns_quotas, "newcomers": newcomers.name}
    if config.sources.learned_from is not None:
        summary = summary.model_copy(update=take_over(config, summary, target))
        quotas, info["learned_from"] = summary.quotas, config.sources.learned_from
        metrics = {"mixture_used": float(summary.mixture is not None)} if learns_mixture else {}
        write_summary(target, summary)
    elif learns_quotas or learns_mixture:
        requests = listed_requests(config, snapshot, scorer, target)
        if learns_mixture:
            from stages.candidate.retrieval.fit_mixture import fit_mixture  # with torch, which quotas do not need

            changes, metrics, info["mixture"] = fit_mixture(config, summary, requests, target)
            summary = summary.model_copy(update=changes)
        if learns_quotas:
            quotas, learned = _learn(config, requests)
            summary, metrics = summary.model_copy(update={"quotas": quotas}), learned | metrics
        write_summary(target, summary)
    shares = {f"quota_{name}": quota / config.candidate_k for name, quota in quotas.items()}
    metrics |= {f"newcomers_ndcg_{name}": value for name, value in newcomers.measured.items()}
    return shares | metrics, {"quotas": quotas, **info}


def _learn(config: TrainSourcesConfig, requests: ListedRequests) -> tuple[dict[str, int], dict[str, float]]:
    """Return quotas, and the recall of all generators with them and of each alone."""
    listed = requests.items(config.candidate_k)
    quotas = learn_quotas(listed, config.candidate_k, config.quota_block)
    metrics = {"learned_recall": float(listed.recalls(quotas, config.candidate_k).mean())}
    metrics |= {f"recall_{name}": listed.alone(name, config.candidate_k) for name in listed.names}
    return quotas, metrics


def _configured(config: TrainSourcesConfig) -> dict[str, int]:
    if not config.sources.blends:
        return {TOWER: config.candidate_k}
    return config.sources.counts(config.candidate_k)


def _write_files(config: TrainSourcesConfig, snapshot: Snapshot, target: Path) -> dict[str, str]:
    """Fit every generator beside the index and write its arrays; return the files' sha256."""
    data = fit_data(config.features, snapshot)
    hashes: dict[str, str] = {}
    for name in config.sources.names:
        if name != TOWER:
            kind = generator_class(name)
            hashes |= write_arrays(target, kind, kind.fit(config.sources, data))
    return hashes


def fit_data(features: FeatureConfig, snapshot: Snapshot) -> FitData:
    """Return what generators are fitted to; the touches are made once, at the first call.

    Args:
        features: which signals are exposures.
        snapshot: of the run.
    """
    items = snapshot.items()

    @cache
    def examples() -> Examples:
        return training_examples(snapshot.events(), snapshot.meta, features)

    @cache
    def touches() -> sparse.csr_matrix:
        return touch_matrix(examples(), len(items))

    def sequences() -> tuple[np.ndarray, np.ndarray]:
        return examples().users.astype(np.int64), examples().items.astype(np.int64)

    return FitData(snapshot, features, items, items.recommendable(), touches, sequences)
