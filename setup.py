"""Puts files that lie beside the packages into the wheel; pyproject.toml holds everything else.

A clone keeps recipes and DAG files where people look for them. An installed wheel keeps them inside its packages,
where ``stages.contracts.shipped`` finds them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"configs/*.yaml": "stages/recipes", "dags/*.py": "sluice_airflow/dags"}
"""Where files of the source tree go in the wheel."""


class BuildWithShippedFiles(build_py):
    """Builds the packages, then copies the shipped files into them."""

    def run(self) -> None:
        """Build into ``build_lib``; an editable installation reads the source tree and needs no copy."""
        super().run()
        if self.editable_mode:
            return
        for pattern, folder in SHIPPED.items():
            files = sorted(Path().glob(pattern))
            if not files:
                raise FileNotFoundError(f"{pattern}: no such file in {Path.cwd()}; the wheel would lack {folder}")
            target = Path(self.build_lib, folder)
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, target / file.name)


setup(cmdclass={"build_py": BuildWithShippedFiles})
