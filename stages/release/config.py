"""Configuration of the registry; importing it is cheap, since entry points read it."""

from __future__ import annotations

from pydantic import ConfigDict

from stages.contracts.config import Config


class RegistryConfig(Config):
    """Where releases are registered.

    Attributes:
        tracking_uri: of MLflow's tracking and model registry, such as ``sqlite:////path/mlflow.db``.
        artifact_root: directory or URI for the experiment's artifacts; None leaves it to the server.
        model_name: registered model of the whole funnel.
        experiment: MLflow experiment that holds the runs.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

    tracking_uri: str
    artifact_root: str | None = None
    model_name: str = "sluice-funnel"
    experiment: str = "sluice"
