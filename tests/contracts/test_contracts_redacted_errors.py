"""Errors of libraries and log records lose their secrets; their types and tracebacks stay."""

from __future__ import annotations

import io
import logging
import traceback
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from stages.contracts.errors import TransientError
from stages.contracts.redacted_errors import raise_redacted, redact_error, redact_logs
from stages.contracts.redaction import environment_secrets, redacted
from stages.release.config import RegistryConfig
from stages.settings import Settings

ADDRESS = "postgresql://bob:hunter22@db:5432/x"


class Stubborn(Exception):
    """Its words do not come from its arguments."""

    def __str__(self) -> str:
        return f"cannot reach {ADDRESS}"


def _raised() -> BaseException:
    try:
        try:
            raise KeyError(ADDRESS)
        except KeyError as cause:
            raise OSError(f"refused: {ADDRESS}") from cause
    except OSError as error:
        error.add_note(f"tried {ADDRESS}")
        return error


def test_an_error_its_cause_and_its_notes_are_cleaned_in_place() -> None:
    error = _raised()
    assert "hunter22" in "".join(traceback.format_exception(error))
    assert redact_error(error) is error
    shown = "".join(traceback.format_exception(error))
    assert "hunter22" not in shown
    assert shown.count("bob:***@db:5432/x") == 3
    assert "KeyError" in shown and "in _raised" in shown


def test_an_error_that_cannot_be_cleaned_is_replaced_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"Stubborn: cannot reach postgresql://bob:\*\*\*@db") as found:
        try:
            raise Stubborn
        except Stubborn as error:
            raise_redacted(error)
    assert "hunter22" not in "".join(traceback.format_exception(found.value))


def test_a_clean_error_is_raised_as_it_is() -> None:
    original = ValueError(3, "three")
    with pytest.raises(ValueError, match="three") as found:
        try:
            raise original
        except ValueError as error:
            raise_redacted(error)
    assert found.value is original and original.args == (3, "three")


def test_our_own_errors_never_hold_a_secret() -> None:
    assert str(TransientError(f"{ADDRESS}: refused")) == "postgresql://bob:***@db:5432/x: refused"


@pytest.mark.parametrize("variable", ["SLUICE_WAREHOUSE_URL", "SLUICE_MLFLOW_URI"])
@pytest.mark.parametrize(
    ("address", "leaked"),
    [
        ("postgresql://bob:p@hunter22@db/x", 'could not translate host name "hunter22@db"'),
        ("postgresql://bob:p%40hunter22@db/x", "password p@hunter22 is wrong"),
        ("http://bob:p/hunter22@mlflow:5000", "invalid port: hunter22"),
        ("postgresql://db/x?user=bob&password=hunter22", "wrong password: 'hunter22'"),
    ],
)
def test_pieces_of_the_environments_secrets_are_found_on_their_own(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str, leaked: str
) -> None:
    monkeypatch.setenv(variable, address)
    assert "hunter22" not in redacted(leaked)
    assert redacted("a hunter22x is another word; bob, db and mlflow stay") == (
        "a hunter22x is another word; bob, db and mlflow stay"
    )
    monkeypatch.delenv(variable)
    assert redacted(leaked) == leaked


def test_an_ordinary_word_as_a_password_hides_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_WAREHOUSE_URL", "postgresql://sluice:sluice@db/x")
    assert environment_secrets() == frozenset()
    assert redacted("[sluice] ingest: started; postgresql://sluice:sluice@db/x") == (
        "[sluice] ingest: started; postgresql://sluice:***@db/x"
    )


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    before, own = logging.getLogRecordFactory(), logging.getLogger("some.library")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    own.addHandler(handler)
    redact_logs()
    redact_logs()
    yield stream
    own.removeHandler(handler)
    logging.setLogRecordFactory(before)


def test_every_loggers_records_are_cleaned_whoever_handles_them(stream: io.StringIO) -> None:
    log = logging.getLogger("some.library")
    log.error("tried %s, %d times: %s", ADDRESS, 3, OSError(ADDRESS))
    log.error("%(where)s", {"where": ADDRESS})
    try:
        raise _raised()
    except OSError:
        log.exception("in vain")
    log.error(Stubborn())
    shown = stream.getvalue()
    assert "hunter22" not in shown
    assert "tried postgresql://bob:***@db:5432/x, 3 times: postgresql://bob:***@db" in shown
    assert "Traceback" in shown and "in _raised" in shown


def test_settings_show_no_password_and_their_errors_quote_none() -> None:
    registry = RegistryConfig(tracking_uri="http://bob:hunter22@mlflow:5000")
    settings = Settings(home="h", warehouse_url=ADDRESS, registry=registry, now_ms=0)
    assert settings.warehouse_url == ADDRESS, "what opens the warehouse needs it"
    for shown in (repr(settings), str(settings), f"{registry}"):
        assert "hunter22" not in shown and "bob:***@" in shown
    for values in ({"warehouse_url": ADDRESS}, {"home": "h", "warehouse_url": [ADDRESS], "registry": 1, "now_ms": 0}):
        with pytest.raises(ValidationError) as found:
            Settings.model_validate(values)
        assert "hunter22" not in str(found.value)
