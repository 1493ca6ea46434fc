"""What a step hands to the workflow: small JSON that fits in an Airflow XCom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.contracts.config import Config


class StageResult(Config):
    """The outcome of one step.

    Attributes:
        step: name of the step, such as ``dataset`` or ``train_light``.
        path: directory (absolute) that holds everything the step wrote.
        fingerprint: hex sha256 over the step's inputs and configuration; equal fingerprints
            mean equal work, so a second run re-uses the directory.
        metrics: small named numbers for logs, reports and MLflow.
        info: small named strings and lists (versions, reasons, counts by kind).
        reused: whether an earlier run had already finished this step.
        seconds: wall-clock seconds that the work took when it was done.
    """

    step: str
    path: str
    fingerprint: str
    metrics: dict[str, float] = {}
    info: dict[str, Any] = {}
    reused: bool = False
    seconds: float = 0.0

    @property
    def directory(self) -> Path:
        """The step's directory as a path."""
        return Path(self.path)
