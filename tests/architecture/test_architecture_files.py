"""Rules for every tracked file: import rules, length, no machine paths."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|farm|root|home/\w+|Users/\w+|opt/(?:wheels|pypi))(?:/|\b(?!\w))")
MAX_LINES = 400
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_imports_follow_the_rules() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [script, "--no-logo", "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_place_on_one_machine(tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(REPOSITORY)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("cp " + "/wo" + "rk/main/x .", True),
        ('open("' + "/ro" + 'ot/.cache")', True),
        ("/ho" + "me/ada/data", True),
        ("runs/wo" + "rk/x", False),
        ("GET /workers", False),
        ("/rooted", False),
    ],
)
def test_the_pattern_knows_machine_paths(text: str, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) == is_one


def test_python_files_stay_short(tracked: list[Path]) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in tracked if path.suffix == ".py"}
    assert {str(path.relative_to(REPOSITORY)): n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_no_tracked_file_is_large(tracked: list[Path]) -> None:
    assert [str(path) for path in tracked if path.stat().st_size > MAX_BYTES] == []
