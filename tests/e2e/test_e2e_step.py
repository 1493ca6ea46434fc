"""A step is added to the main job: by a module with its body and one row of the table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import pipeline
from stages.contracts.files import read_json
from stages.contracts.snapshot import Snapshot
from stages.job import Job, Step
from tests.compiled_code import hand_on
from tests.homes import copy_of
from tests.own_step import COUNTS_FILE, CountConfig
from tests.time_limits import finished
from tests.trees import add_step, changed_files, copy_of_tree

PACKAGES = ("stages", "serving", "cli")
Sluice = Callable[[str], dict[str, str]]


def with_row(at_least: int) -> Job:
    row = Step(
        "count_signals",
        "tests.own_step:count_signals",
        {"snapshot": "dataset"},
        configure=lambda run: CountConfig(at_least=at_least * run.recipe.funnel.max_k),
    )
    table = list(pipeline.JOB)
    return Job("main", [*table[:3], row, *table[3:]], pipeline.JOB.find_recipe)


def test_a_row_more_is_a_step_more(job: Any) -> None:
    runs = Path(job.settings.home) / "runs" / "count_signals"
    before = set(runs.glob("[0-9a-f]*"))
    first = with_row(1).run_all(job.settings, until="count_signals")
    assert [name for name, result in first.items() if not result.reused] == ["count_signals"]
    made = first["count_signals"]
    assert set(runs.glob("[0-9a-f]*")) - before == {made.directory}
    assert made.directory.name == made.fingerprint[:16]
    assert read_json(made.directory / "config.json") == {"at_least": job.settings.recipe["funnel"]["max_k"]}
    counts = read_json(made.directory / COUNTS_FILE)
    assert sum(counts.values()) == len(Snapshot(job.results["dataset"].directory).events())
    again = with_row(1).run_all(job.settings, until="count_signals")
    assert {name: result.fingerprint for name, result in again.items()} == {
        name: result.fingerprint for name, result in first.items()
    }
    assert all(result.reused for result in again.values())
    other = with_row(2).run_all(job.settings, until="count_signals")
    assert [name for name, result in other.items() if not result.reused] == ["count_signals"]
    assert other["count_signals"].fingerprint != made.fingerprint


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with a step more."""
    root = copy_of_tree(tmp_path_factory.mktemp("tree"), *PACKAGES)
    add_step(root)
    return root


@pytest.fixture(scope="module")
def sluice(job: Any, tree: Path) -> Sluice:
    """Run that copy's main job in a copy of the small world's home, and return what became of each step."""
    (tree / "recipe.yaml").write_text(yaml.safe_dump(job.settings.recipe), encoding="utf-8")
    environ = {
        **job.environ,
        **copy_of(Path(job.settings.home), tree / "home"),
        "SLUICE_CONFIG": str(tree / "recipe.yaml"),
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": str(tree / "compiled"),
    }
    hand_on(tree, tree / "compiled")

    def run(until: str) -> dict[str, str]:
        command = [sys.executable, "-m", "cli", "run", "--data", "synthetic", "--until", until]
        done = finished(command, env=environ, cwd=tree)
        assert done.returncode == 0, done.stderr
        lines = [line.split(": ", 1) for line in done.stderr.replace("[sluice] ", "").splitlines() if ": " in line]
        return {step: how.split(" ", 1)[0].rstrip(",") for step, how in lines if how.startswith(("re-used", "done"))}

    return run


def worked(said: dict[str, str]) -> set[str]:
    return {step for step, how in said.items() if how == "done"}


def test_a_step_takes_two_files(tree: Path) -> None:
    assert changed_files(tree, *PACKAGES) == {"stages/evaluation/own_step.py", "stages/pipeline.py"}


@pytest.mark.slow
def test_it_runs_is_reused_and_runs_again_when_its_code_changes(tree: Path, sluice: Sluice) -> None:
    before = sluice("count_signals")
    assert list(before) == [*pipeline.STEPS[: pipeline.STEPS.index("register")], "count_signals"]
    assert worked(before) == {"count_signals"}
    assert worked(sluice("count_signals")) == set()
    for file, step in (
        ("evaluation/own_step.py", "count_signals"),
        ("candidate/linear/baselines.py", "rank_baselines"),
    ):
        path = tree / "stages" / file
        text = path.read_text(encoding="utf-8")
        path.write_text(f"{text}\nOTHER = 1\n", encoding="utf-8")
        assert worked(sluice(step)) == {step}
        path.write_text(text, encoding="utf-8")
    assert worked(sluice("count_signals")) == set()
