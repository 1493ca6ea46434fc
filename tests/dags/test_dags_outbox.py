"""The outbox on SQLite and on PostgreSQL: one row a failed attempt, one sender a message, nothing lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.pool import NullPool

from tests.builders.postgres import postgres_database

sys.path.append(str(Path(__file__).resolve().parents[2] / "dags"))

from sluice_airflow import outbox as module
from sluice_airflow.backoff import retry_seconds, wait_seconds
from sluice_airflow.outbox import OUTBOX, Outbox


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        yield create_engine(f"sqlite:///{tmp_path / 'airflow.db'}", poolclass=NullPool)
        return
    with postgres_database("outbox") as url:
        yield create_engine(url, poolclass=NullPool)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ms as a list of one; the tests move it."""
    now = [1_800_000_000_000]
    monkeypatch.setattr(module, "now_ms", lambda: now[0])
    return now


@pytest.fixture
def outbox(engine: Engine, clock: list[int]) -> Outbox:
    made = Outbox(engine)
    made.prepare()
    return made


def _rows(engine: Engine) -> list[tuple[object, ...]]:
    query = select(OUTBOX.c.run_id, OUTBOX.c.tries, OUTBOX.c.next_try_ms, OUTBOX.c.sent_ms, OUTBOX.c.last_error)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(query.where(OUTBOX.c.dag_id != "").order_by(OUTBOX.c.id))]


def test_the_table_is_made_once_and_remembers_when(engine: Engine, clock: list[int]) -> None:
    first, second = Outbox(engine), Outbox(engine)
    first.prepare()
    clock[0] += 5_000
    second.prepare()
    assert first.since_ms() == second.since_ms() == clock[0] - 5_000
    assert list(second.due()) == []


def test_two_schedulers_put_an_attempt_in_once_and_send_it_once(engine: Engine, outbox: Outbox) -> None:
    other = Outbox(engine)
    assert outbox.add("d", "r", 0, "text") and not other.add("d", "r", 0, "text")
    assert other.add("d", "r", 1, "cleared and failed again") and other.holds("d", "r", 1)
    claimed = [next(outbox.due()), next(other.due())]
    assert [message.text for message in claimed] == ["text", "cleared and failed again"]
    assert list(outbox.due()) == list(other.due()) == []


def test_an_insert_that_loses_the_race_is_no_error(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.add("d", "r", 0, "text")
    monkeypatch.setattr(outbox, "holds", lambda *key: False)
    assert not outbox.add("d", "r", 0, "text")


def test_a_claim_whose_sender_died_is_taken_over(engine: Engine, outbox: Outbox, clock: list[int]) -> None:
    outbox.add("d", "r", 0, "text")
    next(outbox.due())
    clock[0] += module.LEASE_MS - 1
    assert list(outbox.due()) == []
    clock[0] += 1
    (message,) = Outbox(engine).due()
    assert message.tries == 2
    outbox.sent(message)
    clock[0] += 10 * module.LEASE_MS
    assert list(outbox.due()) == []
    ((_, tries, next_try, sent, error),) = _rows(engine)
    assert (tries, next_try, error) == (2, None, None) and sent == clock[0] - 10 * module.LEASE_MS


def test_what_was_not_accepted_is_due_again_and_a_wait_holds_for_all(
    engine: Engine, outbox: Outbox, clock: list[int]
) -> None:
    for run_id in ("a", "b", "done"):
        outbox.add("d", run_id, 0, run_id)
    a, _, done = outbox.due()
    outbox.sent(done)
    outbox.postpone(a, "HTTP 500", 1_000)
    clock[0] += 1_000
    (a,) = outbox.due()
    outbox.postpone(a, "HTTP 429", 2 * module.LEASE_MS, everything=True)
    clock[0] += 2 * module.LEASE_MS - 1
    assert list(outbox.due()) == [], "Slack asked for a pause"
    clock[0] += 1
    assert [message.text for message in outbox.due()] == ["a", "b"]
    assert [row[4] for row in _rows(engine)] == ["HTTP 429", None, None]


def test_rows_that_are_long_done_are_dropped(engine: Engine, outbox: Outbox, clock: list[int]) -> None:
    for run_id in ("sent", "given up", "waiting"):
        outbox.add("d", run_id, 0, run_id)
    sent, given_up, _ = outbox.due()
    outbox.sent(sent)
    outbox.give_up(given_up, "HTTP 404")
    clock[0] += module.KEPT_MS + 1
    since = outbox.since_ms()
    outbox.prepare()
    assert [row[0] for row in _rows(engine)] == ["waiting"]
    assert outbox.since_ms() == since


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "30"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 00:01:30 GMT"}, 90.0),
        ({"Retry-After": "Sat, 28 Feb 2026 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "1e9"}, 86_400.0),
        ({"Retry-After": "soon"}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers: dict[str, str], expected: float | None) -> None:
    assert wait_seconds(headers, datetime(2026, 3, 1, tzinfo=UTC)) == expected


def test_pauses_double_up_to_an_hour_and_are_never_shorter_than_asked() -> None:
    assert [retry_seconds(tries, 15.0) for tries in (1, 2, 3, 9, 5_000)] == [15.0, 30.0, 60.0, 3600.0, 3600.0]
    assert retry_seconds(1, 15.0, 40.0) == 40.0 and retry_seconds(3, 15.0, 40.0) == 60.0
