"""Split events into periods by user-item pair instead of by time, as published protocols do.

A user-item pair belongs to one period (column ``part``), with all of its events. A user's pairs are ordered by
their first event, (event_time_ms, event_id), so that every database orders ties the same way. Events of a user
at the same time are set one millisecond apart, in the same order. So a later request may know the earlier
events even if the clock was coarse. Shares are compared as integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import Field

from stages.contracts.config import Config

SplitMethod = Literal["leave_last_out", "user_ratio", "users", "given"]
_MILLION = 1_000_000

USER_GROUPS = sa.Table(
    "selected_user_groups",
    sa.MetaData(),
    sa.Column("user_index", sa.BigInteger),
    sa.Column("part", sa.Integer),
)
"""The period that each user is assigned to, for the method ``users``."""


class PairSplit(Config):
    """How user-item pairs are assigned to periods.

    Attributes:
        method: ``leave_last_out``: a user's last pairs are held out, the pairs before them train the
            rankers; ``user_ratio``: shares of each user's pairs; ``users``: whole users, whose oldest
            pairs are history only; ``given``: signals mark the held-out pairs.
        last, before_last: number of pairs that are held out, and that train the rankers. If no pair would
            remain, all of the user's pairs stay in the candidate period.
        candidate_share, ranker_share: shares of a user's pairs, the oldest first.
        fold_in_share: share of the pairs, the oldest, that are history only for users of a later period.
        held_out: codes of the signals that mark a held-out pair; a pair with other signals as well stays
            in training.
    """

    method: SplitMethod
    last: int = Field(default=1, ge=1)
    before_last: int = Field(default=1, ge=1)
    candidate_share: float = Field(default=0.8, gt=0, lt=1)
    ranker_share: float = Field(default=0.1, gt=0, lt=1)
    fold_in_share: float = Field(default=0.8, gt=0, lt=1)
    held_out: tuple[int, ...] = ()


def split_rows(kept: Any, split: PairSplit) -> sa.Select[Any]:
    """Return the SELECT of the kept events with a column ``part`` and distinct times a user.

    Args:
        kept: a subquery with the columns of ``repeats.CODED``.
        split: how pairs are assigned.
    """
    pairs = dealt_pairs(kept, split)
    same_time = sa.func.row_number().over(
        partition_by=(kept.c.user_index, kept.c.event_time_ms), order_by=kept.c.event_id
    )
    columns: Mapping[str, Any] = {column.name: column for column in kept.c}
    columns = {**columns, "event_time_ms": (kept.c.event_time_ms + same_time - 1).label("event_time_ms")}
    joined = kept.join(pairs, sa.and_(pairs.c.user_index == kept.c.user_index, pairs.c.item_index == kept.c.item_index))
    return sa.select(*columns.values(), pairs.c.part).select_from(joined)


def dealt_pairs(kept: Any, split: PairSplit) -> Any:
    """Return the subquery of every pair's period: user_index, item_index, part."""
    order = (kept.c.event_time_ms, kept.c.event_id)
    pair = (kept.c.user_index, kept.c.item_index)
    marked = sa.case((kept.c.signal.in_(list(split.held_out)), 1), else_=0)
    turns = sa.select(
        *pair,
        kept.c.event_time_ms,
        kept.c.event_id,
        sa.func.row_number().over(partition_by=pair, order_by=order).label("turn"),
        sa.func.min(marked).over(partition_by=pair).label("held"),
    ).subquery("turns")
    group = (turns.c.user_index, turns.c.held)
    position = sa.func.row_number().over(partition_by=group, order_by=(turns.c.event_time_ms, turns.c.event_id)) - 1
    placed = (
        sa.select(
            turns.c.user_index,
            turns.c.item_index,
            turns.c.held,
            position.label("position"),
            sa.func.count().over(partition_by=group).label("size"),
        )
        .where(turns.c.turn == 1)
        .subquery("placed")
    )
    source: Any = placed
    if split.method == "users":
        source = placed.join(USER_GROUPS, USER_GROUPS.c.user_index == placed.c.user_index)
    part = sa.cast(_part(placed, split), sa.Integer).label("part")
    return sa.select(placed.c.user_index, placed.c.item_index, part).select_from(source).subquery("dealt")


def pairs_marked_twice(kept: Any, split: PairSplit) -> sa.Select[Any]:
    """Return the SELECT of the number of pairs that have both held-out signals and others."""
    marked = sa.case((kept.c.signal.in_(list(split.held_out)), 1), else_=0)
    both = (
        sa.select(kept.c.user_index)
        .group_by(kept.c.user_index, kept.c.item_index)
        .having(sa.func.min(marked) < sa.func.max(marked))
        .subquery("both")
    )
    return sa.select(sa.func.count()).select_from(both)


def _part(placed: Any, split: PairSplit) -> Any:
    position, size = placed.c.position, placed.c.size

    def within(share: float) -> Any:
        return position * _MILLION < size * round(share * _MILLION)

    if split.method == "leave_last_out":
        return sa.case(
            (size <= split.last + split.before_last, 0),
            (position >= size - split.last, 2),
            (position >= size - split.last - split.before_last, 1),
            else_=0,
        )
    if split.method == "user_ratio":
        return sa.case(
            (within(split.candidate_share), 0), (within(split.candidate_share + split.ranker_share), 1), else_=2
        )
    if split.method == "users":
        return sa.case((USER_GROUPS.c.part == 0, 0), (within(split.fold_in_share), 0), else_=USER_GROUPS.c.part)
    return sa.case(
        (placed.c.held == 1, 2),
        (sa.and_(size > split.before_last, position >= size - split.before_last), 1),
        else_=0,
    )
