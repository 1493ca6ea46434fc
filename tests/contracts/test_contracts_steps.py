"""Steps run once, leave nothing half-written and depend on all that changes their work."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.files import atomic_directory, write_json
from stages.contracts.results import StageResult
from stages.contracts.steps import RESULT_FILE, Outcome, run_step, step_fingerprint
from tests.trees import sha256_tree


class _Config(Config):
    size: int = 1


def _body(calls: list[int]):
    def body(config: _Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        calls.append(config.size)
        (directory / "out.txt").write_text("x" * config.size)
        return {"size": float(config.size)}, {"inputs": sorted(inputs)}

    return body


def test_second_run_with_equal_inputs_is_reused(tmp_path: Path) -> None:
    calls: list[int] = []
    first = run_step("make", "1", _body(calls), _Config(size=3), {}, tmp_path)
    second = run_step("make", "1", _body(calls), _Config(size=3), {}, tmp_path)
    assert calls == [3]
    assert (first.reused, second.reused) == (False, True)
    assert second.metrics == {"size": 3.0}
    assert (second.directory / "out.txt").read_text() == "xxx"


def test_fingerprint_depends_on_name_version_config_and_inputs() -> None:
    upstream = StageResult(step="a", path="/a", fingerprint="f1")
    base = step_fingerprint("s", "1", _Config(), {"in": upstream})
    others = [
        step_fingerprint("t", "1", _Config(), {"in": upstream}),
        step_fingerprint("s", "2", _Config(), {"in": upstream}),
        step_fingerprint("s", "1", _Config(size=2), {"in": upstream}),
        step_fingerprint("s", "1", _Config(), {"in": upstream.model_copy(update={"fingerprint": "f2"})}),
        step_fingerprint("s", "1", _Config(), {"other": upstream}),
    ]
    assert len({base, *others}) == 6
    moved = upstream.model_copy(update={"path": "/elsewhere", "seconds": 9.0})
    assert step_fingerprint("s", "1", _Config(), {"in": moved}) == base


def test_failed_step_leaves_nothing_and_can_be_retried(tmp_path: Path) -> None:
    def broken(config: _Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        (directory / "half.txt").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run_step("make", "1", broken, _Config(), {}, tmp_path)
    assert sha256_tree(tmp_path) == {}
    assert run_step("make", "1", _body([]), _Config(), {}, tmp_path).reused is False


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace('"fingerprint"', '"print"'), "fingerprint: Field required"),
        (lambda text: text.replace('"fingerprint"', '"print"'), "print: unknown key"),
        (lambda text: text.replace('"fingerprint": "', '"fingerprint": "0'), "fingerprint = '0"),
        (lambda text: text.replace('"step": "make"', '"step": "take"'), "step = 'take', this step's is 'make'"),
        (lambda text: text[:20], "not readable"),
        (lambda text: "[]", "root"),
        (None, "no such file"),
    ],
)
def test_a_result_of_another_version_is_refused_with_its_file_and_what_to_do(
    tmp_path: Path, damage: Callable[[str], str] | None, words: str
) -> None:
    calls: list[int] = []
    first = run_step("make", "1", _body(calls), _Config(), {}, tmp_path)
    path = first.directory / RESULT_FILE
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    with pytest.raises(ConfigError) as caught:
        run_step("make", "1", _body(calls), _Config(), {}, tmp_path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert f"remove {first.directory} and run again" in str(caught.value)
    shutil.rmtree(first.directory)
    again = run_step("make", "1", _body(calls), _Config(), {}, tmp_path)
    assert (again.fingerprint, again.reused, calls) == (first.fingerprint, False, [1, 1])


def test_the_code_that_is_declared_counts_in_place_of_the_bodys(tmp_path: Path) -> None:
    results = [run_step("make", "1", _body([]), _Config(), {}, tmp_path, code) for code in ("a", "b", "a", None)]
    assert [result.reused for result in results] == [False, False, True, False]


def test_atomic_directory_keeps_what_another_process_finished(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with atomic_directory(final) as mine:
        (mine / "who").write_text("second")
        final.mkdir()
        (final / "who").write_text("first")
    assert (final / "who").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"b": float("nan")})
    assert path.read_text() == '{\n  "b": 1\n}\n'
