"""No circle of imports: whoever changes a module, or a package, knows which ones stand above it."""

from __future__ import annotations

from functools import cache
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = ("stages", "serving", "cli", "sluice", "benchmarks", "sluice_airflow")


@cache
def graph_of(package: str) -> grimp.ImportGraph:
    return grimp.build_graph(package, cache_dir=None)


def imports_of(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Return what each module imports."""
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def rooms_of(imports: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """Return which others each child of a package imports: a child is a module, or a package with all its contents."""
    depth = package.count(".") + 2

    def room(module: str) -> str:
        return ".".join(module.split(".")[:depth])

    inside = [module for module in imports if module.startswith(f"{package}.")]
    found: dict[str, set[str]] = {room(module): set() for module in inside}
    for module in inside:
        found[room(module)].update(room(other) for other in imports[module] if other.startswith(f"{package}."))
    return {name: others - {name} for name, others in found.items()}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, the first one again at the end; nothing if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_reaches_itself(package: str) -> None:
    imports = imports_of(graph_of(package))
    assert len(imports) > 2
    assert circle(imports) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_reaches_itself(package: str) -> None:
    """Between the children of each package, such as ``stages.dataset.items`` and ``stages.dataset.config``."""
    imports = imports_of(graph_of(package))
    packages = {module.rpartition(".")[0] for module in imports} - {""}
    assert package in packages
    assert {name: found for name in packages if (found := circle(rooms_of(imports, name)))} == {}


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_a_circle_of_packages_is_found_where_no_module_reaches_itself() -> None:
    imports = {
        "top": set(),
        "top.config": {"top.items.config"},
        "top.items.config": {"other.config"},
        "top.items.decide": {"top.config", "top.items.config"},
    }
    assert circle(imports) == []
    assert rooms_of(imports, "top") == {"top.config": {"top.items"}, "top.items": {"top.config"}}
    assert set(circle(rooms_of(imports, "top"))) == {"top.config", "top.items"}
    assert circle(rooms_of(imports, "top.items")) == []
