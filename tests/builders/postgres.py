"""Databases of a test's own on the PostgreSQL server of the tests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest

SERVER = "postgresql://postgres@127.0.0.1:5432"
LOCALE = "TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"
"""A locale that sorts unlike bytes, so that an order by text in SQL would show."""


@contextmanager
def postgres_database(name: str) -> Iterator[str]:
    """Yield the SQLAlchemy URL of a new database, which is dropped at the end.

    Skips where no server answers, unless ``SLUICE_REQUIRE_SERVICES`` is 1.

    Args:
        name: of whom it is for, part of the database's name.
    """
    database = f"sluice_{name}_{uuid.uuid4().hex[:12]}"
    try:
        execute(f"CREATE DATABASE {database} {LOCALE}")
    except psycopg2.OperationalError as error:
        if os.environ.get("SLUICE_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"PostgreSQL on 127.0.0.1:5432 is not reachable: {error}")
    try:
        yield f"{SERVER.replace('postgresql', 'postgresql+psycopg2')}/{database}"
    finally:
        execute(f"DROP DATABASE {database} WITH (FORCE)")


def empty(url: str) -> None:
    """Drop all tables and views of a database."""
    execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", url.replace("+psycopg2", ""))


def execute(statement: str, url: str = f"{SERVER}/postgres") -> None:
    """Run a statement outside of a transaction."""
    connection = psycopg2.connect(url, connect_timeout=5)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
