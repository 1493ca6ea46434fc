"""The locked dependency sets: complete, portable, and one set of versions for all."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "requirements"
SETS = ("cpu", "cuda", "serve", "train")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(name: str) -> dict[str, str]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1]
    return dict(line.split("==") for line in lines)


def _wanted(name: str) -> set[str]:
    """Names in an .in file and in those that it includes."""
    names = set()
    for line in (FOLDER / f"{name}.in").read_text(encoding="utf-8").splitlines():
        included = re.fullmatch(r"-r (\w+)\.in", line)
        if included:
            names |= _wanted(included.group(1))
        elif line and not line.startswith("#"):
            names.add(_canonical(re.match(r"[\w.-]+", line).group()))
    return names


@pytest.mark.parametrize("name", SETS)
def test_a_set_pins_public_releases_only(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), "no path, no URL, no local version"


@pytest.mark.parametrize("name", SETS)
def test_a_set_holds_all_that_it_was_asked_for(name: str) -> None:
    assert _wanted(name) - set(_pins(name)) == set()


@pytest.mark.parametrize("name", ["cuda", "serve", "train"])
def test_sets_agree_with_the_one_that_is_tested(name: str) -> None:
    tested = _pins("cpu")
    different = {package: pin for package, pin in _pins(name).items() if tested.get(package, pin) != pin}
    assert different == {}


def test_each_set_is_free_of_what_it_must_not_carry() -> None:
    assert not {"torch", "torchrec", "apache-airflow", "pytest"} & set(_pins("serve"))
    assert not {"pytest", "ruff", "fbgemm-gpu", "triton"} & set(_pins("train"))
    assert not {"fbgemm-gpu", "triton"} & set(_pins("cpu"))
    assert "fbgemm-gpu-cpu" not in _pins("cuda")
    assert "fbgemm-gpu" in _pins("cuda")


def test_the_wheel_asks_for_what_the_sets_pin() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    exact = [line.split("==") for line in project["dependencies"] if "==" in line]
    pins = _pins("serve")
    assert {name: pins.get(_canonical(name)) for name, _ in exact} == dict(exact)
    names = {_canonical(re.match(r"[\w.-]+", line).group()) for line in project["dependencies"]}
    assert names <= set(pins)
