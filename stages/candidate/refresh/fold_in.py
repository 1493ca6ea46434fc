"""Vectors of items that came after the training, from their first touches: nothing is trained.

The released user tower gives the query of each touch. How queries and content make an item's vector is learnt from the
items of the training, whose vectors are known: a ridge regression for each number of touches 1, 2, 4, ..., so that few
touches count for less than many. It is the mapping of Gantner et al., "Learning attribute-to-feature mappings for
cold-start recommendations" (ICDM 2010), with the touching users beside the attributes as in DropoutNet (Volkovs et
al., NIPS 2017).

Shapes: D dimensions, M items of the snapshot, T touches, E chosen touches, K items that are learnt from, F inputs of
the regression.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.candidate.config.steps import FEWEST_KNOWN, FoldInConfig
from stages.candidate.data.examples import Examples, first_touches
from stages.candidate.onnx_towers import UserTower, ranker_query
from stages.contracts.progress import progress_of
from stages.contracts.ragged import places_in_rows
from stages.contracts.snapshot import Snapshot
from stages.features.history import event_relevance

_BLOCK = 4096
_PENALTIES = 10.0 ** np.arange(-4, 3)
"""Ridge penalties to choose from, in units of the inputs' mean variance; by leave-one-out error."""


def snapshot_touches(snapshot: Snapshot, with_contexts: bool) -> Examples:
    """Return the first touches of active users in all periods of a snapshot.

    Args:
        snapshot: to read.
        with_contexts: whether the tower reads the contexts.
    """
    meta, events = snapshot.meta, snapshot.events()
    touched = events.take(events.active & meta.touching[events.signal])
    relevance = event_relevance(touched.signal, touched.value, meta.signals, meta.tasks)
    return first_touches(touched, relevance, snapshot.contexts() if with_contexts else None)


def fold_in(
    touches: Examples,
    tower: UserTower,
    vectors_MD: np.ndarray,
    content_MD: np.ndarray,
    is_known_M: np.ndarray,
    length: int,
    config: FoldInConfig,
) -> dict[str, float]:
    """Overwrite the vectors of touched items that training did not know.

    At most ``config.touches`` touches of these and of ``config.known_items`` known items go through the user tower.
    A number of touches whose regression is not nearer to the known items' vectors, each left out in turn, than their
    content is, counts as the next smaller one.

    Args:
        touches: of the snapshot.
        tower: of the release, with the snapshot's items.
        vectors_MD: float32, changed in place.
        content_MD: float32, the vectors that the item tower gives where it does not know the items' ids.
        is_known_M: bool, items that were trained.
        length: L, items read of a history.
        config: how many touches and items.

    Returns:
        ``folded_items``; and, where there are any, mean cosines to the vectors of known items, each left out in turn,
        of what the largest number of touches gives (``fold_in_cosine``) and of their content (``content_cosine``).
    """
    rows = _chosen(touches, is_known_M, config)
    items = touches.items[rows]
    found, first, counts = np.unique(items, return_index=True, return_counts=True)
    is_known = is_known_M[found]
    if not (~is_known).any() or is_known.sum() < FEWEST_KNOWN:
        return {"folded_items": 0.0}
    query_ED = np.concatenate(list(_queries(touches, tower, rows, length, len(vectors_MD))))
    is_unit = np.abs(np.linalg.norm(vectors_MD[found[is_known]], axis=1) - 1.0).max() < 1e-3
    report: dict[str, float] = {}
    places, n_folded = places_in_rows(counts), 0
    still = ~is_known
    for n in sorted(_numbers(config.touches), reverse=True):
        known, new = np.flatnonzero(is_known & (counts >= n)), np.flatnonzero(still & (counts >= n))
        if len(known) < FEWEST_KNOWN or not len(new):
            continue
        sums = np.add.reduceat(np.where((places < n)[:, None], query_ED, 0.0), first, axis=0)
        inputs = np.concatenate([sums / n, content_MD[found]], axis=1).astype(np.float64)
        wanted = vectors_MD[found[known]].astype(np.float64)
        left_out, weights, offset = ridge(inputs[known], wanted)
        fold, content = _cosine(left_out, wanted), _cosine(inputs[known][:, query_ED.shape[1] :], wanted)
        if fold <= content:
            continue
        report = report or {"fold_in_cosine": fold, "content_cosine": content}
        vectors = inputs[new] @ weights + offset
        if is_unit:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        vectors_MD[found[new]] = vectors
        still[new] = False
        n_folded += len(new)
    return {"folded_items": float(n_folded), **report}


def ridge(inputs_KF: np.ndarray, wanted_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a ridge regression whose penalty has the least leave-one-out error.

    Returns:
        The predictions ``[K, D]`` of each row by the other rows, weights ``[F, D]`` and offset ``[D]``.
    """
    mean_F, mean_D = inputs_KF.mean(axis=0), wanted_KD.mean(axis=0)
    left, sizes, right = np.linalg.svd(inputs_KF - mean_F, full_matrices=False)
    targets = left.T @ (wanted_KD - mean_D)

    def fitted(penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
        shrunk = sizes**2 / (sizes**2 + penalty)
        left_K = np.maximum(1e-6, 1.0 - 1.0 / len(inputs_KF) - left**2 @ shrunk)
        error_KD = (wanted_KD - mean_D - left @ (shrunk[:, None] * targets)) / left_K[:, None]
        weights_FD = right.T @ ((sizes / (sizes**2 + penalty))[:, None] * targets)
        return float((error_KD**2).mean()), wanted_KD - error_KD, weights_FD

    penalties = _PENALTIES * max(float((sizes**2).mean()), 1e-12)
    _, left_out_KD, weights_FD = min(map(fitted, penalties), key=lambda found: found[0])
    return left_out_KD, weights_FD, mean_D - mean_F @ weights_FD


def _numbers(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to ``most``."""
    return [1 << power for power in range(most.bit_length())]


def _chosen(touches: Examples, is_known_M: np.ndarray, config: FoldInConfig) -> np.ndarray:
    """Return touches with a history, by item and newest first, of unknown items and of a sample of known ones."""
    rows = np.flatnonzero(touches.end > touches.start)
    items = touches.items[rows]
    is_chosen_M = ~is_known_M
    known = np.unique(items[is_known_M[items]])
    rng = np.random.default_rng(config.seed)
    is_chosen_M[rng.choice(known, min(len(known), config.known_items), replace=False)] = True
    rows = rows[is_chosen_M[items]]
    rows = rows[np.lexsort((rows, -touches.times_ms[rows], touches.items[rows]))]
    _, counts = np.unique(touches.items[rows], return_counts=True)
    chosen: np.ndarray = rows[places_in_rows(counts) < config.touches]
    return chosen


def _queries(touches: Examples, tower: UserTower, rows: np.ndarray, length: int, padding: int) -> Iterator[np.ndarray]:
    with progress_of("fold in items", len(rows), "touch") as advance:
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            yield ranker_query(tower.embed(touches.inputs(block, length, padding)))
            advance(len(block))


def _cosine(found_KD: np.ndarray, wanted_KD: np.ndarray) -> float:
    norms = np.linalg.norm(found_KD, axis=1) * np.linalg.norm(wanted_KD, axis=1)
    return float(((found_KD * wanted_KD).sum(axis=1) / np.maximum(norms, 1e-12)).mean())
