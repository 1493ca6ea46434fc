"""The files that come with this version beside its code: recipes and DAG files.

An installed wheel holds them inside its packages, a clone in folders of their own (``setup.py`` copies them).
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
"""The directory that holds the packages: ``site-packages``, or the clone."""


def _folder(in_wheel: str, in_clone: str) -> Path:
    packed = _ROOT / in_wheel
    return packed if packed.is_dir() else _ROOT / in_clone


RECIPES = _folder("stages/recipes", "configs")
"""The folder of the recipes, one YAML file each."""

DAGS = _folder("sluice_airflow/dags", "dags")
"""The folder of the DAG files."""

IN_CLONE = (_ROOT / "Makefile").is_file()
"""Whether this runs from a clone, where ``make serve`` and the like work."""
