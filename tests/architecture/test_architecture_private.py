"""Only listed modules use what a library, or another class of ours, keeps to itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("stages", "serving", "cli", "benchmarks", "dags")
OWN = ("self", "cls")
NAMED_TUPLES = ("_replace", "_fields", "_asdict", "_make")
"""Public names: they begin with an underscore so that no field has the same name."""
ALLOWED = {
    # A cache of the exporter's own list of functions. The module says which torch it fits, and does without on others.
    "stages/candidate/export/onnx_export.py": {"_internal", "_registration"},
    # Documented under this name: the only way to end a process whose threads hang.
    "stages/contracts/deadline.py": {"os._exit"},
    # An annotation alone: the standard library has no public name for the type of `zlib.decompressobj`.
    "stages/warehouse/readers/blocks.py": {"zlib._Decompress"},
}
"""Uses that are meant, by file."""


def is_private(name: str) -> bool:
    return name.startswith("_") and name not in NAMED_TUPLES and not (name.startswith("__") and name.endswith("__"))


def private_uses(source: str) -> Iterator[str]:
    """Yield each private name that code takes from anything but ``self`` and ``cls``.

    Attributes, names given as text to ``getattr`` and its kin, imports of private names and from private modules.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in OWN):
                yield ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [*(getattr(node, "module", None) or "").split("."), *_imported(node)]
            yield from (name for name in names if is_private(name))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("getattr", "setattr", "hasattr", "delattr", "attrgetter"):
                texts = (each.value for each in node.args if isinstance(each, ast.Constant))
                yield from (text for text in texts if isinstance(text, str) and is_private(text))


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    return [name for alias in node.names for name in alias.name.split(".")]


def files() -> list[str]:
    found = (path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)


def test_nobody_uses_what_another_keeps_to_itself() -> None:
    paths = files()
    assert len(paths) > 100
    found = {path: set(private_uses((REPOSITORY / path).read_text(encoding="utf-8"))) for path in paths}
    assert {path: uses for path, uses in found.items() if uses} == ALLOWED


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("tables._embedding_shardings", ["tables._embedding_shardings"]),
        ("model.module.embeddings._lookups[0].x", ["model.module.embeddings._lookups"]),
        ("self._own, cls._own, other.__class__, __version__", []),
        ("self.tables._input_dists", ["self.tables._input_dists"]),
        ("getattr(tables, '_output_dists', None)", ["_output_dists"]),
        ("operator.attrgetter('_a')(x)", ["_a"]),
        ("getattr(x, 'a', '_b')", ["_b"]),
        ("rows._replace(start=0), Rows._fields, rows._start", ["rows._start"]),
        ("import torch._utils", ["_utils"]),
        ("from torch.distributed._shard.sharded_tensor import ShardedTensor", ["_shard"]),
        ("from a import _b as c, d", ["_b"]),
        ("from __future__ import annotations", []),
        ("from . import a", []),
    ],
)
def test_private_uses_are_found(code: str, uses: list[str]) -> None:
    assert list(private_uses(code)) == uses
