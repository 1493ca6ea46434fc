"""Learns a mixture, compares it with quotas and with each generator, and writes it where it gains.

The earlier requests teach; the latest ``validation_share`` end the training and decide.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.candidate.generators.config import TrainSourcesConfig
from stages.candidate.generators.files import MIXTURE_FILE, MixtureSummary, SourcesSummary
from stages.candidate.generators.mixing import mixed_lists
from stages.candidate.generators.mixture import Mixture
from stages.candidate.generators.pools import mixture_features
from stages.candidate.generators.quotas import learn_quotas
from stages.candidate.retrieval.listed_requests import ListedRequests
from stages.candidate.retrieval.mixture_choice import Choice, Measured, choose
from stages.candidate.retrieval.train_mixture import Trained, train_mixture, write_mixture
from stages.contracts.files import sha256_file

_QUOTAS, _MIXTURE = "quotas", "mixture"
log = logging.getLogger("sluice")


def fit_mixture(
    config: TrainSourcesConfig, summary: SourcesSummary, requests: ListedRequests, target: Path
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """Learn a mixture from requests of the ranker period, and decide whether it is used.

    Args:
        config: of the step.
        summary: what ``sources.json`` holds so far; its quotas are those of the recipe where they are not learned.
        requests: in the order of time.
        target: receives ``mixture.onnx`` where the mixture is used.

    Returns:
        What changes in ``sources.json``: nothing where quotas go on mixing the lists. Metrics: ``mixture_used`` (1 or
        0), and on the validation requests recall and NDCG of the mixture, of quotas and of each generator. And for the
        step's outcome whether it is used, and why.

    Raises:
        ConfigError: if a batch will not fit the memory.
        DataError: if training diverges, or the exported network has other scores.
    """
    settings, k = config.sources.mixture, config.candidate_k
    n_train = len(requests) - int(np.ceil(settings.validation_share * len(requests)))
    train, validation = requests.take(np.arange(n_train)), requests.take(np.arange(n_train, len(requests)))
    trained = train_mixture(train, validation, settings) if n_train else None
    metrics = {"mixture_train_requests": float(len(train)), "mixture_validation_requests": float(len(validation))}
    changes: dict[str, Any] = {}
    if trained is None:
        choice = Choice(False, f"{len(train)} earlier and {len(validation)} later requests have no target in a list")
    else:
        path = target / MIXTURE_FILE
        mixture, deviation = write_mixture(trained, validation, path, settings.length(k))
        measured = {
            _MIXTURE: _mixed(mixture, validation, k),
            _QUOTAS: _by_quotas(config, summary, train, validation),
            **_alone(validation, k),
        }
        choice = choose(measured[_MIXTURE], {name: measured[name] for name in measured if name != _MIXTURE}, k)
        metrics |= _metrics(measured, trained)
        if choice.is_used:
            described = MixtureSummary(features=mixture_features(summary.names), pool=mixture.pool, deviation=deviation)
            changes = {"mixture": described, "files": {**summary.files, MIXTURE_FILE: sha256_file(path)}}
        else:
            path.unlink()
    log.info("[sluice] the learned mixture is %s: %s", "used" if choice.is_used else "not used", choice.reason)
    info = {"used": choice.is_used, "reason": choice.reason}
    return changes, {"mixture_used": float(choice.is_used), **metrics}, info


def _mixed(mixture: Mixture, requests: ListedRequests, k: int) -> Measured:
    return Measured.of(requests, mixture.mixed(requests.listed.lists, requests.history_lengths, k).items, k)


def _by_quotas(
    config: TrainSourcesConfig, summary: SourcesSummary, train: ListedRequests, validation: ListedRequests
) -> Measured:
    """Measure the recipe's quotas; where they are learned, those that the earlier requests teach."""
    k, quotas = config.candidate_k, summary.quotas
    if summary.learned:
        quotas = learn_quotas(train.items(k), k, config.quota_block)
    lists = {name: each.first(k) for name, each in validation.listed.lists.items()}
    return Measured.of(validation, mixed_lists(lists, quotas, k, validation.n_items).items, k)


def _alone(requests: ListedRequests, k: int) -> dict[str, Measured]:
    return {name: Measured.of(requests, lists, k) for name, lists in requests.listed.lists.items()}


def _metrics(measured: Mapping[str, Measured], trained: Trained) -> dict[str, float]:
    found = {"mixture_epochs": float(trained.epochs), "mixture_loss": trained.loss}
    for name, each in measured.items():
        found |= {f"validation_recall_{name}": float(each.recall.mean())}
        found |= {f"validation_ndcg_{name}": float(each.ndcg.mean())}
    return found
