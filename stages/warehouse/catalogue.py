"""Items and users for the dataset step, and the aliases that it writes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from stages.contracts.errors import ConfigError, DataError
from stages.warehouse.engine import Warehouse, arrow_batches
from stages.warehouse.load import staged
from stages.warehouse.tables import INTERACTIONS, ITEM_ALIASES, ITEMS, USERS

_ROWS = 100_000
_E = INTERACTIONS.c

ITEMS_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("categories", pa.string()),
        ("created_at_ms", pa.int64()),
        ("duration_s", pa.float64()),
        ("text", pa.string()),
        ("state", pa.string()),
        ("first_event_ms", pa.int64()),
    ]
)
USERS_SCHEMA = pa.schema([("user_id", pa.string()), ("attributes", pa.string()), ("first_event_ms", pa.int64())])


def export_catalogue(warehouse: Warehouse) -> pa.Table:
    """Return the catalogue's items, sorted by id bytewise: ``ITEMS_SCHEMA`` without ``first_event_ms``."""
    schema = pa.schema([field for field in ITEMS_SCHEMA if field.name != "first_event_ms"])
    return _sorted(warehouse, sa.select(*(ITEMS.c[name] for name in schema.names)), schema)


def export_items(warehouse: Warehouse, as_of_ms: int | None = None, signals: Sequence[str] | None = None) -> pa.Table:
    """Return every item of the catalogue or of the events, sorted by id bytewise.

    Args:
        warehouse: where from.
        as_of_ms: int ms UTC; only events before it count. None = all.
        signals: kinds of events that count; None = all.

    Returns:
        ``ITEMS_SCHEMA``. An item without a catalogue row has its id as title and no category;
        ``first_event_ms`` is null for an item without an event. Ids are not made canonical.
    """
    first = _first_events(_E.item_id, as_of_ms, signals)
    joined = ITEMS.outerjoin(first, first.c.id == ITEMS.c.item_id, full=True)
    statement = sa.select(
        sa.func.coalesce(ITEMS.c.item_id, first.c.id),
        sa.func.coalesce(ITEMS.c.title, first.c.id),
        sa.func.coalesce(ITEMS.c.categories, ""),
        ITEMS.c.created_at_ms,
        ITEMS.c.duration_s,
        ITEMS.c.text,
        ITEMS.c.state,
        first.c.first_event_ms,
    ).select_from(joined)
    return _sorted(warehouse, statement, ITEMS_SCHEMA)


def export_users(warehouse: Warehouse, as_of_ms: int | None = None, signals: Sequence[str] | None = None) -> pa.Table:
    """Return every user of the users' table or of the events, sorted by id bytewise.

    Args:
        warehouse: where from.
        as_of_ms: as for ``export_items``.
        signals: as for ``export_items``.

    Returns:
        ``USERS_SCHEMA``; a user without a row has the attributes ``{}``.
    """
    first = _first_events(_E.user_id, as_of_ms, signals)
    joined = USERS.outerjoin(first, first.c.id == USERS.c.user_id, full=True)
    statement = sa.select(
        sa.func.coalesce(USERS.c.user_id, first.c.id),
        sa.func.coalesce(USERS.c.attributes, "{}"),
        first.c.first_event_ms,
    ).select_from(joined)
    return _sorted(warehouse, statement, USERS_SCHEMA)


def matching_items(warehouse: Warehouse, reason: str, predicate: str) -> list[str]:
    """Return the ids of the catalogue's items that a SQL predicate matches, sorted bytewise.

    Args:
        warehouse: executes it as it is written.
        reason: names the predicate in errors.
        predicate: over the columns of ``items``.

    Raises:
        ConfigError: if the warehouse refuses the predicate.
    """
    # A colon would begin a parameter.
    condition = sa.text(f"({predicate})".replace(":", "\\:"))
    statement = sa.select(ITEMS.c.item_id).where(condition)
    try:
        with warehouse.connect() as connection:
            return sorted((row[0] for row in connection.execute(statement)), key=str.encode)
    except sa.exc.DBAPIError as error:
        fault = str(error.orig).strip().splitlines()[0]
        raise ConfigError(
            f"dataset.content.predicates.{reason} = {predicate!r}: {fault}; allowed is SQL over the columns "
            f"{ITEMS.c.keys()} of items"
        ) from None


def write_aliases(warehouse: Warehouse, snapshot_key: str, aliases: Mapping[str, str]) -> None:
    """Keep which item stands for a duplicate; what the key held before is replaced.

    Args:
        warehouse: where to.
        snapshot_key: names the decision.
        aliases: canonical item id by the id of its duplicate.

    Raises:
        DataError: if a canonical item is itself a duplicate of another one.
    """
    real = {item: canonical for item, canonical in aliases.items() if item != canonical}
    chained = sorted(item for item, canonical in real.items() if canonical in real)
    if chained:
        item = chained[0]
        raise DataError(
            f"aliases of {snapshot_key}: {item!r} stands for {real[item]!r}, which stands for "
            f"{real[real[item]]!r}; a canonical item must not be a duplicate itself"
        )
    ids = sorted(real)
    rows = pa.table(
        {
            "snapshot_key": pa.array([snapshot_key] * len(ids), pa.string()),
            "item_id": pa.array(ids, pa.string()),
            "canonical_id": pa.array([real[item] for item in ids], pa.string()),
        }
    )
    warehouse.create_tables()
    with warehouse.begin() as connection:
        connection.execute(sa.delete(ITEM_ALIASES).where(ITEM_ALIASES.c.snapshot_key == snapshot_key))
        if ids:
            with staged(connection, ITEM_ALIASES, rows) as stage:
                connection.execute(sa.insert(ITEM_ALIASES).from_select(rows.column_names, sa.select(*stage.c)))


def _first_events(key: Any, as_of_ms: int | None, signals: Sequence[str] | None) -> Any:
    statement = sa.select(key.label("id"), sa.func.min(_E.event_time_ms).label("first_event_ms")).group_by(key)
    if as_of_ms is not None:
        statement = statement.where(_E.event_time_ms < as_of_ms)
    if signals is not None:
        statement = statement.where(_E.signal.in_(list(signals)))
    return statement.subquery("first_events")


def _sorted(warehouse: Warehouse, statement: Any, schema: Any) -> pa.Table:
    with warehouse.connect() as connection:
        table = pa.Table.from_batches(arrow_batches(connection, statement, schema, _ROWS), schema=schema)
    # Arrow compares strings bytewise, whatever the database's collation is.
    return table.take(pc.sort_indices(table, sort_keys=[(schema.names[0], "ascending")]))
