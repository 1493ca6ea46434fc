"""How a closed form over items is solved, densely or sparsely, and its scores in either case."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse

from stages.candidate.linear.config import ClosedForm
from stages.contracts.errors import ConfigError, DataError

log = logging.getLogger("sluice")


class Method(NamedTuple):
    """How a closed form is solved.

    Attributes:
        name: ``dense`` or ``sparse``.
        gigabytes: 10^9 bytes that it takes at most.
        how: the method in words.
    """

    name: Literal["dense", "sparse"]
    gigabytes: float
    how: str


def method_of(settings: ClosedForm, dense_gb: float, sparse_gb: float, memory_gb: float) -> Method:
    """Return the method that is asked for; with ``auto`` the dense one where it fits, else the sparse one.

    Args:
        settings: of the closed form.
        dense_gb: 10^9 bytes that the dense one takes.
        sparse_gb: those that the sparse one takes.
        memory_gb: what it may take.
    """
    if settings.method == "dense" or (settings.method == "auto" and dense_gb <= memory_gb):
        return Method("dense", dense_gb, "with dense item-item matrices")
    return Method("sparse", sparse_gb, f"on the {settings.neighbours} nearest items of each")


def require(what: str, items: int, method: Method, memory_gb: float) -> None:
    """Refuse a method that needs too much memory; else say in the log which it is.

    Args:
        what: the model, for messages.
        items: N.
        method: of ``method_of``.
        memory_gb: what it may take.

    Raises:
        ConfigError: if it needs more.
    """
    if method.gigabytes > memory_gb:
        less = "take fewer neighbours" if method.name == "sparse" else "take method = sparse"
        raise ConfigError(
            f"{what}: {items:,} items need {method.gigabytes:.3g} GB {method.how}, memory_gb = {memory_gb:g}: allow "
            f"more, {less}, select fewer items, or use implicit ALS"
        )
    log.info("[sluice] %s: %s items %s, at most %.3g GB", what, f"{items:,}", method.how, method.gigabytes)


def scores_of(history_BN: sparse.csr_matrix, weights_NN: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Return float32 scores ``[B, N]`` of the catalogue by weights from items to items.

    Raises:
        DataError: if the histories are over another number of items.
    """
    if history_BN.shape[1] != weights_NN.shape[0]:
        raise DataError(f"histories are over {history_BN.shape[1]} items, the model has {weights_NN.shape[0]}")
    found = history_BN.astype(np.float32) @ weights_NN
    scores_BN: np.ndarray = found.toarray() if sparse.issparse(found) else found
    return scores_BN
