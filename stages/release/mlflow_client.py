"""The only access to MLflow: quiet, without telemetry, with our own error classes."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlparse

from stages.contracts.errors import ConfigError, RegistryError, ReleaseError, SluiceError, TransientError
from stages.contracts.redaction import redacted

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow takes "true" here, not "1"
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its default, 7, hides for four minutes that a server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # its default, 120 s, four times, hides a silent server
}
_PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED")
_SHUT = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND")
_SQLITE_FILE = re.compile(r"sqlite(?:\+\w+)?:///(?!file:|:memory:)(?P<path>[^?]+)")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_LOCK_SECONDS = 2.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 10.0
_MAX_VALUE, _MAX_KEY = 6000, 250


def load_mlflow() -> None:
    """Import MLflow with our settings, which it reads on import; values that the user has set are kept."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # MLflow 3.17 maps its tables with options that SQLAlchemy 2.1 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow  # noqa: F401


def open_client(tracking_uri: str, create: bool = True) -> Any:
    """Return an ``MlflowClient`` for a tracking and registry store.

    Args:
        tracking_uri: of the store.
        create: whether to create a store on this machine that is missing. Only writers should: an empty store in the
            place of a lost one would answer that there is no release.

    Raises:
        ConfigError: if the store's kind is unknown.
        RegistryError: if it is missing and must not be created.
        TransientError: if the store does not answer.
    """
    load_mlflow()
    file = _sqlite_file(tracking_uri)
    if create and file is not None:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
    if not create:
        _check_there(tracking_uri, file)
    _check_listening(tracking_uri)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        try:
            return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        except UnsupportedModelRegistryStoreURIException as error:
            raise ConfigError(f"tracking_uri = {redacted(tracking_uri)!r}: {error}") from None
        except Exception as error:  # noqa: BLE001 - a database's driver raises its own kinds
            raise TransientError(f"MLflow at {redacted(tracking_uri)} does not answer: {_first_line(error)}") from None


def opened_late(tracking_uri: str) -> bool:
    """Return whether opening a store accesses it: yes for a database or a directory, no for a server."""
    return urlparse(tracking_uri).scheme.partition("+")[0] in _DATABASES or local_path(tracking_uri) is not None


def _sqlite_file(tracking_uri: str) -> Path | None:
    found = _SQLITE_FILE.fullmatch(tracking_uri.partition("?")[0])
    return Path(found["path"]) if found else None


def _check_there(tracking_uri: str, file: Path | None) -> None:
    """Refuse a store on this machine that is missing or locked, before MLflow creates it or waits for it."""
    directory = local_path(tracking_uri)
    if directory is not None and not directory.is_dir():
        raise RegistryError(f"tracking_uri = {tracking_uri!r}: no such directory, hence no champion; a run makes it")
    if file is None:
        return
    if not file.is_file():
        raise RegistryError(f"tracking_uri = {tracking_uri!r}: no such file, hence no champion; a run makes it")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True, timeout=_LOCK_SECONDS)) as opened:
            found = opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'registered_models'").fetchone()
    except sqlite3.OperationalError as error:  # locked, or not readable
        raise TransientError(f"MLflow at {tracking_uri} does not answer: {error}") from None
    except sqlite3.DatabaseError as error:
        raise RegistryError(f"tracking_uri = {tracking_uri!r}: {error}") from None
    if found is None:
        raise RegistryError(f"tracking_uri = {tracking_uri!r}: holds no MLflow registry, hence no champion")


def _check_listening(tracking_uri: str) -> None:
    """Refuse at once a database whose server is away: MLflow 3.17 would try ten times, for 100 s, and has no setting.

    An address that is not parsed here (several hosts, a socket's path) is left to the driver.
    """
    parsed = urlparse(tracking_uri)
    usual = _PORTS.get(parsed.scheme.partition("+")[0])
    try:
        host, port = parsed.hostname, parsed.port or usual
    except ValueError:  # the port is not a number, as with several hosts
        return
    if usual is None or not host:
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise TransientError(f"MLflow at {redacted(tracking_uri)} does not answer: {error}") from None


@contextmanager
def mlflow_errors(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into ours.

    Args:
        doing: what was tried, such as ``register release 20240101-…``.

    Raises:
        TransientError: if the store is locked, busy or away.
        RegistryError: if it refuses access.
        ReleaseError: if what was asked for does not exist or is refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except SluiceError:
        raise
    except MlflowException as error:
        kinds = {**dict.fromkeys(_PASSING, TransientError), **dict.fromkeys(_SHUT, RegistryError)}
        kind = kinds.get(error.error_code, ReleaseError)
        raise kind(f"MLflow could not {doing}: {_first_line(error)}") from error
    except Exception as error:
        # A database's or an object store's driver raises its own kinds: locked, refused, cut off.
        raise TransientError(f"MLflow could not {doing}: {_first_line(error)}") from error


def download(source: str, into: Path, tracking_uri: str) -> Path:
    """Copy an artifact directory below ``into`` and return its path.

    Raises:
        ReleaseError: if the artifacts do not exist.
        TransientError: if the artifact store does not answer.
    """
    from mlflow.artifacts import download_artifacts

    with mlflow_errors(f"download {source}"):
        return Path(download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=tracking_uri))


def local_path(source: str) -> Path | None:
    """Return the directory behind a ``file:`` URI or a plain path, None for any other store."""
    parsed = urlparse(source)
    return Path(unquote(parsed.path)) if parsed.scheme in {"", "file"} else None


def artifact_uri(root: str | None) -> str | None:
    """Return ``root`` as a URI; a plain path becomes an absolute ``file:`` URI."""
    if root is None or "://" in root:
        return root
    return Path(root).absolute().as_uri()


def legal_name(name: str) -> str:
    """Return a metric's or parameter's name as MLflow allows it: ``ndcg@10`` becomes ``ndcg_at_10``."""
    return re.sub(r"[^\w.\- /]", "_", name.replace("@", "_at_"))[:_MAX_KEY]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested parameters to ``{"a.b": "value"}``; values too long for MLflow are cut."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[legal_name(name)] = str(value)[:_MAX_VALUE]
    return flat


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return redacted(lines[0]) if lines else type(error).__name__
