"""Read the items for the dataset step, and write its aliases back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from stages.contracts.errors import ConfigError, DataError
from stages.warehouse.database.engine import Warehouse, arrow_batches
from stages.warehouse.database.tables import ITEM_ALIASES, ITEMS
from stages.warehouse.database.upsert import staged

_ROWS = 100_000

ITEMS_SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("categories", pa.string()),
        ("created_at_ms", pa.int64()),
        ("duration_s", pa.float64()),
        ("text", pa.string()),
        ("state", pa.string()),
    ]
)


def export_catalogue(warehouse: Warehouse) -> pa.Table:
    """Return the catalogue's items as ingested, with ``ITEMS_SCHEMA``, sorted by id bytewise."""
    return _sorted(warehouse, sa.select(*(ITEMS.c[name] for name in ITEMS_SCHEMA.names)), ITEMS_SCHEMA)


def matching_items(warehouse: Warehouse, reason: str, predicate: str) -> list[str]:
    """Return the ids of the catalogue's items that a SQL predicate matches, sorted bytewise.

    Args:
        warehouse: executes the predicate as it is written.
        reason: name of the predicate, for errors.
        predicate: SQL over the columns of ``items``.

    Raises:
        ConfigError: if the warehouse refuses the predicate.
    """
    # An unescaped colon would begin a parameter.
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
    """Store the canonical item of each duplicate; earlier aliases of the same key are replaced.

    Args:
        warehouse: the warehouse to write to.
        snapshot_key: key of the decision.
        aliases: canonical item id by the id of its duplicate.

    Raises:
        DataError: if a canonical item is itself a duplicate of another one.
    """
    real = {item: canonical for item, canonical in aliases.items() if item != canonical}
    chained = sorted(item for item, canonical in real.items() if canonical in real)
    if chained:
        item = chained[0]
        raise DataError(
            f"aliases of {snapshot_key}: {item!r} is a duplicate of {real[item]!r}, which is a duplicate of "
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


def _sorted(warehouse: Warehouse, statement: Any, schema: Any) -> pa.Table:
    with warehouse.connect() as connection:
        table = pa.Table.from_batches(arrow_batches(connection, statement, schema, _ROWS), schema=schema)
    # Arrow compares strings bytewise, whatever the database's collation is.
    return table.take(pc.sort_indices(table, sort_keys=[(schema.names[0], "ascending")]))
