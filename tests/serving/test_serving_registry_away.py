"""A registry that is missing, locked, refusing or silent: the cached champion is served, nothing is made."""

import shutil
import socket
import sqlite3
import threading
from contextlib import closing

import pytest

from serving.config import ServeConfig
from serving.events import EventLog
from serving.release_source import RegistrySource
from serving.service import Service
from stages.contracts.deadline import Deadline
from stages.contracts.errors import RegistryError, TransientError
from stages.contracts.manifest import read_manifest
from stages.release.config import RegistryConfig
from stages.release.registry import ReleaseRegistry

CONFIG = ServeConfig(poll_seconds=0, clock="data", ready_users=2)


@pytest.fixture(scope="module")
def registered(build_once, seal_once, tmp_path_factory):
    """A home with two registered releases, the first one champion, which the cache holds."""
    home = tmp_path_factory.mktemp("home")
    registry = ReleaseRegistry(config_of(home))
    for number, tag in enumerate(("first", "second")):
        directory = build_once(home / tag, tag, number)
        seal_once(directory, f"20231114-{str(number) * 12}")
        registry.register(directory)
    registry.promote(1)
    registry.pull("champion", home / "cache")
    return home


@pytest.fixture
def home(registered, tmp_path):
    """A copy of it: artifacts stay where they are."""
    shutil.copytree(registered / "cache", tmp_path / "cache")
    shutil.copyfile(registered / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def config_of(home, uri=None):
    return RegistryConfig(tracking_uri=uri or f"sqlite:///{home}/mlflow.db", artifact_root=str(home / "artifacts"))


@pytest.fixture
def serve(home):
    """Return a function that starts a service on the home's registry, or on one at another address."""
    services = []

    def start(uri=None):
        source = RegistrySource(ReleaseRegistry(config_of(home, uri)), "champion", home / "cache")
        service = Service(source, EventLog(home / "data"), CONFIG)
        services.append(service)
        service.start()
        return service

    yield start
    for service in services:
        service.stop()


def id_of(service):
    return service.recommend("u1", 3).release_id


def test_a_missing_file_is_not_made_and_a_found_one_is_asked(home, serve):
    (home / "mlflow.db").rename(home / "away.db")
    service = serve()
    found = service.readiness()
    assert (found.ready, found.stale, found.release_id) == (True, True, "20231114-000000000000")
    assert str(home) not in (found.refresh_error or "")
    assert not (home / "mlflow.db").exists()
    (home / "away.db").rename(home / "mlflow.db")
    ReleaseRegistry(config_of(home)).promote(2)
    assert service.refresh() is True
    found = service.readiness()
    assert (found.stale, found.refresh_error, found.release_id) == (False, None, "20231114-111111111111")


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be looked at"])
def test_a_file_that_is_no_registry_is_left_alone(home, serve, content):
    (home / "mlflow.db").write_bytes(content)
    assert serve().readiness().stale
    assert (home / "mlflow.db").read_bytes() == content


def test_a_locked_file(home, serve):
    with closing(sqlite3.connect(home / "mlflow.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        service = serve()
        assert (service.readiness().ready, service.readiness().stale) == (True, True)
        writer.rollback()
    assert service.refresh() is False
    assert not service.readiness().stale


def test_a_registry_that_refuses(home, serve, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    service = serve(f"http://user:hunter2@127.0.0.1:{port}")
    found = service.readiness()
    assert (found.ready, found.stale) == (True, True)
    assert not {"hunter2", str(port), "127.0.0.1"} & set((found.refresh_error or "").replace("/", " ").split())


def test_nothing_known_and_no_registry(home, serve):
    (home / "mlflow.db").unlink()
    (home / "cache" / "alias-champion.json").unlink()
    with pytest.raises(RegistryError, match="no such file"):
        serve()


def test_a_damaged_copy_is_not_served(home, serve):
    (home / "mlflow.db").unlink()
    vectors = home / "cache" / "20231114-000000000000" / "item_vectors.npy"
    vectors.chmod(0o644)
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"?")
    with pytest.raises(Exception, match=r"item_vectors\.npy: sha256"):
        serve()


@pytest.mark.parametrize(
    "record", [b"", b"[]", b'{"release_id": "../first", "model": "sluice-funnel", "registry": ""}']
)
def test_a_damaged_record_is_no_record(home, serve, record):
    (home / "mlflow.db").unlink()
    (home / "cache" / "alias-champion.json").write_bytes(record)
    with pytest.raises(RegistryError):
        serve()


def test_another_model_is_another_champion(home):
    other = config_of(home).model_copy(update={"model_name": "other"})
    assert ReleaseRegistry(other).last_pulled("champion", home / "cache") is None
    moved = ReleaseRegistry(config_of(home, "http://127.0.0.1:9")).last_pulled("champion", home / "cache")
    assert read_manifest(moved).release_id == "20231114-000000000000"


def test_a_call_that_hangs_is_given_up_and_not_made_again():
    released, calls = threading.Event(), []

    def hang():
        calls.append(1)
        released.wait(60)
        return 7

    deadline = Deadline("the registry")
    with pytest.raises(TransientError, match="did not answer within"):
        deadline.call(hang, 0.05)
    with pytest.raises(TransientError, match="has not answered an earlier call"):
        deadline.call(hang, 0.05)
    released.set()
    deadline._thread.join()
    assert deadline.call(hang, 60) == 7
    with pytest.raises(KeyError, match="told"):
        deadline.call(lambda: {}["told"], 60)
    assert len(calls) == 2
