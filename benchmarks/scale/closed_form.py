"""What the sparse closed forms cost on made histories: seconds, memory, and the bound that they state.

Legend: U users, N items.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from scipy import sparse

from benchmarks.scale.turns import cost_of, markdown
from benchmarks.scale.watch import largest_process_bytes
from stages.candidate.linear.config import EaseSettings, RidgeSettings
from stages.candidate.linear.directed_ridge import DirectedRidge, ridge_method
from stages.candidate.linear.models import Ease, ease_method

MODELS = ("ease", "directed_ridge")
_ITEMS_A_CLUSTER = 400
_OWN_SHARE = 0.7
_SKEW = 3.0
"""An item's place by popularity is a uniform number to this power, times the number of items."""


def made_histories(users: int, items: int, length: int, seed: int = 0) -> sparse.csr_matrix:
    """Return float64 ``[U, N]`` ones: skewed choices, most of them among the items of the user's own cluster.

    Args:
        users: U.
        items: N.
        length: choices of a user; an item that is chosen twice counts once.
        seed: of the choices.
    """
    rng = np.random.default_rng(seed)
    clusters = max(1, items // _ITEMS_A_CLUSTER)
    cluster_U1 = rng.integers(clusters, size=(users, 1))
    skewed = rng.random((users, length)) ** _SKEW
    own = rng.random((users, length)) < _OWN_SHARE
    within = cluster_U1 + clusters * (skewed * (items // clusters)).astype(np.int64)
    chosen = np.where(own, within, (skewed * items).astype(np.int64))
    key = np.unique(chosen + items * np.arange(users)[:, None])
    return sparse.csr_matrix((np.ones(len(key)), (key // items, key % items)), shape=(users, items))


def measure_closed_form(
    model: str, users: int, items: int, length: int, neighbours: int, memory_gb: float
) -> dict[str, Any]:
    """Fit a closed form on the nearest items of each, and return its sizes, its cost and its memory.

    The peak is that of this process, with what was there before the fit: the libraries, and the histories.

    Args:
        model: one of ``MODELS``.
        users: U.
        items: N.
        length: choices of a user.
        neighbours: nearest items of an item.
        memory_gb: what the fit may take.

    Raises:
        ConfigError: if it needs more.
    """
    history_UN = made_histories(users, items, length)
    before = largest_process_bytes([os.getpid()])
    found: dict[str, Any] = {}

    def fit() -> None:
        if model == "ease":
            given = EaseSettings(method="sparse", neighbours=neighbours)
            found["method"] = ease_method(given, users, items, history_UN.nnz, memory_gb)
            found["model"] = Ease.fit(history_UN, given, memory_gb)
        else:
            found["method"], found["model"] = _fit_ridge(history_UN, neighbours, memory_gb)

    cost = cost_of(fit)
    return {
        "model": model,
        "users": users,
        "items": items,
        "cells": history_UN.nnz,
        "neighbours": neighbours,
        "weights": int(found["model"].weights.nnz),
        "seconds": cost.clock,
        "processor_seconds": cost.processor,
        "said_gb": found["method"].gigabytes,
        "before_gb": before / 1e9,
        "peak_gb": largest_process_bytes([os.getpid()]) / 1e9,
    }


def _fit_ridge(history_UN: sparse.csr_matrix, neighbours: int, memory_gb: float) -> tuple[Any, DirectedRidge]:
    """Fit the directed ridge to histories in a random order of each user's items."""
    users, items = history_UN.shape
    user_R = np.repeat(np.arange(users), np.diff(history_UN.indptr))
    order = np.lexsort((np.random.default_rng(1).random(len(user_R)), user_R))
    item_R = history_UN.indices[order].astype(np.int64)
    given = RidgeSettings(method="sparse", neighbours=neighbours)
    longest = int(np.diff(history_UN.indptr).max())
    method = ridge_method(given, users, items, len(user_R), longest, memory_gb)
    return method, DirectedRidge.fit(user_R, item_R, items, given, memory_gb)


def render_closed_form(found: dict[str, Any]) -> str:
    """Return the figures as a table."""
    counts = ("users", "items", "cells", "neighbours", "weights")
    measured = ("seconds", "processor_seconds", "said_gb", "before_gb", "peak_gb")
    row = [found["model"], *(f"{found[name]:,}" for name in counts), *(f"{found[name]:.3g}" for name in measured)]
    columns = ("model", *counts, "seconds", "of the processor", "GB said", "GB before", "peak GB")
    return markdown(columns, [row])
