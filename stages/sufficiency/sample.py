"""Sample requests and training events from a snapshot whose events need not fit into memory.

Files are read a row group at a time. Memory holds a byte a user, the sampled requests, and the events of the
users of these requests and of a limited number of other users.

Shapes: E events, Q requests, S sampled users, U users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_CANDIDATE, PART_RANKER


@dataclass(frozen=True)
class SampledRequests:
    """Sampled requests of the ranker period, in time order.

    Attributes:
        request_id, user_index: int64 ``[Q]``.
    """

    request_id: np.ndarray
    user_index: np.ndarray

    def __len__(self) -> int:
        return len(self.request_id)


@dataclass(frozen=True)
class Past:
    """Active touches of sampled users in the candidate period, in time order.

    Attributes:
        users: int64 ``[S]`` user indices, ascending.
        user: int64 ``[E]`` positions in ``users``.
        item_index, event_time_ms: int64 ``[E]``.
    """

    users: np.ndarray
    user: np.ndarray
    item_index: np.ndarray
    event_time_ms: np.ndarray

    def since(self, start_ms: float) -> Past:
        """Return the events from a time on; the users stay the same."""
        rows = self.event_time_ms >= start_ms
        return Past(self.users, self.user[rows], self.item_index[rows], self.event_time_ms[rows])


def known_users(snapshot: Snapshot) -> np.ndarray:
    """Return bool ``[U]``: users with an active touch in the candidate period; it ends with the last such user."""
    known, touching = np.zeros(0, dtype=bool), snapshot.meta.touching
    for rows in snapshot.stream_events("user_index", "signal", "part", "active"):
        users = rows["user_index"][_teaches(rows, touching)]
        known = np.pad(known, (0, max(int(users.max(initial=-1)) + 1 - len(known), 0)))
        known[users] = True
    return known


def draw_requests(snapshot: Snapshot, known: np.ndarray, limit: int) -> SampledRequests:
    """Return requests of known users from the ranker period, spread evenly in time.

    Args:
        snapshot: its requests are read twice, first to count them.
        known: bool ``[U]``, see ``known_users``.
        limit: largest Q.
    """
    names = ("request_id", "user_index", "part")
    total = sum(int(_asks(rows, known).sum()) for rows in snapshot.stream_requests(*names))
    wanted = np.linspace(0, total - 1, min(limit, total)).round().astype(np.int64)
    ids, users = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    before = 0
    for rows in snapshot.stream_requests(*names):
        asking = np.flatnonzero(_asks(rows, known))
        first, last = np.searchsorted(wanted, (before, before + len(asking)))
        chosen = asking[wanted[first:last] - before]
        ids.append(rows["request_id"][chosen])
        users.append(rows["user_index"][chosen])
        before += len(asking)
    return SampledRequests(np.concatenate(ids), np.concatenate(users))


def draw_past(snapshot: Snapshot, known: np.ndarray, asking: np.ndarray, limit: int) -> Past:
    """Return the training events: of the users of the requests, and of users spread evenly by index.

    Args:
        snapshot: its events are read.
        known: bool ``[U]``, see ``known_users``.
        asking: int64 ``[Q]`` known users of the requests, in any order.
        limit: number of users that are spread evenly; if there are no more known users, all are taken.
    """
    users = np.flatnonzero(known)
    if len(users) > limit:
        spread = users[np.linspace(0, len(users) - 1, limit).astype(np.int64)]
        users = np.union1d(spread, asking)
    position = np.full(len(known), -1, dtype=np.int32)
    position[users] = np.arange(len(users), dtype=np.int32)
    touching = snapshot.meta.touching
    kept: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] for _ in range(3)]
    for rows in snapshot.stream_events("user_index", "item_index", "event_time_ms", "signal", "part", "active"):
        teaches = np.flatnonzero(_teaches(rows, touching))
        user = position[rows["user_index"][teaches]]
        chosen = teaches[user >= 0]
        pieces = (user[user >= 0].astype(np.int64), rows["item_index"][chosen], rows["event_time_ms"][chosen])
        for into, values in zip(kept, pieces, strict=True):
            into.append(values)
    return Past(users, *(np.concatenate(pieces) for pieces in kept))


def _teaches(rows: dict[str, np.ndarray], touching: np.ndarray) -> np.ndarray:
    teaches: np.ndarray = (rows["part"] == PART_CANDIDATE) & rows["active"] & touching[rows["signal"]]
    return teaches


def _asks(rows: dict[str, np.ndarray], known: np.ndarray) -> np.ndarray:
    asks: np.ndarray = (rows["part"] == PART_RANKER) & (rows["user_index"] < len(known))
    asks[asks] = known[rows["user_index"][asks]]
    return asks
