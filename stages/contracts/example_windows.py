"""Which requests a ranker holds out to choose how long it trains: those of the last window.

Shapes: Q requests.
"""

from __future__ import annotations

import logging

import numpy as np

from stages.contracts.errors import DataError

LATE_SHARE = 0.2
"""Latest share of the requests with a positive that is held out where the windows cannot be used."""

log = logging.getLogger("sluice")


def late_requests(step: str, window: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return bool ``[Q]``: the requests of the last window, later than all others.

    With only one window, or where the last one or the others have no positive, the windows say nothing: then the latest
    requests with a positive are held out, and the log says so.

    Args:
        step: for messages, such as ``light ranker``.
        window: int ``[Q]``, of requests in the order of time.
        positive: bool ``[Q]``, whether the request has a row with relevance above 0.

    Raises:
        DataError: if fewer than two requests have a positive, with the counts.
    """
    late: np.ndarray = window == window.max(initial=0)
    if positive[late].any() and positive[~late].any():
        return late
    with_positive = np.flatnonzero(positive)
    if len(with_positive) < 2:
        raise DataError(
            f"{step}: later requests choose how long it trains, so that at least 2 requests need a positive among "
            f"their candidates; {len(with_positive)} of {len(window)} have one"
        )
    held = max(1, round(LATE_SHARE * len(with_positive)))
    log.warning(
        "%s: requests with a positive: %d in the last window, %d before it; the latest %d of all %d are held out",
        *(step, int(positive[late].sum()), int(positive[~late].sum()), held, len(with_positive)),
    )
    late = np.arange(len(window)) >= with_positive[-held]
    return late
