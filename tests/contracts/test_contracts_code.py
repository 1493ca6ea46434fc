"""Digests of code: they change with what a module imports, however it does, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from stages import pipeline, refresh
from stages.contracts import code
from stages.contracts.code import body_code, code_digest
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import write_json
from stages.contracts.release_code import SHARED, check_code, shared_code
from stages.contracts.steps import Outcome, run_step
from stages.contracts.tower_code import TOWER, tower_code

ROOT = Path(__file__).resolve().parents[2]
STARTED = ROOT / "tests" / "started"
STEPS = tuple(sorted({step.module.removeprefix("stages.") for step in (*pipeline.JOB, *refresh.JOB)}))
"""Modules of the steps' functions, of both jobs."""

DIGESTS = f"""
import json, sys
from stages.contracts.code import code_digest
from stages.contracts.release_code import shared_code
from stages.contracts.tower_code import tower_code
found = {{name: code_digest("stages." + name) for name in {STEPS}}}
print(json.dumps({{**found, "shared": shared_code(), "tower": tower_code()}}))
"""


def run(program: str, package: Path) -> dict[str, str]:
    """Run a program with ``package`` as the place of ``stages`` and return the JSON that it prints."""
    environ = {**os.environ, "PYTHONPATH": f"{STARTED}{os.pathsep}{package}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, cwd=package, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of ``stages``."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def own() -> dict[str, str]:
    found = {name: code_digest(f"stages.{name}") for name in STEPS}
    return {**found, "shared": shared_code(), "tower": tower_code()}


@pytest.fixture
def changed(package: Path, own: dict[str, str]) -> Callable[[str], set[str]]:
    """Return which digests change when a file of the copy does."""

    def change(file: str) -> set[str]:
        path = package / "stages" / file
        before = path.read_bytes()
        path.write_bytes(before + b"\n# changed\n")
        try:
            found = run(DIGESTS, package)
        finally:
            path.write_bytes(before)
        return {name for name, digest in found.items() if digest != own[name]}

    return change


def test_a_digest_is_the_same_wherever_the_package_lies(package: Path, own: dict[str, str]) -> None:
    assert run(DIGESTS, package) == own
    assert len(set(own.values())) > 10


@pytest.mark.parametrize(
    ("file", "inside", "outside"),
    [
        ("features/ranking.py", {"features.build", "shared"}, {"candidate.training.step", "dataset.build", "tower"}),
        (
            "features/history.py",
            {"features.build", "candidate.training.step", "candidate.retrieval.step", "shared", "tower"},
            {},
        ),
        ("candidate/scorer.py", {"candidate.retrieval.step", "features.build", "shared"}, {"light_ranker.train"}),
        (
            "candidate/onnx_towers.py",
            {"candidate.training.step", "candidate.refresh.vectors", "shared", "tower"},
            {"dataset.build"},
        ),
        # Found by its name in the table of generators.
        (
            "candidate/generators/content.py",
            {
                "candidate.retrieval.fit_generators",
                "candidate.retrieval.step",
                "candidate.refresh.generators",
                "shared",
            },
            {"dataset.build", "light_ranker.train", "candidate.training.step", "tower"},
        ),
        ("heavy_ranker/scorer.py", {"features.build", "shared"}, {"dataset.build", "candidate.training.step", "tower"}),
        # Imported inside a function, and run by its name in a subprocess.
        (
            "candidate/export/user_tower.py",
            {"candidate.training.step"},
            {"candidate.retrieval.step", "shared", "tower"},
        ),
        ("candidate/training/worker.py", {"candidate.training.step"}, {"candidate.retrieval.step", "shared", "tower"}),
        (
            "warehouse/selection/conditions.py",
            {"dataset.build"},
            {"features.build", "candidate.training.step", "shared"},
        ),
        ("light_ranker/train.py", {"light_ranker.train"}, set(STEPS) - {"light_ranker.train"}),
        ("contracts/tables.py", {*STEPS, "shared", "tower"}, {}),
        ("__init__.py", set(), {*STEPS, "shared", "tower"}),
    ],
)
def test_a_digest_changes_with_what_it_covers_and_nothing_else(
    changed: Callable[[str], set[str]], file: str, inside: set[str], outside: set[str]
) -> None:
    found = changed(file)
    assert set(inside) <= found
    assert not found & set(outside)


def test_a_steps_code_is_that_of_the_module_that_it_declares(own: dict[str, str]) -> None:
    for step in (*pipeline.JOB, *refresh.JOB):
        assert step.code == own[step.module.removeprefix("stages.")], step.name
    assert {step.name for step in pipeline.JOB if not step.kept} == {"ingest", "register", "promote"}
    assert {step.name for step in refresh.JOB if not step.kept} == {"champion", "ingest", "register", "promote"}


@pytest.mark.parametrize(
    "step",
    [
        "dataset.build",
        "sufficiency.report",
        "candidate.training.step",
        "heavy_ranker.train",
        "registry_steps",
        "sources",
    ],
)
def test_whatever_importing_a_step_loads_is_covered(step: str) -> None:
    """What Python itself loads is the oracle."""
    program = f"import json, sys; import stages.{step}; print(json.dumps({{name: '' for name in sys.modules}}))"
    loaded = {name for name in run(program, ROOT) if name.startswith("stages.")}
    covered = code._closure([f"stages.{step}"], {"stages": ROOT}, {})
    assert loaded and loaded <= set(covered)


def test_a_step_that_writes_a_digest_down_runs_again_when_it_changes() -> None:
    roots = {"stages": ROOT}
    for step, noted in (("features.build", SHARED), ("candidate.training.step", TOWER)):
        covered = code._closure([f"stages.{step}"], roots, {})
        names = [name for module in noted for name in code._with_contents(module)]
        assert set(code._closure(names, roots, {})) <= set(covered)


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(ConfigError, match=r"stages\.nowhere: no such module"):
        code_digest("stages.nowhere")


class _Nothing(Config):
    pass


BODY = """
def body(config, inputs, directory):
    from helper import text
    (directory / "out").write_text(text)
    return {}, {}
"""


def test_a_step_whose_code_changed_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose body lies outside of the package; what ran before is found again with its code."""
    program = """
import json, sys
from pathlib import Path
from stages.contracts.config import Config
from stages.contracts.steps import run_step
from steps.own import body
result = run_step("own", "1", body, Config(), {}, Path("runs"))
print(json.dumps({"reused": result.reused, "path": result.path}))
"""
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "__init__.py").touch()
    helper, body = tmp_path / "steps" / "helper.py", tmp_path / "steps" / "own.py"
    helper.write_text("text = 'a'\n")
    body.write_text(BODY.replace("from helper", "from .helper"))
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    first, again = run(program, tmp_path), run(program, tmp_path)
    assert (first["reused"], again["reused"]) == (False, True)
    helper.write_text("text = 'b'\n")
    other = run(program, tmp_path)
    assert other["reused"] is False
    assert (tmp_path / other["path"] / "out").read_text() == "b"
    helper.write_text("text = 'a'\n")
    assert run(program, tmp_path) == again


def test_a_body_is_known_by_its_file(tmp_path: Path) -> None:
    def body(size: int, config: _Nothing, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        return {"size": float(size)}, {}

    assert body_code(partial(body, 1)) == body_code(body) != body_code(write_json)
    scope: dict[str, object] = {"__name__": "nowhere"}
    exec(BODY, scope)  # what is typed at a prompt has no file
    with pytest.raises(ConfigError, match=r"module nowhere: the module has no file"):
        run_step("own", "1", scope["body"], _Nothing(), {}, tmp_path)  # type: ignore[arg-type]


TOWER_JSON = {
    "tower_version": "t",
    "item_vectors_sha256": "v",
    "n_items": 1,
    "dim": 1,
    "config": {"features": {}},
}


@pytest.mark.parametrize(
    ("schema", "tower", "words"),
    [
        ({"code": "0" * 64}, {}, r"features were computed by other code \(000000000000…\).*train again"),
        ({"code": None}, {}, "features were computed by a version that did not note its code"),
        ({}, {"code": "1" * 64}, r"tower's inputs were computed by other code \(111111111111…\)"),
        (["names"], {}, r"feature_schema\.json is not a JSON object"),
    ],
)
def test_a_release_of_other_code_is_refused(tmp_path: Path, schema: object, tower: dict[str, str], words: str) -> None:
    own = {"feature_schema": {"hash": "h", "code": shared_code()}, "tower": {**TOWER_JSON, "code": tower_code()}}
    for name, changes in (("feature_schema", schema), ("tower", tower)):
        described = {**own[name], **changes} if isinstance(changes, dict) else changes
        write_json(tmp_path / f"{name}.json", described)
    with pytest.raises(ReleaseError, match=words):
        check_code(tmp_path)
    for name, described in own.items():
        write_json(tmp_path / f"{name}.json", described)
    check_code(tmp_path)
