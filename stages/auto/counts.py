"""What the choice of settings reads from the data.

Shapes: N items, R rows of a row group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_CANDIDATE, PART_RANKER
from stages.contracts.touches import touching

LATEST = 0.1
"""Share of the candidate period, its end, in which an item's first touch makes it a newborn one."""


@dataclass(frozen=True)
class Counts:
    """Counts of the candidate part of a snapshot. A touch is a user-item pair; repeated events count once.

    Attributes:
        users: with a touch.
        items: with a touch.
        touches: in all.
        ordered: whether the order of a user's touches says what came first.
        timed: whether the parts are periods of time, so that requests come after what was trained on.
        newborn: share of the events in the last tenth of the candidate period that are on items first touched in it;
            0 where the parts are not periods.
        described: share of the items that have a title or a category.
        requests: of the ranker part.
    """

    users: int
    items: int
    touches: int
    ordered: bool
    timed: bool
    newborn: float = 0.0
    described: float = 0.0
    requests: int = 0

    @property
    def a_user(self) -> float:
        """Touches of the mean user."""
        return self.touches / max(self.users, 1)

    @property
    def an_item(self) -> float:
        """Touches of the mean item."""
        return self.touches / max(self.items, 1)


def counts_of(snapshot: Snapshot, exposure_signals: tuple[str, ...], ordered: bool | None = None) -> Counts:
    """Return the counts.

    Events are read a row group at a time. In memory are 8 bytes of each event of the candidate part, three times while
    they are sorted, and the items.

    Args:
        snapshot: of the run.
        exposure_signals: signals that are not touches.
        ordered: what the recipe says; None takes what the split says.

    Raises:
        DataError: if the events are unreadable.
    """
    meta, n_items = snapshot.meta, snapshot.n_items()
    touching_S = touching(meta.signals, exposure_signals)
    timed = meta.split == "time"
    end_ms = meta.borders.candidate_end_ms
    latest_ms = end_ms - LATEST * (end_ms - meta.borders.start_ms)
    first_N = np.full(n_items, np.iinfo(np.int64).max)
    late_N = np.zeros(n_items, dtype=np.int64)
    found = [np.zeros(0, dtype=np.int64)]
    for rows in snapshot.stream_events("user_index", "item_index", "event_time_ms", "signal", "part", "active"):
        chosen_R = (rows["part"] == PART_CANDIDATE) & rows["active"] & touching_S[rows["signal"]]
        item, time_ms = rows["item_index"][chosen_R], rows["event_time_ms"][chosen_R]
        np.minimum.at(first_N, item, time_ms)
        late_N += np.bincount(item[time_ms >= latest_ms], minlength=n_items)
        found.append(rows["user_index"][chosen_R].astype(np.int64) * n_items + item)
    pairs = np.unique(np.concatenate(found))
    late = int(late_N.sum())
    described_N = _described(snapshot)
    touched_N = first_N < np.iinfo(np.int64).max
    parts = [rows["part"] for rows in snapshot.stream_requests("part")]
    return Counts(
        users=len(np.unique(pairs // max(n_items, 1))),
        items=int(touched_N.sum()),
        touches=len(pairs),
        ordered=meta.split != "given" if ordered is None else ordered,
        timed=timed,
        newborn=int(late_N[first_N >= latest_ms].sum()) / late if timed and late else 0.0,
        described=float(described_N[touched_N].mean()) if touched_N.any() else 0.0,
        requests=sum(int((part == PART_RANKER).sum()) for part in parts),
    )


def _described(snapshot: Snapshot) -> np.ndarray:
    """Return bool ``[N]``: items with a category or a title. An item without a title has its id for one."""
    items = snapshot.items()
    titled_N = (items.title != "") & (items.title != items.item_id)
    return np.asarray(titled_N | (np.diff(items.category_offsets) > 0), dtype=bool)
