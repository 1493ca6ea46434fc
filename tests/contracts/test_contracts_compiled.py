"""Where compiled code is kept, and that nothing is loaded that another user could have written."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from stages.contracts import compiled_cache
from stages.contracts.best_items import best_entries
from stages.contracts.compiled import code_version
from stages.contracts.compiled_cache import NAME, OLD_DAYS, Place, cache_directory, is_safe, places, share
from tests.compiled_code import hand_on
from tests.time_limits import finished
from tests.trees import copy_of_tree

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Directories of a fake environment, home and temporary directory, closed to others like the one they lie in."""
    for name in ("prefix", "home", "tmp"):
        (tmp_path / name).mkdir(mode=0o755)
    return tmp_path


def choices(world: Path, **environ: str) -> list[Place]:
    return places({"HOME": str(world / "home"), **environ}, world / "prefix", world / "tmp")


def kept(world: Path, version: str = VERSION, **environ: str) -> Path | None:
    return cache_directory(version, choices(world, **environ))


def in_prefix(world: Path, version: str = VERSION) -> Path:
    return world / "prefix" / "var" / "cache" / NAME / version


def in_home(world: Path, version: str = VERSION) -> Path:
    return world / "home" / ".cache" / NAME / version


@contextmanager
def unwritable(monkeypatch: pytest.MonkeyPatch, below: Path) -> Iterator[None]:
    """Let a directory look like one of another user, or on a read-only disk: permissions do not stop root."""
    access = os.access

    def allowed(path: Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path).is_relative_to(below))

    with monkeypatch.context() as patch:
        patch.setattr(compiled_cache.os, "access", allowed)
        yield


def store(directory: Path) -> None:
    """Leave a file as numba does, one directory down."""
    (directory / "features_1").mkdir()
    (directory / "features_1" / "apply.nbi").write_bytes(b"code")


def test_an_environment_keeps_its_code_for_all_homes(world: Path) -> None:
    assert kept(world) == in_prefix(world)
    assert kept(world, HOME=str(world)) == in_prefix(world)
    assert kept(world, HOME="", XDG_CACHE_HOME="relative") == in_prefix(world)
    assert list((world / "home").iterdir()) == []


def test_numbas_own_variable_comes_first(world: Path) -> None:
    assert kept(world, NUMBA_CACHE_DIR=str(world / "own")) == world / "own" / NAME / VERSION
    assert not in_prefix(world).exists()


def test_the_home_comes_next_and_then_a_directory_of_the_user(world: Path) -> None:
    (world / "prefix" / "var").write_text("in the way")
    assert kept(world) == in_home(world)
    assert kept(world, XDG_CACHE_HOME=str(world / "xdg")) == world / "xdg" / NAME / VERSION
    (world / "home2").write_text("no directory")
    expected = world / "tmp" / f"{NAME}-{os.getuid()}" / VERSION
    assert kept(world, HOME=str(world / "home2")) == expected
    assert [path.stat().st_mode & 0o777 for path in (expected, expected.parent)] == [0o700, 0o700]


def test_without_any_place_nothing_is_kept(world: Path) -> None:
    for path in (world / "prefix" / "var", world / "home" / ".cache", world / "tmp" / f"{NAME}-{os.getuid()}"):
        path.write_text("in the way")
    assert kept(world) is None


