"""Quality against window length: does a recommender get better from older data?

The recommender is item-to-item cosine (Sarwar et al., "Item-based Collaborative Filtering
Recommendation Algorithms", WWW 2001): cheap enough to be fitted once a window, and close enough to
the candidate generator to say whether older events carry anything. It answers requests of the
ranker part; the held-out part is never looked at, for people set thresholds by this report.

Shapes: E events, Q requests, N items, U users, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS, PART_CANDIDATE, PART_RANKER, EventTable, RankedTable
from stages.evaluation.bootstrap import Gain, paired_bootstrap
from stages.evaluation.metrics import HeldOut, judge, ndcg_at
from stages.sufficiency.config import ReportConfig

_BLOCK = 256
_SEED = 0


@dataclass(frozen=True)
class WindowQuality:
    """What the latest days of the candidate part are worth.

    Attributes:
        days: length of the window before the ranker part.
        events: distinct user-item pairs that it holds, of the users that were looked at.
        ndcg: mean NDCG@k over the requests.
        loss: of the best window's mean over this one, with its interval; None for the best one.
    """

    days: float
    events: int
    ndcg: float
    loss: Gain | None


@dataclass(frozen=True)
class QualityCurve:
    """The windows by length, shortest first.

    Attributes:
        windows: W of them; empty where there is too little to measure.
        requests: Q.
        enough_days: the shortest window of those from the best one downwards that do not clearly
            differ from it, or None.
        why_not: what is missing where there are no windows.
    """

    windows: tuple[WindowQuality, ...]
    requests: int
    enough_days: float | None
    why_not: str = ""


def quality_by_window(config: ReportConfig, snapshot: Snapshot) -> QualityCurve:
    """Measure the curve on a snapshot whose parts are stretches of time.

    Args:
        config: windows, sizes and cut-off.
        snapshot: its candidate part teaches, its ranker part asks.
    """
    if snapshot.meta.split != "time":
        return QualityCurve((), 0, None, f"parts dealt by {snapshot.meta.split} follow no order in time")
    borders, n_items = snapshot.meta.borders, len(snapshot.items())
    events = snapshot.events()
    past = events.take((events.part == PART_CANDIDATE) & events.active)
    requests = snapshot.requests()
    asked = np.flatnonzero(requests.part == PART_RANKER)
    asked = asked[np.isin(requests.user_index[asked], past.user_index)]
    asked = asked[np.linspace(0, len(asked) - 1, min(config.max_requests, len(asked))).round().astype(np.int64)]
    if len(asked) < 20 or not len(past):
        found = f"{len(asked)} requests of the ranker part come from users of the candidate part"
        return QualityCurve((), len(asked), None, f"{found}, at least 20 are needed")
    users = requests.user_index[asked]
    past = past.take(_sampled(past.user_index, users, config.max_users))
    held = HeldOut.make(requests.request_id[asked], snapshot.targets(), n_items)
    end = borders.candidate_end_ms
    longest = (end - int(past.event_time_ms.min())) / DAY_MS
    lengths = [longest / 2**number for number in range(config.halvings, -1, -1)]
    measured = []
    for days in lengths:
        window = past.take(past.event_time_ms >= end - days * DAY_MS)
        seen = _matrix(window, n_items)
        ranked = _answers(config, seen, _seen_of(past, users, n_items), requests.request_id[asked], users)
        measured.append((days, seen.nnz, ndcg_at(judge(ranked, held), config.k)))
    best = int(np.argmax([values.mean() for _, _, values in measured]))
    windows = []
    for place, (days, size, values) in enumerate(measured):
        loss = None
        if place != best:
            loss = paired_bootstrap(values, measured[best][2], users, config.bootstrap_samples, _SEED)
        windows.append(WindowQuality(days, size, float(values.mean()), loss))
    # From the best one down to the first that is clearly worse: beyond it a shorter one that is not
    # would owe that to its few requests.
    enough = best
    while enough > 0 and not _is_worse(windows[enough - 1]):
        enough -= 1
    return QualityCurve(tuple(windows), len(asked), windows[enough].days)


def _is_worse(window: WindowQuality) -> bool:
    return window.loss is not None and window.loss.verdict == "gains"


def _sampled(user_index: np.ndarray, always: np.ndarray, limit: int) -> np.ndarray:
    """Return which events stay: those of the users who ask, and of others up to a limit, evenly by index."""
    users = np.unique(user_index)
    if len(users) <= limit:
        return np.ones(len(user_index), dtype=bool)
    chosen = users[np.linspace(0, len(users) - 1, limit).astype(np.int64)]
    return np.isin(user_index, np.union1d(chosen, always))


def _matrix(events: EventTable, n_items: int) -> sparse.csr_array:
    """Return float32 ``[U, N]``, 1 where a user touched an item."""
    rows, columns = np.divmod(np.unique(events.user_index * n_items + events.item_index), n_items)
    shape = (int(events.user_index.max(initial=-1)) + 1, n_items)
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def _seen_of(past: EventTable, users: np.ndarray, n_items: int) -> sparse.csr_array:
    """Return ``[Q, N]``: what must not be recommended, whichever window teaches."""
    return _rows(_matrix(past, n_items), users)


def _rows(matrix: sparse.csr_array, users: np.ndarray) -> sparse.csr_array:
    """Return the rows of users, empty ones for users that the matrix does not reach."""
    known = users < matrix.shape[0]
    picked = matrix[np.where(known, users, 0)] if matrix.shape[0] else sparse.csr_array((len(users), matrix.shape[1]))
    return sparse.csr_array(sparse.diags_array(known.astype(np.float32)) @ picked)


def _answers(
    config: ReportConfig, touched: sparse.csr_array, seen: sparse.csr_array, request_id: np.ndarray, users: np.ndarray
) -> RankedTable:
    """Return the k best items of each request; ties and strangers get the window's popular ones."""
    popularity = np.asarray(touched.sum(axis=0)).ravel()
    scale = 1.0 / np.sqrt(np.maximum(popularity, 1.0))
    normed = touched @ sparse.diags_array(scale.astype(np.float32))
    similar = sparse.csr_array(normed.T @ normed)
    similar.setdiag(0)
    similar = _strongest(similar, config.neighbours)
    histories = _rows(touched, users)
    tie_break = 1e-6 * popularity / max(popularity.max(initial=0), 1.0)
    items, scores = [], []
    for start in range(0, len(users), _BLOCK):
        block = slice(start, start + _BLOCK)
        values = (histories[block] @ similar).toarray() + tie_break
        values[seen[block].nonzero()] = -np.inf
        top = np.argsort(-values, axis=1, kind="stable")[:, : config.k]
        items.append(top)
        scores.append(np.take_along_axis(values, top, axis=1))
    found, value = np.concatenate(items), np.concatenate(scores).astype(np.float32)
    keep = np.isfinite(value)
    rank = np.broadcast_to(np.arange(found.shape[1], dtype=np.int32), found.shape)
    return RankedTable(
        request_id=np.repeat(request_id, found.shape[1])[keep.ravel()],
        item_index=found[keep].astype(np.int64),
        score=value[keep],
        rank=rank[keep],
    )


def _strongest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """Keep the k largest entries of each row."""
    matrix.eliminate_zeros()
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = order[place < k]
    return sparse.csr_array((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)
