"""What a step hands to the workflow: small JSON that fits in an Airflow XCom."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
        disk_bytes: size of the files in the step's directory; 0 for a step that keeps none.
    """

    step: str
    path: str
    fingerprint: str
    metrics: dict[str, float] = {}
    info: dict[str, Any] = {}
    reused: bool = False
    seconds: float = 0.0
    disk_bytes: int = 0

    @property
    def directory(self) -> Path:
        """The step's directory as a path."""
        return Path(self.path)


@dataclass(frozen=True)
class StepEnd:
    """What a log line says of a step that has ended.

    Attributes:
        step: its name.
        seconds: that it took, also where an earlier run did it.
        disk_bytes: size of its files.
        reused: whether an earlier run had done it.
    """

    step: str
    seconds: float
    disk_bytes: int
    reused: bool

    def __str__(self) -> str:
        how = f"re-used, had taken {self.seconds:.1f} s" if self.reused else f"done in {self.seconds:.1f} s"
        return f"{self.step}: {how}" + (f", {self.disk_bytes:,} bytes" if self.disk_bytes else "")

    @classmethod
    def of(cls, result: StageResult) -> StepEnd:
        """Return what is said of a result."""
        return cls(result.step, result.seconds, result.disk_bytes, result.reused)

    @classmethod
    def parse(cls, line: str) -> StepEnd | None:
        """Return what a line says that begins with the text of an end; None for any other line."""
        found = _END.match(line)
        if found is None:
            return None
        step, how, seconds, size = found.groups()
        return cls(step, float(seconds), int((size or "0").replace(",", "")), how == "re-used, had taken")


_END = re.compile(r"(\w+): (re-used, had taken|done in) ([\d.]+) s(?:, ([\d,]+) bytes)?")
