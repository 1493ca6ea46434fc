"""The rows of a benchmark while its models run: figures, seconds, and why a model has no row."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stages.contracts.errors import SluiceError


class Rows:
    """What is known of each model so far.

    Args:
        models: by name; the ``parts`` of a model are the names of the models that it is made of.

    Attributes:
        values: figures of each run, by model and metric.
        seconds: of all runs, by model.
        left_out: why a model has no row, by model.
        failed: models that are left out because they failed after they had begun.
    """

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self.values: dict[str, dict[str, list[float]]] = {name: {} for name in models}
        self.seconds = dict.fromkeys(models, 0.0)
        self.left_out: dict[str, str] = {}
        self.failed: list[str] = []

    def leave_out(self, name: str, why: str | None) -> None:
        """Note why a model has no row, if there is a reason."""
        if why is not None:
            self.left_out[name] = " ".join(why.split())
            print(f"{name}: left out: {self.left_out[name]}", file=sys.stderr)

    @contextmanager
    def running(self, name: str, run: str = "") -> Iterator[None]:
        """Time a model; one that fails or runs out of memory is left out, and so are models that are made of it."""
        started = time.perf_counter()
        try:
            yield
        except (SluiceError, MemoryError) as error:
            why = f"out of memory: {error}" if isinstance(error, MemoryError) else str(error)
            self._fail(name, f"failed, {run}: {why}" if run else f"failed: {why}")
        else:
            self.seconds[name] += time.perf_counter() - started
            said = "  ".join(f"{metric} {runs[-1]:.4f}" for metric, runs in self.values[name].items())
            print(f"{run}  {name:14s} {said}  {self.seconds[name]:.1f} s", file=sys.stderr)

    def add(self, name: str, figures: Mapping[str, float]) -> None:
        """Note the figures of a run."""
        for metric, value in figures.items():
            self.values[name].setdefault(metric, []).append(value)

    def _fail(self, name: str, why: str) -> None:
        self.failed.append(name)
        self.leave_out(name, why)
        for other, model in self._models.items():
            if name in getattr(model, "parts", ()) and other not in self.left_out:
                self.failed.append(other)
                self.leave_out(other, f"its {name} {why}")
