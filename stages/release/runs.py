"""One MLflow run per release: parameters, metrics, tags and the release directory as artifacts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.manifest import ReleaseManifest
from stages.contracts.ranking_stages import RANKING_STAGES
from stages.contracts.redaction import redacted
from stages.contracts.summaries import TOWER_FILE
from stages.release.mlflow_client import flatten, legal_name, mlflow_errors

_PARAMS_A_BATCH = 100


def log_release(
    client: Any,
    experiment_id: str,
    manifest: ReleaseManifest,
    release_dir: Path,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    reports: Sequence[Path] = (),
) -> Any:
    """Log a release and return its finished run, with all of the artifacts in it.

    A run that an earlier registration of the same release left unfinished is used again: its values are kept, missing
    ones are added, artifacts are overwritten.

    Args:
        client: an ``MlflowClient``.
        experiment_id: where a new run goes.
        manifest: of the release.
        release_dir: the verified release.
        metrics: by name; characters that MLflow refuses are replaced.
        params: nested parameters.
        reports: files that go below ``reports``.
    """
    run = _unfinished_run(client, experiment_id, manifest.release_id) or client.create_run(
        experiment_id,
        run_name=manifest.release_id,
        tags={
            "release_id": manifest.release_id,
            "data_fingerprint": manifest.data_fingerprint,
            "tower_version": manifest.tower_version,
        },
    )
    _log_missing(client, run, metrics, flatten(params))
    client.log_artifacts(run.info.run_id, str(release_dir), "release")
    for path in reports:
        client.log_artifact(run.info.run_id, str(path), "reports")
    client.set_terminated(run.info.run_id)
    return client.get_run(run.info.run_id)


def lineage(manifest: ReleaseManifest) -> list[str]:
    """Return the suffix of the registered model of every stage that a release has."""
    models = {"candidate": TOWER_FILE, **{f"{name}-ranker": stage.model_file for name, stage in RANKING_STAGES.items()}}
    return [suffix for suffix, file in models.items() if file in manifest.parts]


def page_of_runs(client: Any, experiment: str, server: str) -> str:
    """Return the address of MLflow's page that lists the runs of an experiment; nothing is written.

    MLflow 3 opens an experiment on its traces unless the address asks for machine learning; a funnel has no traces. No
    tag of the experiment changes that.

    Args:
        client: an ``MlflowClient``.
        experiment: name of the experiment.
        server: address of the MLflow server that shows the page, such as ``http://127.0.0.1:5000``.

    Raises:
        ConfigError: if ``server`` is not an address of a server.
        ReleaseError: if there is no such experiment, or it was deleted.
        TransientError: if MLflow does not answer.
    """
    base = _server_address(server)
    with mlflow_errors(f"look up the experiment {experiment}"):
        found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage != "active":
        state = "no such experiment" if found is None else "the experiment was deleted"
        raise ReleaseError(f"experiment = {experiment!r}: {state} in MLflow, hence no runs to show; a run makes it")
    return f"{base}/#/experiments/{found.experiment_id}?workflowType=machine_learning"


def _server_address(server: str) -> str:
    """Return an address without its closing slash; one with a user is refused, so that no password is printed."""
    allowed = "allowed is an address such as http://127.0.0.1:5000"
    try:
        parts = urlsplit(server)
        whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or an open bracket
        whole = False
    if not whole:
        raise ConfigError(f"server = {redacted(server)!r}: {allowed}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"server = {redacted(server)!r}: user, query and fragment are not allowed; {allowed}")
    return server.rstrip("/")


def _unfinished_run(client: Any, experiment_id: str, release_id: str) -> Any | None:
    runs = client.search_runs(
        [experiment_id], filter_string=f"tags.release_id = '{release_id}'", order_by=["attributes.start_time ASC"]
    )
    return runs[0] if runs else None


def _log_missing(client: Any, run: Any, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    """Add what the run does not have yet; MLflow refuses to change a parameter."""
    from mlflow.entities import Metric, Param

    now_ms = int(time.time() * 1000)  # MLflow's own bookkeeping: no result depends on it
    new_params = [Param(name, value) for name, value in params.items() if name not in run.data.params]
    named = {legal_name(name): float(value) for name, value in metrics.items()}
    new_metrics = [Metric(name, value, now_ms, 0) for name, value in named.items() if name not in run.data.metrics]
    for start in range(0, len(new_params), _PARAMS_A_BATCH):
        client.log_batch(run.info.run_id, params=new_params[start : start + _PARAMS_A_BATCH])
    for start in range(0, len(new_metrics), 1000):
        client.log_batch(run.info.run_id, metrics=new_metrics[start : start + 1000])
