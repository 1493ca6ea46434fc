"""The one door to MLflow: quiet, without telemetry, with our errors."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from stages.contracts.errors import ConfigError, ReleaseError, TransientError

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow takes "true" here, not "1"
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # its own 7 hide a server that is away for four minutes
}
_PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED")
_SQLITE = "sqlite:///"
_MAX_VALUE, _MAX_KEY = 6000, 250


def open_client(tracking_uri: str) -> Any:
    """Return an ``MlflowClient`` for a tracking and registry store.

    MLflow reads its switches when it is imported, so they are set before; values that the user has
    set are kept.

    Raises:
        ConfigError: if the store's kind is unknown.
        TransientError: if the store does not answer.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if tracking_uri.startswith(_SQLITE):
        Path(tracking_uri.removeprefix(_SQLITE)).absolute().parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # MLflow 3.17 maps its tables with options that SQLAlchemy 2.1 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

        try:
            return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        except UnsupportedModelRegistryStoreURIException as error:
            raise ConfigError(f"tracking_uri = {tracking_uri!r}: {error}") from None
        except MlflowException as error:
            raise TransientError(f"MLflow at {tracking_uri} does not answer: {_first_line(error)}") from None


@contextmanager
def mlflow_errors(doing: str) -> Iterator[None]:
    """Turn MLflow's errors into ours.

    Args:
        doing: what was tried, such as ``register release 20240101-…``.

    Raises:
        TransientError: if the store is locked, busy or away.
        ReleaseError: if what was asked for does not exist or is refused.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        kind = TransientError if error.error_code in _PASSING else ReleaseError
        raise kind(f"MLflow could not {doing}: {_first_line(error)}") from error


def download(source: str, into: Path, tracking_uri: str) -> Path:
    """Copy an artifact directory below ``into`` and return where it lies.

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
    return lines[0] if lines else type(error).__name__
