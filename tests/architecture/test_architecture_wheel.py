"""What the wheel holds, and that its packages import where there is nothing but the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "stages": "stages",
    "serving": "serving",
    "cli": "cli",
    "sluice": "sluice",
    "sluice_airflow": "dags/sluice_airflow",
}
"""Where each lies in the source tree."""
SHIPPED = {"stages/recipes": "configs/*.yaml", "sluice_airflow/dags": "dags/*.py"}
"""Files beside the packages, by their folder in the wheel."""
TYPED = {"sluice/py.typed", "serving/py.typed", "stages/py.typed"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        str(package / path.relative_to(REPOSITORY / folder))
        for package, folder in ((Path(name), folder) for name, folder in PACKAGES.items())
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    shipped = {
        f"{folder}/{path.name}": path for folder, pattern in SHIPPED.items() for path in REPOSITORY.glob(pattern)
    }
    assert held == source | set(shipped) | TYPED
    assert len(shipped) > 5
    assert {name: archive.read(name) for name in shipped} == {name: path.read_bytes() for name, path in shipped.items()}


def test_the_wheel_carries_its_licence_command_and_airflow_plugin(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    assert "Apache License" in archive.read(names["licenses/LICENSE"]).decode()
    entries = archive.read(names["entry_points.txt"]).decode()
    assert "sluice = cli.main:main" in entries
    assert "[airflow.plugins]\nsluice = sluice_airflow.plugin:SluicePlugin" in entries


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_from_the_installed_wheel(installed: Path, tmp_path: Path, package: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); import {package}; print({package}.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == installed / package / "__init__.py"


def test_the_command_explains_itself_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(installed)!r}); from cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
