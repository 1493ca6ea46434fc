"""Gives copies of the packages the machine code of this checkout, so that they need not compile the same code again."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from stages.contracts.compiled import CACHE, code_version
from stages.contracts.compiled_cache import NAME, share

REPOSITORY = Path(__file__).resolve().parents[1]


def hand_on(packages: Path, kept: Path) -> Path | None:
    """Copy what this process's environment has compiled; return the copy's directory, None where there is nothing.

    It fits, since the code, numba and the processor are the same: the version that names the directory is made of the
    code and numba, and numba compares the processor and the module's content. numba 0.68 keeps what the modules of a
    directory compile in one that is named by its path; where another numba does not, the copies compile again, which
    ``tests/architecture`` notices.

    Args:
        packages: directory that holds a copy of ``stages`` whose compiled functions are unchanged.
        kept: place of the copies' compiled code, such as ``var/cache`` of an environment.
    """
    if CACHE is None:
        return None
    target = kept / NAME / CACHE.name
    target.mkdir(parents=True)
    assert code_version(packages / "stages") == CACHE.name, f"{packages} holds other compiled functions"
    for module in (REPOSITORY / "stages").rglob("*.py"):
        own, compiled = _folder(packages / module.relative_to(REPOSITORY)), CACHE / _folder(module)
        if compiled.is_dir() and not (target / own).exists():
            shutil.copytree(compiled, target / own)
    share(target)
    return target


def _folder(module: Path) -> str:
    """Return numba's name of the directory that keeps what the modules beside this one compile."""
    folder = module.parent
    return f"{folder.name}_{hashlib.sha1(str(folder).encode(), usedforsecurity=False).hexdigest()}"
