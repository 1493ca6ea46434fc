"""Quality against window length: does older data make a recommender better?

The recommender is item-to-item cosine (Sarwar et al., "Item-based Collaborative Filtering
Recommendation Algorithms", WWW 2001). It is cheap enough to fit once a window, and close enough to the
candidate generator to show whether older events are informative. It answers requests of the ranker period.
The held-out period is never read, since people set thresholds by this report.

Shapes: Q requests, N items, S users whose events are read, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from stages.contracts.progress import progress
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import DAY_MS
from stages.evaluation.bootstrap import Gain, paired_bootstrap
from stages.evaluation.metrics import HeldOut, judge, ndcg_at
from stages.sufficiency.config import ReportConfig
from stages.sufficiency.neighbours import answers
from stages.sufficiency.sample import Past, SampledRequests, draw_past, draw_requests, known_users

_SEED = 0


@dataclass(frozen=True)
class WindowQuality:
    """The quality of a recommender fitted to the latest days of the candidate period.

    Attributes:
        days: length of the window before the ranker period.
        events: number of distinct user-item pairs of the sampled users in the window.
        ndcg: mean NDCG@k over the requests.
        loss: mean NDCG@k of the best window minus this window's, with its interval; None for the best window.
    """

    days: float
    events: int
    ndcg: float
    loss: Gain | None


@dataclass(frozen=True)
class QualityCurve:
    """The windows by length, shortest first.

    Attributes:
        windows: W windows; empty if there is too little to measure.
        requests: Q.
        enough_days: length of the shortest window such that neither it nor any window between it and the
            best one is clearly worse than the best one; None without windows.
        why_not: the reason if there are no windows.
    """

    windows: tuple[WindowQuality, ...]
    requests: int
    enough_days: float | None
    why_not: str = ""


def quality_by_window(config: ReportConfig, snapshot: Snapshot) -> QualityCurve:
    """Measure the curve on a snapshot that is split by time.

    Args:
        config: windows, sizes and cut-off.
        snapshot: the recommender is fitted to its candidate period and answers requests of its ranker period.
    """
    if snapshot.meta.split != "time":
        return QualityCurve((), 0, None, f"the split by {snapshot.meta.split} is not in time order")
    known = known_users(snapshot)
    requests = draw_requests(snapshot, known, config.max_requests)
    if len(requests) < 20:
        found = f"{len(requests)} requests of the ranker part come from users of the candidate part"
        return QualityCurve((), len(requests), None, f"{found}, at least 20 are needed")
    past = draw_past(snapshot, known, requests.user_index, config.max_users)
    measured = _measure(config, snapshot, requests, past)
    best = int(np.argmax([values.mean() for _, _, values in measured]))
    windows = []
    for place, (days, size, values) in enumerate(measured):
        loss = None
        if place != best:
            loss = paired_bootstrap(values, measured[best][2], requests.user_index, config.bootstrap_samples, _SEED)
        windows.append(WindowQuality(days, size, float(values.mean()), loss))
    # Go from the best window to shorter ones, and stop at the first that is clearly worse. A still shorter
    # window that is not clearly worse would only be so by chance, because of its few requests.
    enough = best
    while enough > 0 and not _is_worse(windows[enough - 1]):
        enough -= 1
    return QualityCurve(tuple(windows), len(requests), windows[enough].days)


def _measure(
    config: ReportConfig, snapshot: Snapshot, requests: SampledRequests, past: Past
) -> list[tuple[float, int, np.ndarray]]:
    """Return (days, user-item pairs, NDCG@k float64 ``[Q]``) of every window, shortest first."""
    n_items, end = snapshot.n_items(), snapshot.meta.borders.candidate_end_ms
    held = HeldOut.make(requests.request_id, snapshot.targets_of(requests.request_id), n_items)
    users, seen = np.searchsorted(past.users, requests.user_index), _matrix(past, n_items)
    longest = (end - int(past.event_time_ms.min())) / DAY_MS
    measured = []
    for number in progress(range(config.halvings, -1, -1), "dataset_report", unit="window"):
        days = longest / 2**number
        touched = _matrix(past.since(end - days * DAY_MS), n_items)
        ranked = answers(touched, seen, requests.request_id, users, config.neighbours, config.k)
        measured.append((days, touched.nnz, ndcg_at(judge(ranked, held), config.k)))
    return measured


def _is_worse(window: WindowQuality) -> bool:
    return window.loss is not None and window.loss.verdict == "gains"


def _matrix(past: Past, n_items: int) -> sparse.csr_array:
    """Return float32 ``[S, N]``, 1 if a user touched an item."""
    rows, columns = np.divmod(np.unique(past.user * n_items + past.item_index), n_items)
    return sparse.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(past.users), n_items))
