"""Find the data sources of a warehouse's rows, so that simulated and real data never share a warehouse."""

from __future__ import annotations

import sqlalchemy as sa

from stages.warehouse.database.column_check import has_column
from stages.warehouse.database.engine import Warehouse
from stages.warehouse.database.tables import INGEST_LOG, INTERACTIONS, ITEMS, USERS

UNKNOWN = "rows that others wrote"
"""Data source name of rows that Sluice did not load."""


def held_sources(warehouse: Warehouse) -> tuple[str, ...]:
    """Return the sorted names of the data sources of a warehouse's rows; ``UNKNOWN`` if Sluice did not load them.

    The table of interactions is read as well as the log of loads: a load that was killed left rows without a log
    entry, and other programs may have written rows.

    Args:
        warehouse: the warehouse to load into; its tables exist.
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