def test_code_that_cannot_be_added_to_is_copied_once(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(kept(world))
    share(in_prefix(world))
    with unwritable(monkeypatch, world / "prefix"):
        assert kept(world) == in_home(world)
        copied = in_home(world) / "features_1" / "apply.nbi"
        assert copied.read_bytes() == b"code"
        copied.write_bytes(b"more")
        assert kept(world) == in_home(world)
    assert copied.read_bytes() == b"more", "it is not copied again"
    assert in_home(world).stat().st_mode & 0o777 == 0o700
    assert [path.name for path in in_home(world).parent.iterdir()] == [VERSION], "no part of a copy is left"


def test_another_version_is_not_copied(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(kept(world))
    with unwritable(monkeypatch, world / "prefix"):
        assert kept(world, OTHER) == in_home(world, OTHER)
    assert list(in_home(world, OTHER).iterdir()) == []


def test_a_shared_version_can_be_read_by_all_and_written_by_one(world: Path) -> None:
    store(kept(world))
    file = in_prefix(world) / "features_1" / "apply.nbi"
    assert in_prefix(world).stat().st_mode & 0o777 == 0o700, "closed until it is shared"
    file.chmod(0o666)
    share(in_prefix(world))
    modes = [path.stat().st_mode & 0o777 for path in (in_prefix(world), file.parent, file)]
    assert modes == [0o755, 0o755, 0o644]
    assert kept(world) == in_prefix(world)


@pytest.mark.parametrize("opened", ["", "features_1", "features_1/apply.nbi", "..", "../.."])
@pytest.mark.parametrize("bit", [0o002, 0o020])
def test_a_directory_that_others_can_write_to_is_not_used(
    world: Path, monkeypatch: pytest.MonkeyPatch, opened: str, bit: int
) -> None:
    store(kept(world))
    share(in_prefix(world))
    path = in_prefix(world) / opened
    path.chmod(path.stat().st_mode | bit)
    with unwritable(monkeypatch, world / "prefix"):
        assert kept(world) == in_home(world)
    assert list(in_home(world).iterdir()) == [], "and nothing is copied from it"
    assert kept(world) == in_home(world)


@pytest.mark.parametrize("opened", ["home", "home/.cache"])
def test_a_home_that_others_can_write_to_is_not_used(world: Path, opened: str) -> None:
    (world / "prefix" / "var").write_text("in the way")
    (world / "home" / ".cache").mkdir()
    (world / opened).chmod(0o777)
    assert kept(world) == world / "tmp" / f"{NAME}-{os.getuid()}" / VERSION
    (world / opened).chmod(0o1777)
    assert kept(world) == in_home(world), "nobody can replace what lies in a sticky directory"


def test_a_directory_of_another_user_is_not_used(world: Path) -> None:
    mine = kept(world)
    store(mine)
    foreign = Place(mine.parent, frozenset({os.getuid() + 1}), world / "prefix")
    assert not is_safe(foreign, mine)
    assert cache_directory(VERSION, [foreign]) is None
    (home,) = [place for place in choices(world) if place.directory == in_home(world).parent]
    assert cache_directory(VERSION, [foreign, home]) == in_home(world)
    assert list(in_home(world).iterdir()) == []
    assert sorted(path.name for path in mine.parent.iterdir()) == [VERSION]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given", ["features_1/apply.nbi", "features_1", "", ".."])
def test_files_that_were_given_by_another_user_are_not_used(world: Path, given: str) -> None:
    store(kept(world))
    share(in_prefix(world))
    os.chown(in_prefix(world) / given, 12345, 12345)
    assert kept(world) == in_home(world)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_owner_of_the_environment_is_trusted(world: Path) -> None:
    store(kept(world))
    share(in_prefix(world))
    for path in (world / "prefix", *(world / "prefix").rglob("*")):
        os.chown(path, 12345, 12345)
    assert kept(world) == in_prefix(world)


@pytest.mark.parametrize("linked", ["", "features_1/apply.nbi"])
def test_links_are_not_followed(world: Path, linked: str) -> None:
    store(kept(world))
    share(in_prefix(world))
    path = in_prefix(world) / linked
    path.rename(world / "moved")
    path.symlink_to(world / "moved")
    assert kept(world) == in_home(world)


def test_a_process_whose_files_its_group_may_write_closes_the_directory(world: Path) -> None:
    share(kept(world))
    mask = os.umask(0o002)
    try:
        assert kept(world) == in_prefix(world)
    finally:
        os.umask(mask)
    assert in_prefix(world).stat().st_mode & 0o777 == 0o700


def test_versions_that_nobody_has_used_lately_are_removed(world: Path) -> None:
    old = time.time() - (OLD_DAYS + 1) * 86_400
    kept(world, OTHER)
    base = in_prefix(world).parent
    lately, part, strange, file = ((base / name) for name in ("a" * 16, f"{'b' * 16}.77", "kept", "c" * 16))
    for path in (lately, part, strange):
        path.mkdir()
    file.write_text("no directory")
    for path in (base / OTHER, part, strange, file):
        os.utime(path, (old, old))
    assert kept(world) == in_prefix(world)
    assert {path.name for path in base.iterdir()} == {VERSION, lately.name, strange.name, file.name}
    os.utime(in_prefix(world), (old, old))
    assert kept(world) == in_prefix(world)
    assert in_prefix(world).stat().st_mtime > old, "it is in use"


def test_many_processes_may_begin_at_once(world: Path) -> None:
    store(kept(world))
    share(in_prefix(world))
    (world / "home" / ".cache").mkdir()
    code = f"""
import os, sys
from pathlib import Path
from stages.contracts import compiled_cache
world, access = Path({str(world)!r}), os.access
compiled_cache.os.access = lambda path, mode: access(path, mode) and not (mode & os.W_OK and "prefix" in str(path))
sys.stdin.readline()
places = compiled_cache.places({{"HOME": str(world / "home")}}, world / "prefix", world / "tmp")
print(compiled_cache.cache_directory({VERSION!r}, places))
"""
    command, pipes = [sys.executable, "-c", code], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    begun = [subprocess.Popen(command, env=environ, **pipes) for _ in range(4)]
    told = [process.communicate("\n", timeout=60)[0].strip() for process in begun]
    assert told == [str(in_home(world))] * 4
    assert (in_home(world) / "features_1" / "apply.nbi").read_bytes() == b"code"
    assert [path.name for path in in_home(world).parent.iterdir()] == [VERSION]


def test_the_version_changes_with_every_module_that_is_compiled(tmp_path: Path) -> None:
    package = tmp_path / "stages"
    shutil.copytree(REPOSITORY / "stages", package, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_version(package)
    assert before == code_version(), "it does not depend on where the package lies"
    other = package / "contracts" / "errors.py"
    other.write_text(other.read_text() + "\n")
    assert code_version(package) == before
    callee = package / "contracts" / "top_k_kernels.py"  # called from other modules only
    callee.write_text(callee.read_text() + "\n")
    assert code_version(package) != before


def test_compiled_functions_use_no_constant_of_a_module_that_the_version_leaves_out() -> None:
    """numba writes constants into the code: one that changes elsewhere would leave old code in use."""
    found = {}
    for path in (REPOSITORY / "stages").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages.")
            for alias in node.names
        }
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_compiled(node)]
        for function in functions:
            names = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
            for name in names & set(imported):
                source = REPOSITORY / f"{imported[name].replace('.', '/')}.py"
                if "contracts.compiled import" not in source.read_text(encoding="utf-8"):
                    found[function.name] = name
        assert not functions or "contracts.compiled import" in path.read_text(encoding="utf-8")
    assert found == {}


def _is_compiled(function: ast.FunctionDef) -> bool:
    names = ("compiled", "in_place", "in_place_part", "in_place_once", "in_place_sum")
    return any(isinstance(each, ast.Name) and each.id in names for each in function.decorator_list)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_the_user_of_an_image_copies_what_root_has_compiled(world: Path) -> None:
    """With real permissions: as in the images, root compiles and another user runs."""
    store(kept(world))
    share(in_prefix(world))
    closed = [path for path in (world, *world.parents) if path != Path("/") and not path.stat().st_mode & stat.S_IXOTH]
    for path in (world / "home", world / "tmp"):
        os.chown(path, 10001, 10001)
    for path in closed:
        path.chmod(path.stat().st_mode | stat.S_IXOTH)
    try:
        child = os.fork()
        if not child:
            os.setgid(10001)
            os.setuid(10001)
            os._exit(0 if kept(world) == in_home(world) == kept(world) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        for path in closed:
            path.chmod(path.stat().st_mode & ~stat.S_IXOTH)
    file = in_home(world) / "features_1" / "apply.nbi"
    assert (file.read_bytes(), file.stat().st_uid) == (b"code", 10001)


def test_code_that_is_handed_on_to_a_copy_is_not_compiled_again(tmp_path: Path) -> None:
    """What ``tests.compiled_code`` gives to the environments and copies that other tests make."""
    best_entries((np.array([0, 2]), np.array([3, 4]), np.ones(2, np.float32)), 1)  # compiled, and kept
    handed_on = hand_on(copy_of_tree(tmp_path, "stages"), tmp_path / "compiled")
    assert handed_on is not None
    before = {path: path.stat().st_mtime_ns for path in handed_on.rglob("*") if path.is_file()}
    assert any(path.name.startswith("best_items._best_entries") for path in before)
    code = """
import numpy as np
from stages.contracts import best_items, compiled

assert best_items.best_entries((np.array([0, 2]), np.array([3, 4]), np.ones(2, np.float32)), 1).ids.tolist() == [3]
print(best_items.__file__, compiled.CACHE)
"""
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    done = finished([sys.executable, "-c", code], cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "stages" / "contracts" / "best_items.py"), str(handed_on)]
    assert {path: path.stat().st_mtime_ns for path in handed_on.rglob("*") if path.is_file()} == before
