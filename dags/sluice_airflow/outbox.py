"""The outbox: one row per failed attempt of a run, in Airflow's metadata database, from detection to delivery.

Rows are made unique by (dag_id, run_id, attempt), so that two schedulers report a run once. A sender claims a row by a
compare-and-set of ``next_try_ms`` to a later time; if the sender dies, the row is due again when the lease is over.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

LEASE_MS = 120_000
KEPT_MS = 90 * 86_400_000
"""How long finished rows stay."""

_INSTALLED = ("", "installed", 0)
"""Key of the row that says since when runs are watched."""

OUTBOX = Table(
    "sluice_alert_outbox",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("dag_id", String(250), nullable=False),
    Column("run_id", String(250), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("next_try_ms", BigInteger, nullable=True, index=True),
    Column("tries", Integer, nullable=False, default=0),
    Column("sent_ms", BigInteger, nullable=True),
    Column("last_error", Text, nullable=True),
    UniqueConstraint("dag_id", "run_id", "attempt", name="sluice_alert_outbox_key"),
)
"""Times are ms since 1970, UTC. ``next_try_ms`` is empty once the message is sent or given up. ``attempt`` is Airflow's
clear number: a run that a person clears and that fails again is a new attempt."""


@dataclass(frozen=True)
class Message:
    """A claimed row."""

    id: int
    run: str
    text: str
    created_ms: int
    tries: int


def now_ms() -> int:
    """Return the wall clock, ms since 1970."""
    return int(time.time() * 1000)


class Outbox:
    """The table, through an engine; no transaction is open while a message is sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def prepare(self) -> None:
        """Create the table where it is missing, record when, and delete rows that finished long ago."""
        if not inspect(self._engine).has_table(OUTBOX.name):
            # Another scheduler may create it at the same moment.
            with contextlib.suppress(DBAPIError):
                OUTBOX.create(self._engine, checkfirst=True)
        now = now_ms()
        self._insert(_INSTALLED, "", now, next_try_ms=None)
        old = OUTBOX.c.next_try_ms.is_(None) & (OUTBOX.c.created_ms < now - KEPT_MS) & (OUTBOX.c.dag_id != "")
        with self._engine.begin() as connection:
            connection.execute(delete(OUTBOX).where(old))

    def since_ms(self) -> int:
        """Return when the outbox was made: runs that had failed before are not reported."""
        query = select(OUTBOX.c.created_ms).where(_is(*_INSTALLED))
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def holds(self, dag_id: str, run_id: str, attempt: int) -> bool:
        """Return whether this attempt has been seen."""
        with self._engine.connect() as connection:
            return connection.execute(select(OUTBOX.c.id).where(_is(dag_id, run_id, attempt))).first() is not None

    def add(self, dag_id: str, run_id: str, attempt: int, text: str) -> bool:
        """Add a message that is due at once; return False if another process was first."""
        return self._insert((dag_id, run_id, attempt), text, now_ms(), next_try_ms=now_ms())

    def due(self) -> Iterator[Message]:
        """Claim the messages that are due, one after the other, oldest first."""
        seen = [-1]
        while True:
            query = (
                select(OUTBOX)
                .where(OUTBOX.c.next_try_ms <= now_ms(), OUTBOX.c.id.not_in(seen))
                .order_by(OUTBOX.c.created_ms, OUTBOX.c.id)
                .limit(1)
            )
            with self._engine.begin() as connection:
                row = connection.execute(query).first()
                claimed = row is not None and _claim(connection, row.id, row.next_try_ms)
            if row is None:
                return
            seen.append(row.id)
            if claimed:
                yield Message(row.id, f"{row.dag_id} {row.run_id}", row.text, row.created_ms, row.tries + 1)

    def sent(self, message: Message) -> None:
        """Close a row: its message was accepted."""
        self._set(message, next_try_ms=None, sent_ms=now_ms(), last_error=None)

    def give_up(self, message: Message, error: str) -> None:
        """Close a row whose message will not be sent."""
        self._set(message, next_try_ms=None, last_error=error)

    def postpone(self, message: Message, error: str, delay_ms: int, *, everything: bool = False) -> None:
        """Try a message again later; with ``everything`` all other messages wait until then as well."""
        until = now_ms() + delay_ms
        self._set(message, next_try_ms=until, last_error=error)
        if everything:
            waiting = update(OUTBOX).where(OUTBOX.c.next_try_ms < until).values(next_try_ms=until)
            with self._engine.begin() as connection:
                connection.execute(waiting)

    def _set(self, message: Message, **values: object) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(OUTBOX).where(OUTBOX.c.id == message.id).values(**values))

    def _insert(self, key: tuple[str, str, int], text: str, at_ms: int, next_try_ms: int | None) -> bool:
        dag_id, run_id, attempt = key
        if self.holds(dag_id, run_id, attempt):
            return False
        row = insert(OUTBOX).values(
            dag_id=dag_id, run_id=run_id, attempt=attempt, text=text, created_ms=at_ms, next_try_ms=next_try_ms, tries=0
        )
        try:
            with self._engine.begin() as connection:
                connection.execute(row)
        except IntegrityError:
            return False
        return True


def _claim(connection: Connection, row_id: int, next_try_ms: int) -> bool:
    claim = (
        update(OUTBOX)
        .where(OUTBOX.c.id == row_id, OUTBOX.c.next_try_ms == next_try_ms)
        .values(next_try_ms=now_ms() + LEASE_MS, tries=OUTBOX.c.tries + 1)
    )
    return connection.execute(claim).rowcount == 1


def _is(dag_id: str, run_id: str, attempt: int) -> ColumnElement[bool]:
    return (OUTBOX.c.dag_id == dag_id) & (OUTBOX.c.run_id == run_id) & (OUTBOX.c.attempt == attempt)
