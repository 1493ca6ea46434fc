"""The wheel, the Dockerfile as data, and environments that hold one locked set and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.compiled_code import hand_on
from tests.shared import Shared
from tests.time_limits import finished

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Target:
    """One target of the Dockerfile: everything it inherits is resolved."""

    environment: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    user: str = "root"
    instructions: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="session")
def targets() -> dict[str, Target]:
    """Targets of the Dockerfile, by name."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, Target] = {}
    current = Target()
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            parent = found.get(base, Target())
            current = found[name] = Target(dict(parent.environment), list(parent.command), parent.user)
        elif word == "ENV":
            current.environment.update(pair.split("=", 1) for pair in rest.split())
        elif word == "CMD":
            current.command = json.loads(rest)
        elif word == "USER":
            current.user = rest
        current.instructions.append((word, rest))
    return found


@pytest.fixture(scope="session")
def wheel(shared: Shared) -> Path:
    """The wheel."""
    (built,) = shared("wheel", build_wheel).glob("*.whl")
    return built


def build_wheel(directory: Path) -> None:
    """Build the wheel from a copy, so that the source tree stays as it is."""
    with TemporaryDirectory() as source:
        for name in ("stages", "serving", "cli", "sluice", "configs", "dags", "tests"):
            shutil.copytree(REPOSITORY / name, Path(source, name), ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
            shutil.copy(REPOSITORY / name, Path(source, name))
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), source]
        done = finished(command)
        assert done.returncode == 0, done.stdout + done.stderr


def site_of(venv: Path) -> Path:
    """Return the directory of an environment's packages."""
    (site,) = (venv / "lib").glob("python3*/site-packages")
    return site


@dataclass
class ImageMaker:
    """Makes virtual environments that hold what a target installs: a locked set and the wheel.

    The packages are linked file by file from the environment that runs the tests, so that this
    takes seconds, and what the set leaves out cannot be imported. They begin with the code that the
    environment of the tests has compiled, except for those of ``compiles``.
    """

    folder: Path
    wheel: Path

    def __call__(self, requirements: str) -> Path:
        venv = self.folder / requirements.removesuffix(".txt")
        if not venv.exists():
            self.make(venv, requirements)
            hand_on(site_of(venv), venv / "var" / "cache")
        return venv

    def compiles(self, requirements: str) -> Path:
        """Return an environment of its own without compiled code."""
        venv = self.folder / f"{requirements.removesuffix('.txt')}-compiles"
        self.make(venv, requirements)
        return venv

    def make(self, venv: Path, requirements: str) -> None:
        """Make the environment."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        site = site_of(venv)
        for line in (REPOSITORY / "requirements" / requirements).read_text(encoding="utf-8").split():
            self._link(line, site)
        command = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install", "--no-deps"]
        done = subprocess.run([*command, str(self.wheel)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _link(self, pin: str, site: Path) -> None:
        name, _, version = pin.partition("==")
        found = distribution(name)
        assert found.version.partition("+")[0] == version, f"{pin} is locked, {found.version} is installed"
        for file in found.files or ():
            target = Path(file.locate()).resolve()
            if ".." not in file.parts and target.exists():
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                if not (site / file).is_symlink():  # mlflow and mlflow-skinny hold the same files
                    (site / file).symlink_to(target)
            elif file.parts[-2:-1] == ("bin",) and target.exists():
                self._script(target, site.parents[2] / "bin" / file.name)

    def _script(self, source: Path, script: Path) -> None:
        first, _, rest = source.read_bytes().partition(b"\n")
        if first.startswith(b"#!") and b"python" in first:
            script.write_bytes(f"#!{script.parent / 'python'}\n".encode() + rest)
        elif not script.exists():
            shutil.copyfile(source, script)
        script.chmod(0o755)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> ImageMaker:
    return ImageMaker(tmp_path_factory.mktemp("images"), wheel)
