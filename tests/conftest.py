"""One small world, run through every step once, for all tests that need a whole funnel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages import pipeline
from stages.contracts.results import StageResult
from stages.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {
    "world": {"n_users": 300, "n_items": 400, "n_events": 40_000, "days": 20, "n_topics": 8, "n_categories": 4},
    "funnel": {"candidate_k": 100, "light_k": 40, "max_k": 20, "objective": {"click": 1.0, "like": 0.1}},
    "candidate": {
        "model": {"dimension": 16, "category_dimension": 8, "hidden": [32]},
        "training": {"epochs": 8, "batch_size": 256},
    },
    "light_ranker": {"max_rounds": 60, "threads": 1},
    "heavy_ranker": {"max_epochs": 4, "threads": 1, "ensemble": 1},
    "evaluation": {"bootstrap_samples": 200, "bypass": "never"},
}


@dataclass(frozen=True)
class Job:
    """A finished run: its settings, the environment that leads to them, and every step's result."""

    settings: Settings
    environ: dict[str, str]
    results: dict[str, StageResult]

    @property
    def release(self) -> Path:
        """The assembled release."""
        return self.results["assemble"].directory / "release"


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment whose home is ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLUICE_", "AIRFLOW"))}
    return {**kept, "SLUICE_HOME": str(home), "SLUICE_CONFIGS": str(ROOT / "configs"), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small world's run, promoted."""
    environ = environment(tmp_path_factory.mktemp("job") / "home")
    settings = load_settings(environ, data="synthetic", overrides=TINY)
    return Job(settings, environ, pipeline.run_all(settings))


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """What the small world's recipe lays over ``configs/demo.yaml``."""
    return TINY
