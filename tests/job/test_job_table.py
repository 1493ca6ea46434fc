"""Jobs as tables: their order, what they refuse, and what a step's run gets from its declaration."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages import pipeline, refresh, run_recipe
from stages.contracts.config import Config
from stages.contracts.errors import ConfigError
from stages.contracts.files import read_json
from stages.contracts.results import StageResult
from stages.contracts.steps import Outcome
from stages.job import Job, NoConfig, Step, StepRun
from stages.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
HERE = __name__


class _Size(Config):
    size: int


def write(config: _Size | NoConfig, inputs: Mapping[str, Path], directory: Path) -> Outcome:
    """Write what the step was given."""
    text = "+".join(f"{name}={(path / 'out').read_text()}" for name, path in sorted(inputs.items()))
    (directory / "out").write_text(f"{getattr(config, 'size', '')}({text})")
    return {"inputs": float(len(inputs))}, {"names": sorted(inputs)}


def note(config: Config, run: StepRun) -> StageResult:
    """Act on something outside."""
    return run.outcome(Path(run.settings.home), {"took": sorted(run.results)})


def body_for(word: str) -> Callable[..., Outcome]:
    """Return a body from what is held open for it."""

    def body(config: Config, inputs: Mapping[str, Path], directory: Path) -> Outcome:
        (directory / "out").write_text(word)
        return {}, {}

    return body


not_a_function = 3


def step(name: str, *after: str, **more: Any) -> Step:
    return Step(name, f"{HERE}:write", after=after, **more)


def job_of(*steps: Step) -> Job:
    return Job("own", steps, lambda settings, results: None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"SLUICE_HOME": str(tmp_path / "home")}, needs_recipe=False)


def test_steps_run_in_the_tables_order_as_far_as_their_inputs_allow() -> None:
    assert job_of(step("c"), step("a"), step("b")).steps == ("c", "a", "b")
    moved = job_of(step("late", "first"), step("other"), step("first"), step("last", "late", "other"))
    assert moved.steps == ("other", "first", "late", "last")
    assert moved.upstream == {"other": (), "first": (), "late": ("first",), "last": ("late", "other")}


def test_the_shipped_tables_stand_in_the_order_of_running() -> None:
    for job in (pipeline.JOB, refresh.JOB):
        for number, name in enumerate(job.steps):
            assert set(job.upstream[name]) <= set(job.steps[:number]), name
    assert (pipeline.JOB.steps, pipeline.JOB.upstream) == (pipeline.STEPS, pipeline.UPSTREAM)
    assert (refresh.JOB.steps, refresh.JOB.upstream) == (refresh.STEPS, refresh.UPSTREAM)


def test_every_declared_function_is_there() -> None:
    for declared in (*pipeline.JOB, *refresh.JOB):
        assert declared.load().__name__ == declared.function.partition(":")[2]


def test_the_page_of_contracts_has_every_row() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.splitlines() if line.startswith("| `")]
    found = {name: (function, set(inputs.split(", "))) for name, function, inputs in rows if "`stages." in function}
    assert found == {
        f"`{declared.name}`": (f"`{declared.function.replace(':', '.')}`", set(declared.inputs) or {""})
        for declared in pipeline.JOB
    }


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([step("a", "b"), step("b", "a")], r"job own: steps wait for one another: (a -> b -> a|b -> a -> b)"),
        ([step("a", "a")], "job own: steps wait for one another: a -> a"),
        ([step("a", "x", "y")], "job own: step a takes the result of x, y: no such step, allowed are a"),
        ([step("a", inputs={"snapshot": "x"})], "step a takes the result of x: no such step"),
        ([step("a"), step("b"), step("a")], "job own: declared twice: a"),
    ],
)
def test_a_table_that_cannot_run_is_refused(steps: list[Step], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job_of(*steps)


@pytest.mark.parametrize("function", ["tests.job", "a:b:c", ":write", "tests.job:", "a b:c", "a..b:c"])
def test_what_names_no_function_is_refused_when_it_is_declared(function: str) -> None:
    with pytest.raises(ConfigError, match=r"step a: function = '.*', allowed is module:function"):
        Step("a", function)


@pytest.mark.parametrize("function", [f"{HERE}:nothing", f"{HERE}:not_a_function", "stages.nowhere:fit", "nowhere:fit"])
def test_a_function_that_is_not_there_is_named_when_the_step_runs(settings: Settings, function: str) -> None:
    with pytest.raises(ConfigError, match=rf"step a: function = '{function}': there is no such function"):
        job_of(Step("a", function)).run_all(settings)


def test_a_module_that_cannot_be_imported_says_why(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lame.py").write_text("import a_library_that_there_is_not\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_there_is_not"):
        job_of(Step("a", "lame:fit")).run_all(settings)


def test_a_body_sees_its_inputs_by_the_names_that_are_declared(settings: Settings) -> None:
    job = job_of(
        step("a", configure=lambda run: _Size(size=2)),
        step("b", inputs={"first": "a"}),
        step("c", "b", inputs={"one": "a", "two": "a", "three": "b"}, left_out=lambda run: ("three",)),
    )
    results = job.run_all(settings)
    assert (results["c"].directory / "out").read_text() == "(one=2()+two=2())"
    assert (results["b"].directory / "out").read_text() == "(first=2())"
    assert [result.reused for result in job.run_all(settings).values()] == [True] * 3


def test_what_a_step_only_waits_for_is_no_part_of_its_fingerprint(settings: Settings) -> None:
    def results(size: int) -> dict[str, StageResult]:
        return job_of(
            step("a", configure=lambda run: _Size(size=size)), step("b", "a"), step("c", inputs={"x": "a"})
        ).run_all(settings)

    first, second = results(1), results(2)
    assert {name: result.reused for name, result in second.items()} == {"a": False, "b": True, "c": False}
    assert first["c"].fingerprint != second["c"].fingerprint


def test_a_greater_version_of_its_own_does_a_step_anew(settings: Settings) -> None:
    made = [job_of(step("a", version=version)).run_all(settings)["a"] for version in (None, 1, 2, 1)]
    assert [result.reused for result in made] == [False, False, False, True]


def test_a_step_that_is_not_kept_runs_every_time_and_its_code_is_in_its_fingerprint(settings: Settings) -> None:
    def results(version: int | None) -> StageResult:
        return job_of(step("a"), Step("act", f"{HERE}:note", after=("a",), kept=False, version=version)).run_all(
            settings
        )["act"]

    first, again, other = results(None), results(None), results(2)
    assert first.info == {"took": ["a"]}
    assert (first.reused, again.reused) == (False, False)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not (settings.runs / "act").exists()


def test_what_a_body_needs_is_held_open_while_it_runs(settings: Settings) -> None:
    states: list[str] = []

    @contextmanager
    def opened(run: StepRun, config: Config) -> Iterator[tuple[str]]:
        states.append("open")
        yield (run.step.name,)
        states.append("closed")

    made = job_of(Step("a", f"{HERE}:body_for", opened=opened)).run_all(settings)["a"]
    assert (made.directory / "out").read_text() == "a"
    assert states == ["open", "closed"]


def test_the_recipe_is_asked_for_once_a_run_of_a_step(settings: Settings) -> None:
    asked: list[list[str]] = []

    def find_recipe(settings: Settings, results: Mapping[str, StageResult]) -> None:
        asked.append(sorted(results))

    Job("own", [step("a"), step("b", inputs={"x": "a"})], find_recipe).run_all(settings)
    assert asked == [[], ["a"]]
    needs = step("a", configure=lambda run: run.recipe.gate)
    with pytest.raises(ConfigError, match="step a: the run has no recipe; allowed is --config"):
        job_of(needs).run_all(settings)


def test_the_main_jobs_steps_parse_the_recipe_once(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    whole = run_recipe.load_recipe
    monkeypatch.setattr(run_recipe, "load_recipe", lambda settings: loaded.append(1) or whole(settings))
    for name in ("ingest", "train_light", "assemble", "register"):
        loaded.clear()
        pipeline.run_pipeline_step(name, job.settings, job.results)
        assert loaded == [1], name


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        ({}, r"step b needs the results of \['a'\], found \[\]"),
        (
            {"a": {"step": "a", "path": "/a"}},
            "step b: result of a: fingerprint: Field required; it was made by another",
        ),
        ({"a": {"step": "a", "path": "/a", "fingerprint": "f", "rows": 1}}, "result of a: rows: unknown key"),
        ({"a": "old"}, "step b: result of a: .*run a again"),
    ],
)
def test_results_that_a_step_cannot_read_are_refused(settings: Settings, upstream: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job_of(step("a"), step("b", inputs={"x": "a"})).run("b", settings, upstream)


def test_an_unknown_step_is_named_with_those_that_there_are(settings: Settings) -> None:
    job = job_of(step("a"), step("b", "a"))
    with pytest.raises(ConfigError, match="step = 'x': unknown, allowed are a, b"):
        job.run("x", settings, {})
    with pytest.raises(ConfigError, match="until = 'x': unknown step, allowed are a, b"):
        job.run_all(settings, until="x")
    assert list(job.run_all(settings, until="a")) == ["a"]


def test_a_step_whose_module_changed_runs_again_and_the_others_are_reused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of modules outside of the package, with what those import beside them."""
    package = tmp_path / "own_steps"
    package.mkdir()
    body = "def make(config, inputs, directory):\n    (directory / 'out').write_text(WORD)\n    return {}, {}\n"
    files = {
        "__init__": "",
        "words": "WORD = 'a'\n",
        "first": f"WORD = '1'\n{body}",
        "second": f"from own_steps.words import WORD\n{body}",
        "third": f"WORD = '3'\n{body}",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    job = job_of(*(Step(name, f"own_steps.{name}:make") for name in ("first", "second", "third")))

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_steps"]:
            del sys.modules[name]

    def reused() -> dict[str, bool]:
        forget()
        return {name: result.reused for name, result in job.run_all(settings).items()}

    try:
        assert reused() == {"first": False, "second": False, "third": False}
        assert reused() == {"first": True, "second": True, "third": True}
        (package / "words.py").write_text("WORD = 'other'\n")
        assert reused() == {"first": True, "second": False, "third": True}
        (package / "third.py").write_text(files["third"] + "# changed\n")
        assert reused() == {"first": True, "second": True, "third": False}
    finally:
        forget()


def test_results_are_written_as_before(settings: Settings) -> None:
    made = job_of(step("a")).run_all(settings)["a"]
    kept = read_json(made.directory / "result.json")
    assert set(kept) == {"step", "path", "fingerprint", "metrics", "info", "reused", "seconds", "disk_bytes"}
    assert kept["disk_bytes"] == sum((made.directory / name).stat().st_size for name in ("out", "config.json"))
    assert made.directory == settings.runs / "a" / made.fingerprint[:16]
