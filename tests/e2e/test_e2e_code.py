"""A feature's code changes: what depends on it runs again, and nobody serves, refreshes or promotes the old release."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.homes import copy_of
from tests.time_limits import finished

ROOT = Path(__file__).resolve().parents[2]
STARTED = ROOT / "tests" / "started"
Changed = Callable[..., "subprocess.CompletedProcess[str]"]
LINE = "class FeatureMaker:"
"""Of ``stages/features/ranking.py``; a line of its own is put before it."""


@pytest.fixture(scope="module")
def changed(job: Any, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    """Run the command line of a package whose features differ, in a copy of the small world's home."""
    root = tmp_path_factory.mktemp("code")
    for name in ("stages", "serving", "cli"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    ranking = root / "stages" / "features" / "ranking.py"
    text = ranking.read_text(encoding="utf-8")
    assert text.count(LINE) == 1
    ranking.write_text(text.replace(LINE, f"OTHER = 1\n\n\n{LINE}"), encoding="utf-8")
    environ = {
        **job.environ,
        **copy_of(Path(job.settings.home), root / "home"),
        "PYTHONPATH": f"{STARTED}{os.pathsep}{root}",
        "NUMBA_CACHE_DIR": str(root / "compiled"),
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(job.settings.recipe), encoding="utf-8")
    environ["SLUICE_CONFIG"] = str(root / "recipe.yaml")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *arguments]
        return finished(command, env=environ, cwd=root)

    return run


def test_the_steps_that_compute_features_run_again_and_no_other(changed: Changed) -> None:
    done = changed("run", "--until", "train_light")
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in done.stderr.replace("[sluice] ", "").splitlines() if ": " in line]
    said = {step: how for step, how in lines if how.startswith(("re-used", "done"))}
    again = {step for step, how in said.items() if how.startswith("done")}
    assert {"dataset", "train_candidate", "build_index", "retrieve"} <= set(said) - again
    assert {"build_examples", "train_light"} <= again


@pytest.mark.parametrize(
    "arguments", [("serve", "--port", "0"), ("recommend", "somebody"), ("refresh",), ("release", "promote", "1")]
)
def test_the_old_release_is_refused(changed: Changed, arguments: tuple[str, ...]) -> None:
    refused = changed(*arguments)
    assert refused.returncode == 4, refused.stdout + refused.stderr
    assert "its features were computed by other code" in refused.stderr
    assert "train again with this version, or use the release with the version that made it" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_it_is_used_with_the_code_that_made_it(job: Any) -> None:
    command = [sys.executable, "-m", "cli", "recommend", "somebody", "-k", "3"]
    done = finished(command, env=job.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
