"""One small world, run through every step once, for all tests that need a whole funnel."""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from stages import pipeline
from stages.contracts.results import StageResult
from stages.settings import Settings, load_settings
from tests import time_limits
from tests.homes import copy_of
from tests.shared import Shared

ROOT = Path(__file__).resolve().parents[1]
hypothesis.settings.register_profile("suite", deadline=None)  # how long an example takes is up to the machine
hypothesis.settings.load_profile("suite")
STARTED = ROOT / "tests" / "started"
gc.set_threshold(100_000, 50, 50)  # as in the processes that tests start, see its sitecustomize.py
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTED), os.environ.get("PYTHONPATH")]))
LONGEST = (
    "architecture/test_architecture_images.py",
    "e2e/test_e2e_demo.py",
    "e2e/test_e2e_compile_ahead.py",
    "candidate/test_candidate_checkpoint.py",
    "dags/test_dags_alerts.py",
    "candidate/test_candidate_train.py",
    "dags/test_dags_scheduler.py",
    "architecture/test_architecture_library.py",
    "candidate/test_candidate_sharding.py",
    "e2e/test_e2e_step.py",
    "dags/test_dags_secrets.py",
    "candidate/test_candidate_encoders.py",
    "candidate/test_candidate_recipe_runs.py",
    "e2e/test_e2e_refresh.py",
    "candidate/test_candidate_user_tables.py",
    "e2e/test_e2e_serving.py",
    "candidate/test_candidate_warm_start.py",
    "e2e/test_e2e_code.py",
    "e2e/test_e2e_splits.py",
    "candidate/test_candidate_model.py",
    "contracts/test_contracts_code.py",
    "dags/test_dags_refresh.py",
    "candidate/test_candidate_index.py",
    "benchmarks/test_retrieval_tolerances.py",
    "e2e/test_e2e_champion.py",
    "cli/test_cli_secrets.py",
    "serving/test_serving_registry_process.py",
    "candidate/test_candidate_bad_input.py",
    "dags/test_dags_commands.py",
    "dags/test_dags_params.py",
    "serving/test_serving_process.py",
)
"""Files that take the longest, in this order: they begin first, so that the processes end together."""
STARTING = tuple(ROOT / "tests" / name for name in ("architecture", "benchmarks", "candidate", "dags", "e2e", "sluice"))
"""Directories whose tests start trainings, jobs, Airflow or environments of images."""
STARTED_BY = frozenset({"job", "trained", "migrated", "wheel"})
"""Fixtures that start the same: the first test that asks for one of them waits for it."""
TINY: dict[str, Any] = {
    "world": {"n_users": 300, "n_items": 400, "n_events": 40_000, "days": 20, "n_topics": 8, "n_categories": 4},
    "funnel": {"candidate_k": 100, "light_k": 40, "max_k": 20, "objective": {"click": 1.0, "like": 0.1}},
    "candidate": {
        "model": {"dimension": 16, "category_dimension": 8, "hidden": [32]},
        "training": {"epochs": 8, "batch_size": 256},
    },
    "light_ranker": {"max_rounds": 60, "threads": 1},
    # So fast that it makes no difference to the light ranker: what is served then depends on the verdict.
    "heavy_ranker": {"max_epochs": 4, "learning_rate": 0.01, "threads": 1, "ensemble": 1},
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first (`make test` keeps this order, --no-loadscope-reorder), and set limits of time."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        starts = any(item.path.is_relative_to(folder) for folder in STARTING)
        if starts or STARTED_BY & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.timeout(time_limits.STARTED_SECONDS))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let what a test waits for end before pytest ends the test."""
    marker = item.get_closest_marker("timeout")
    time_limits.begin(float(marker.args[0] if marker else item.config.getini("timeout") or 0))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Directories that are made once for all test processes; see ``tests.shared``."""
    directories = Shared.of(tmp_path_factory)
    yield directories
    directories.check()


@pytest.fixture(scope="session")
def job(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small world's run, promoted: a copy of this process, in whose home tests may go on."""
    whole = shared("job", run_job)
    home = tmp_path_factory.mktemp("job") / "home"
    copy_of(whole / "home", home)
    told = (whole / "results.json").read_text(encoding="utf-8").replace(str(whole / "home"), str(home))
    results = {step: StageResult.model_validate(result) for step, result in json.loads(told).items()}
    environ = environment(home)
    return Job(load_settings(environ, data="synthetic", overrides=TINY), environ, results)


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of one rank in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fbgemm and torchrec warn about themselves while they are imported
        from tests.candidate.one_rank import process_group
    with process_group():
        yield


@pytest.fixture
def here(one_rank: None) -> Iterator[None]:
    """Let the candidate step train in this process: the start of the launcher and its rank takes longer than that."""
    from tests.candidate.one_rank import in_this_process

    with in_this_process():
        yield


def run_job(directory: Path) -> None:
    """Run the small world in a home below ``directory``, and keep what each step returned beside it."""
    settings = load_settings(environment(directory / "home"), data="synthetic", overrides=TINY)
    results = pipeline.run_all(settings)
    told = {step: result.model_dump(mode="json") for step, result in results.items()}
    (directory / "results.json").write_text(json.dumps(told), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """What the small world's recipe lays over ``configs/demo.yaml``."""
    return TINY
