"""Where the rows of a warehouse came from, so that a made world and real data never meet in one."""

from __future__ import annotations

import sqlalchemy as sa

from stages.warehouse.database.column_check import has_column
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INGEST_LOG, INTERACTIONS, ITEMS, USERS

UNKNOWN = "rows that others wrote"
"""Stands for rows that no source of ours left."""


def held_sources(warehouse: Warehouse) -> tuple[str, ...]:
    """Return the names of the sources whose rows a warehouse holds, sorted; ``UNKNOWN`` among them for others' rows.

    The interactions are asked, not only the log of loads: a load that was killed has left rows and no entry, and
    others may have written rows themselves.

    Args:
        warehouse: to be loaded into; its tables were created.
    """
    if not has_column(warehouse, INTERACTIONS.name, INTERACTIONS.c.source.name):
        return (UNKNOWN,)
    with warehouse.connect() as connection:
        names = set(connection.execute(sa.select(INTERACTIONS.c.source).distinct()).scalars())
        logged = sa.select(INGEST_LOG.c.source).where(INGEST_LOG.c.source.is_not(None)).distinct()
        names |= set(connection.execute(logged).scalars())
        if not names:
            filled = (sa.select(sa.literal(1)).select_from(table).limit(1) for table in (ITEMS, USERS))
            names = {"" for statement in filled if connection.execute(statement).first() is not None}
    return tuple(sorted(name or UNKNOWN for name in names))
