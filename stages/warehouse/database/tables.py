"""The warehouse's tables, declared once and used on every database.

DuckDB has no key on ``interactions``: its index would have to fit into memory, and ingestion
anti-joins every chunk anyway. PostgreSQL has a unique index: it speeds up that join, and two
concurrent loads cannot add a row twice.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, MetaData, Table, Text

METADATA = MetaData()


def _key(name: str) -> Column:
    return Column(name, Text, primary_key=True)


def _load_id() -> Column:
    """Return the column of the load that a row comes from, see ``loads``.

    It is 0 in rows that an earlier version, or another program, added.
    """
    return Column("load_id", BigInteger, server_default="0")


INTERACTIONS = Table(
    "interactions",
    METADATA,
    Column("event_id", BigInteger, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("signal", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("event_time_ms", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("context", Text, nullable=False, server_default=""),
    _load_id(),
)
"""One row an event; ``event_id`` is a hash of its content (see ``ingest.row_ids``). ``context`` is the context of
the event (device, region): a JSON object of strings with sorted keys, or empty."""

ITEMS = Table(
    "items",
    METADATA,
    _key("item_id"),
    Column("title", Text, nullable=False),
    Column("categories", Text, nullable=False),
    Column("created_at_ms", BigInteger),
    Column("duration_s", Double),
    Column("row_hash", BigInteger, nullable=False),
    Column("text", Text),
    Column("state", Text),
    _load_id(),
)
"""The catalogue. ``categories`` holds names joined by ``|``; ``row_hash`` covers the other columns;
``text`` is the body or abstract; ``state`` is a word such as ``published`` or ``deleted``."""

USERS = Table(
    "users",
    METADATA,
    _key("user_id"),
    Column("attributes", Text, nullable=False),
    Column("row_hash", BigInteger, nullable=False),
    _load_id(),
)
"""``attributes`` is a JSON object with sorted keys."""

QUARANTINE = Table(
    "quarantine",
    METADATA,
    Column("quarantine_id", BigInteger, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("file", Text, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("row_number", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("raw", Text, nullable=False),
    _load_id(),
)
"""Quarantined rows; ``row_number`` is the 1-based line of a text file or row of a table."""

INGEST_LOG = Table(
    "ingest_log",
    METADATA,
    _key("batch_id"),
    Column("file", Text, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("rows_read", BigInteger, nullable=False),
    Column("rows_loaded", BigInteger, nullable=False),
    Column("rows_duplicate", BigInteger, nullable=False),
    Column("rows_quarantined", BigInteger, nullable=False),
    Column("reasons", Text),
    Column("reading", Text),
    Column("size_bytes", BigInteger),
    Column("modified_ns", BigInteger),
    Column("changed_ns", BigInteger),
    Column("source", Text),
)
"""One row for each file that was read to its end; a file whose load was interrupted has none. ``reasons`` is a
JSON object with the number of quarantined rows by reason. ``reading`` is a hash of source, table and mapping.
``size_bytes``, ``modified_ns`` and ``changed_ns`` show whether the file was changed since (see
``ingest.input_files``); null where that is not known. ``source`` is the data source's name, null in rows of
earlier versions."""

FILE_LOADS = Table(
    "file_loads",
    METADATA,
    Column("file", Text, nullable=False),
    Column("table_name", Text, nullable=False),
    Column("reading", Text, nullable=False),
    Column("batch_id", Text, nullable=False),
    Column("load_id", BigInteger, nullable=False),
)
"""The load of each file (absolute path) and reading: one row each, written before the load's first row."""

LOADED = {INTERACTIONS: "event_id", QUARANTINE: "quarantine_id", ITEMS: "item_id", USERS: "user_id"}
"""The tables with a column ``load_id``, and the key of each."""

SHARED = {
    table.name: Table(
        f"shared_{table.name}",
        METADATA,
        Column("key", table.c[key].type, nullable=False),
        Column("load_id", BigInteger, nullable=False),
    )
    for table, key in LOADED.items()
}
"""Further loads that contain the same row, by the row's table. A row stays as long as one of its loads does."""

ITEM_ALIASES = Table(
    "item_aliases",
    METADATA,
    Column("snapshot_key", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("canonical_id", Text, nullable=False),
)
"""The canonical item of each duplicate, by the dataset that decided it."""

ADDED_COLUMNS = (
    INTERACTIONS.c.context,
    ITEMS.c.text,
    ITEMS.c.state,
    *(table.c.load_id for table in LOADED),
    *(INGEST_LOG.c[name] for name in ("reasons", "reading", "size_bytes", "modified_ns", "changed_ns", "source")),
)
"""Columns that earlier versions did not have; they are added to existing tables."""

INDEXES = tuple(
    Index(f"{table.name}_key", *columns, unique=True)
    for table, columns in (
        (INTERACTIONS, [INTERACTIONS.c.event_id]),
        (QUARANTINE, [QUARANTINE.c.quarantine_id]),
        (ITEM_ALIASES, [ITEM_ALIASES.c.snapshot_key, ITEM_ALIASES.c.item_id]),
        (FILE_LOADS, [FILE_LOADS.c.file, FILE_LOADS.c.batch_id]),
        *((shared, [shared.c.key, shared.c.load_id]) for shared in SHARED.values()),
    )
)
"""Created on PostgreSQL only."""
