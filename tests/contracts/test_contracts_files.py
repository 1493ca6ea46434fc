from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.contracts.files import atomic_file, write_json


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "page.html"
    with atomic_file(final) as temporary:
        temporary.write_text("half")
        assert not final.exists()
        assert temporary.parent == tmp_path, "beside it: a rename must not cross file systems"
    assert final.read_text() == "half"
    assert names(tmp_path) == ["page.html"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    final = tmp_path / "page.html"
    final.write_text("old")
    with pytest.raises(type(error)), atomic_file(final) as temporary:
        temporary.write_text("new")
        raise error
    assert final.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "page.html"):
        pass
    assert names(tmp_path) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        with atomic_file(tmp_path / "latest") as temporary:
            temporary.symlink_to(name)
    assert (tmp_path / "latest").readlink() == Path("second")
    assert names(tmp_path) == ["first", "latest", "second"]


def test_writers_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    """Both hold their temporary file at once; the last to finish wins, whole."""
    final, barrier = tmp_path / "words.json", threading.Barrier(2, timeout=60)

    def write(letter: str) -> None:
        with atomic_file(final) as temporary:
            temporary.write_text(letter * 10_000)
            barrier.wait()
            assert temporary.read_text() == letter * 10_000

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "ab"))
    assert final.read_text() in {"a" * 10_000, "b" * 10_000}
    assert names(tmp_path) == ["words.json"]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    for value in (float("nan"), {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": 1}
    assert names(tmp_path) == ["state.json"]
