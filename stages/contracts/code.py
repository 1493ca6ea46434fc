"""Digests of source files: they identify the code that made an output, so that outputs of other code are not reused.

A digest covers the names of modules and the bytes of their files. It is the same on every machine, in every version of
Python and wherever the package is installed. A checkout that rewrites line ends has other bytes. Libraries and the
package's version are not part of it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from stages.contracts.errors import ConfigError
from stages.contracts.files import canonical_json, sha256_file, sha256_text

PACKAGE = Path(__file__).resolve().parents[1]
"""The directory of ``stages``."""


@cache
def code_digest(*modules: str, imports: bool = True) -> str:
    """Return a hex sha256 over modules and all modules of ``stages`` that they import, directly or indirectly.

    Imports inside functions count, and so do modules that are named in a string, such as one that a subprocess runs.

    Args:
        modules: full names below ``stages``; a package means every module in it.
        imports: False leaves out what they import.

    Raises:
        ConfigError: if there is no such module.
    """
    names, roots = [name for module in modules for name in _with_contents(module)], {"stages": PACKAGE.parent}
    if not imports:
        return _digest({name: path for name in names if (path := _file(name, roots)) is not None})
    return _digest(_closure(names, roots, {}))


def body_code(body: Callable[..., Any]) -> str:
    """Return ``module_code`` of the module that defines a step's body.

    Raises:
        ConfigError: if the body's module has no file, so that its code cannot be identified.
    """
    while isinstance(body, partial):
        body = body.func
    return module_code(body.__module__)


def module_code(module: str) -> str:
    """Return the digest of a module and of what it imports from its own top-level package and from ``stages``.

    Args:
        module: its full name; a module outside ``stages`` must have been imported already.

    Raises:
        ConfigError: if there is no such module, or it has no file.
    """
    if module.partition(".")[0] == "stages":
        return code_digest(module)
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        raise ConfigError(f"module {module}: the module has no file; the code of a step must come from one")
    path = Path(file).resolve()
    above = path.parents[module.count(".") + (path.stem == "__init__")]
    roots = {"stages": PACKAGE.parent, module.partition(".")[0]: above}
    return _digest(_closure([module], roots, {module: path}))


def _digest(files: dict[str, Path]) -> str:
    # ``stages/__init__.py`` holds only the version, which no result depends on.
    return sha256_text(canonical_json({name: sha256_file(path) for name, path in files.items() if name != "stages"}))


def _closure(names: list[str], roots: dict[str, Path], given: dict[str, Path]) -> dict[str, Path]:
    """Return the file of every module that can be reached from ``names``, by module.

    Args:
        names: where to start; names without a file are skipped.
        roots: parent directory of each top-level package that is followed.
        given: files of modules that cannot be found by name, such as a script.
    """
    files: dict[str, Path] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in files:
            continue
        path = given.get(name) or _file(name, roots)
        if path is None:
            continue
        files[name] = path
        waiting += _mentioned(name, path)
    return files


def _file(name: str, roots: dict[str, Path]) -> Path | None:
    parts = name.split(".")
    if parts[0] not in roots or not all(part.isidentifier() for part in parts):
        return None
    place = roots[parts[0]].joinpath(*parts)
    found = [path for path in (place / "__init__.py", place.with_name(f"{place.name}.py")) if path.is_file()]
    return found[0] if found else None


@cache
def _mentioned(name: str, path: Path) -> tuple[str, ...]:
    """Return the names in a file that may be modules, and their parent packages, which an import runs as well."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    found = {name}
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        found.update(_named_by(node, package))
    for module in list(found):
        parts = module.split(".")
        found.update(".".join(parts[:length]) for length in range(1, len(parts)))
    return tuple(sorted(found - {name}))


def _named_by(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
        yield node.value.partition(":")[0]  # "module:Class" is a name of a module, too


def _with_contents(module: str) -> list[str]:
    """Return the module, or every module of a package."""
    place = PACKAGE.parent.joinpath(*module.split("."))
    inside = sorted(place.rglob("*.py")) if place.is_dir() else []
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in inside]
    found = [name.removesuffix(".__init__") for name in names] or [module]
    if _file(found[0], {"stages": PACKAGE.parent}) is None:
        raise ConfigError(f"{module}: no such module below {PACKAGE}")
    return found
