"""What the server knows and nobody else may: passwords, its own paths, the list of releases."""

import io
import logging

import pytest

from serving.errors import public_reason
from serving.events import EventLog
from serving.release_source import DirectorySource
from stages.contracts.errors import ConfigError, DataError, ReleaseError, SluiceError, TransientError
from stages.contracts.redacted_errors import redact_logs

PASSWORD = "hunter2"
PATH = "/srv/sluice/serving"
RELEASES = ("20240101-0123456789ab", "20240102-0123456789ab")
WORDS = (
    f"no alias 'champion' in postgresql://sluice:{PASSWORD}@db:5432/mlflow; registered are "
    f"{dict(enumerate(RELEASES, 1))}; {PATH}/events.jsonl: No space left on device"
)
KINDS = (TransientError, ReleaseError, ConfigError, DataError, SluiceError, ConnectionError, RuntimeError, OSError)


class Source(DirectorySource):
    """A directory at first, later a registry that fails with too many words."""

    kind = None

    def wanted(self):
        if self.kind is not None:
            try:
                raise ValueError(f"cause: {WORDS}")
            except ValueError as cause:
                raise self.kind(WORDS) from cause
        return super().wanted()


@pytest.fixture
def source(releases):
    return Source(releases["alpha"])


@pytest.fixture
def service(source, start):
    return start(source)


def tells_nothing(text):
    for secret in (PASSWORD, PATH, "postgresql", "db:5432", *RELEASES, "Traceback"):
        assert secret not in text


def is_in_the_log(caplog):
    assert f"{PATH}/events.jsonl: No space left on device" in caplog.text
    assert "postgresql://sluice:***@db:5432/mlflow" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_readiness_gives_the_kind_of_a_fault_and_the_log_its_words(service, source, client, caplog, kind):
    source.kind = kind
    assert service.refresh() is False
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"]) == (200, True)
    tells_nothing(ready.text)
    assert ready.json()["refresh_error"] == public_reason(kind(""))
    is_in_the_log(caplog)
    source.kind = None
    assert service.refresh() is False
    assert client.get("/readyz").json()["refresh_error"] is None


def test_the_kinds_of_faults_can_be_told_apart():
    reasons = {kind: public_reason(kind(WORDS)) for kind in KINDS}
    assert "registry" in reasons[TransientError] and "not whole" in reasons[ReleaseError]
    assert reasons[ConnectionError] == reasons[TransientError]
    assert len({reasons[kind] for kind in (TransientError, ReleaseError, ConfigError, DataError, RuntimeError)}) == 5


@pytest.mark.parametrize(("kind", "status"), [(TransientError, 503), (ReleaseError, 500), (RuntimeError, 500)])
def test_a_post_that_fails_shows_nothing_of_the_server(client, monkeypatch, caplog, kind, status):
    def fails(*_):
        raise kind(WORDS)

    monkeypatch.setattr(EventLog, "append", fails)
    response = client.post("/v1/events", json={"user_id": "u", "item_id": "i1", "signal": "click"})
    assert response.status_code == status
    tells_nothing(response.text)
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    is_in_the_log(caplog)


@pytest.mark.parametrize("kind", KINDS)
def test_a_funnel_that_fails_shows_nothing_of_the_server(service, client, monkeypatch, caplog, kind):
    def fails(*_):
        raise kind(WORDS)

    monkeypatch.setattr(service.funnel.release.candidate, "search", fails)
    for path, status in (("/v1/recommendations?user_id=u1", 503 if kind is TransientError else 500), ("/readyz", 503)):
        response = client.get(path)
        assert response.status_code == status
        tells_nothing(response.text)
    is_in_the_log(caplog)


@pytest.mark.parametrize("logger", ["sluice", "uvicorn.error", "any.library"])
def test_no_logger_of_the_process_writes_a_password(logger):
    before, stream = logging.getLogRecordFactory(), io.StringIO()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger(logger)
    log.addHandler(handler)
    try:
        redact_logs()
        log.error("away: %s", WORDS)
        log.error("away: %(uri)s", {"uri": WORDS})
        log.error(ConnectionError(WORDS))
        log.error("token=%s", PASSWORD)
        try:
            raise ConnectionError(WORDS)
        except ConnectionError:
            log.exception("with a traceback", stack_info=True)
        log.error("no exception", exc_info=True)
    finally:
        log.removeHandler(handler)
        logging.setLogRecordFactory(before)
    text = stream.getvalue()
    assert PASSWORD not in text
    assert (text.count("sluice:***@db"), text.count("Traceback"), text.count("token=***")) == (4, 1, 1)
    assert "ConnectionError: no alias" in text and "Stack (most recent call last)" in text
