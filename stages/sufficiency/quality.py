"""Quality against window length: does a recommender get better from older data?

The recommender is item-to-item cosine (Sarwar et al., "Item-based Collaborative Filtering
Recommendation Algorithms", WWW 2001): cheap enough to be fitted once a window, and close enough to
the candidate generator to say whether older events carry anything. It answers requests of the
ranker part; the held-out part is never looked at, for people set thresholds by this report.

Shapes: Q requests, N items, S users whose events are read, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS
from stages.evaluation.bootstrap import Gain, paired_bootstrap
from stages.evaluation.metrics import HeldOut, judge, ndcg_at
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.neighbours import answers
from stages.sufficiency.sample import Asked, Past, draw_past, draw_requests, known_users

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
    known = known_users(snapshot)
    asked = draw_requests(snapshot, known, config.max_requests)
    if len(asked) < 20:
        found = f"{len(asked)} requests of the ranker part come from users of the candidate part"
        return QualityCurve((), len(asked), None, f"{found}, at least 20 are needed")
    past = draw_past(snapshot, known, asked.user_index, config.max_users)
    measured = _measure(config, snapshot, asked, past)
    best = int(np.argmax([values.mean() for _, _, values in measured]))
    windows = []
    for place, (days, size, values) in enumerate(measured):
        loss = None
        if place != best:
            loss = paired_bootstrap(values, measured[best][2], asked.user_index, config.bootstrap_samples, _SEED)
        windows.append(WindowQuality(days, size, float(values.mean()), loss))
    # From the best one down to the first that is clearly worse: beyond it a shorter one that is not
    # would owe that to its few requests.
    enough = best
    while enough > 0 and not _is_worse(windows[enough - 1]):
        enough -= 1
    return QualityCurve(tuple(windows), len(asked), windows[enough].days)


def _measure(config: ReportConfig, snapshot: Snapshot, asked: Asked, past: Past) -> list[tuple[float, int, np.ndarray]]:
    """Return (days, user-item pairs, NDCG@k float64 ``[Q]``) of every window, shortest first."""
    n_items, end = snapshot.n_items(), snapshot.meta.borders.candidate_end_ms
    held = HeldOut.make(asked.request_id, snapshot.targets_of(asked.request_id), n_items)
    users, seen = np.searchsorted(past.users, asked.user_index), _matrix(past, n_items)
    longest = (end - int(past.event_time_ms.min())) / DAY_MS
    measured = []
    for days in (longest / 2**number for number in range(config.halvings, -1, -1)):
        touched = _matrix(past.since(end - days * DAY_MS), n_items)
        ranked = answers(touched, seen, asked.request_id, users, config.neighbours, config.k)
        measured.append((days, touched.nnz, ndcg_at(judge(ranked, held), config.k)))
    return measured


def _is_worse(window: WindowQuality) -> bool:
    return window.loss is not None and window.loss.verdict == "gains"


def _matrix(past: Past, n_items: int) -> sparse.csr_array:
    """Return float32 ``[S, N]``, 1 where a user touched an item."""
    rows, columns = np.divmod(np.unique(past.user * n_items + past.item_index), n_items)
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(past.users), n_items))
