"""Copies of the source tree that tests may change, and the content of a directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.contracts.files import sha256_file

ROOT = Path(__file__).resolve().parents[1]

ROW = """        Step("count_signals", "stages.evaluation.own_step:count_signals", _SNAPSHOT),
"""
BEFORE = """        Step(
            "register",
"""
"""Of the main job's table."""


def copy_of_tree(target: Path, *names: str) -> Path:
    """Copy packages of this repository below a new folder."""
    for name in names:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def add_step(tree: Path) -> None:
    """Add the step ``count_signals`` to the main job of a copy: a module, and a row of the table."""
    shutil.copyfile(ROOT / "tests" / "own_step.py", tree / "stages" / "evaluation" / "own_step.py")
    table = tree / "stages" / "pipeline.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(BEFORE) == 1
    table.write_text(text.replace(BEFORE, ROW + BEFORE), encoding="utf-8")


def changed_files(tree: Path, *names: str) -> set[str]:
    """Return which files of a copy are not those of this repository."""
    found = set()
    for name in names:
        for path in (*(ROOT / name).rglob("*"), *(tree / name).rglob("*")):
            file = path.relative_to(ROOT if path.is_relative_to(ROOT) else tree)
            if path.is_dir() or "__pycache__" in file.parts:
                continue
            mine, copied = ROOT / file, tree / file
            if not (mine.is_file() and copied.is_file() and mine.read_bytes() == copied.read_bytes()):
                found.add(file.as_posix())
    return found


def sha256_tree(directory: Path) -> dict[str, str]:
    """Return ``{relative posix path: sha256}`` of every file below ``directory``, sorted by path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in files}
