from __future__ import annotations

from pathlib import Path

import pytest

from stages.contracts.errors import ConfigError
from stages.contracts.memory import available_bytes, require_memory

GIB = 1 << 30


def write(root: Path, **files: str) -> Path:
    """Write files by path; ``__`` stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def meminfo(root: Path, gib: int) -> Path:
    return write(root, proc__meminfo=f"MemTotal:  99999999 kB\nMemAvailable:  {gib * GIB // 1024} kB\nCached: 5 kB\n")


def test_without_control_groups_the_system_decides(tmp_path: Path) -> None:
    assert available_bytes(meminfo(tmp_path, 7)) == 7 * GIB


def test_where_nothing_is_known_everything_fits(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    require_memory("train_light", 1 << 62, "a setting", tmp_path)
    write(tmp_path, proc__meminfo="MemAvailable: unknown\n", proc__self__cgroup="broken\n")
    assert available_bytes(tmp_path) is None


def group(root: Path, folder: str, limit: str, usage: int, inactive: int, version: int = 2) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    directory = root / "sys/fs/cgroup" / ("memory" if version == 1 else "") / folder
    directory.mkdir(parents=True, exist_ok=True)
    (directory / names[0]).write_text(limit + "\n")
    (directory / names[1]).write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(f"anon 3\n{names[2]} {inactive}\nshmem 0\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_decides_and_droppable_pages_are_free(tmp_path: Path, version: int) -> None:
    meminfo(tmp_path, 50)
    line = "5:cpu,memory:/job/run\n" if version == 1 else "0::/job/run\n"
    write(tmp_path, proc__self__cgroup="3:pids:/elsewhere\n" + line)
    no_limit = "9223372036854771712" if version == 1 else "max"
    group(tmp_path, "job/run", no_limit, 2 * GIB, GIB, version)
    group(tmp_path, "job", str(8 * GIB), 6 * GIB, GIB, version)
    group(tmp_path, "", str(20 * GIB), 7 * GIB, 0, version)
    assert available_bytes(tmp_path) == 3 * GIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="0::/\n")
    group(tmp_path, "", str(GIB), 2 * GIB, 0)
    assert available_bytes(tmp_path) == 0


def test_a_step_that_does_not_fit_is_refused_with_the_setting_that_makes_it_fit(tmp_path: Path) -> None:
    meminfo(tmp_path, 1)
    require_memory("train_light", GIB, "examples.negatives.per_request", tmp_path)
    message = r"train_light needs about 1,073,741,825 bytes of memory, 1,073,741,824 are available; lower examples\.neg"
    with pytest.raises(ConfigError, match=message):
        require_memory("train_light", GIB + 1, "examples.negatives.per_request", tmp_path)


def test_this_machine_is_read_without_an_error() -> None:
    found = available_bytes()
    assert found is None or found > 0
