"""The steps of a job, and how a job runs them; the main job and the refresh are two tables of steps.

A step is declared once, as a row of its job's table (``stages.pipeline.JOB``, ``stages.refresh.JOB``). Airflow's tasks,
the command line and a run in one process follow from the table. Importing this module and the tables is cheap: a step's
function is given as a string and imported when the step runs.
"""

from __future__ import annotations

import heapq
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import __version__
from stages.contracts.code import module_code
from stages.contracts.config import Config, parse_config
from stages.contracts.disk import names_full_disk
from stages.contracts.errors import ConfigError
from stages.contracts.results import StageResult, StepEnd
from stages.contracts.steps import run_step, step_fingerprint
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.recipe import Recipe

log = logging.getLogger("sluice")

Upstream = Mapping[str, StageResult]
"""Results of earlier steps, by step."""

_FUNCTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*:[A-Za-z_]\w*")


class NoConfig(Config):
    """The configuration of a step without settings."""


def _no_config(run: StepRun) -> Config:
    return NoConfig()


@dataclass(frozen=True)
class Step:
    """The declaration of a step: one row of a job's table.

    Attributes:
        name: of the step; also the name of its Airflow task and of its folder of results.
        function: the step's function, as ``module:function``. The code of that module, with all that it imports, is
            part of the step's fingerprint. The function of a kept step is its body, ``(config, directories by input
            name, empty directory) -> (metrics, info)``; that of another step is ``(config, run) -> StageResult``.
        inputs: earlier steps whose directories the body reads, by the input name that the body uses. Their
            fingerprints are part of the step's fingerprint.
        after: further earlier steps: the configuration uses their results, or they must have passed.
        configure: returns the step's configuration from the recipe and the results.
        kept: whether the result is a directory that a later run with the same fingerprint re-uses. False for a step
            that acts on an outside system, such as the warehouse or the registry: it runs every time, and must be
            safe to run twice.
        opened: returns a context manager with the arguments for ``function``, which then returns the body of a kept
            step; the context stays open while the body runs. None if ``function`` is the body.
        left_out: returns the names of ``inputs`` that the body does not get in this run.
        version: version of the step, for a change that is not in its code, such as another version of a library. A
            new version runs finished steps again.
    """

    name: str
    function: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    configure: Callable[[StepRun], Config] = _no_config
    kept: bool = True
    opened: Callable[[StepRun, Any], AbstractContextManager[tuple[Any, ...]]] | None = None
    left_out: Callable[[StepRun], Collection[str]] | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        """Check the form of ``function``.

        Raises:
            ConfigError: if it is not ``module:function``; the message has the step and the function.
        """
        if not _FUNCTION.fullmatch(self.function):
            raise ConfigError(
                f"step {self.name}: function = {self.function!r}, allowed is module:function, such as "
                "stages.light_ranker.train:train_light"
            )

    @property
    def module(self) -> str:
        """The module of the step's function."""
        return self.function.partition(":")[0]

    @property
    def upstream(self) -> tuple[str, ...]:
        """The earlier steps whose results the step needs."""
        return tuple(dict.fromkeys([*self.after, *self.inputs.values()]))

    @property
    def code(self) -> str:
        """The digest of the step's code."""
        self.load()  # the digest finds a module outside of the package by the place from which it was imported
        return module_code(self.module)

    @property
    def code_version(self) -> str:
        """The identity of the step's code in a fingerprint: versions, then the digest."""
        return f"{self._versions} {self.code}"

    @property
    def _versions(self) -> str:
        return __version__ if self.version is None else f"{__version__} step version {self.version}"

    def load(self) -> Callable[..., Any]:
        """Return the step's function.

        Raises:
            ConfigError: if there is no such module or function.
        """
        module, _, name = self.function.partition(":")
        found: Callable[..., Any] | None = None
        try:
            found = getattr(import_module(module), name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
        if not callable(found):
            raise ConfigError(f"step {self.name}: function = {self.function!r}: there is no such function")
        return found

    def do(self, run: StepRun) -> StageResult:
        """Run the step, or re-use its finished result."""
        config, function = self.configure(run), self.load()
        if not self.kept:
            result: StageResult = function(config, run)
            return result
        left_out = self.left_out(run) if self.left_out else ()
        inputs = {name: run.results[earlier] for name, earlier in self.inputs.items() if name not in left_out}
        if self.opened is None:
            return run_step(self.name, self._versions, function, config, inputs, run.settings.runs, self.code)
        with self.opened(run, config) as arguments:
            body = function(*arguments)
            return run_step(self.name, self._versions, body, config, inputs, run.settings.runs, self.code)


@dataclass(frozen=True)
class StepRun:
    """One run of a step: the data that its configuration and its function may use.

    Attributes:
        step: the declaration.
        settings: settings of the run.
        results: results of the steps in ``step.upstream``.
        known_recipe: the run's recipe; None if it is not known yet.
    """

    step: Step
    settings: Settings
    results: Upstream
    known_recipe: Recipe | None

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        if self.known_recipe is None:
            raise ConfigError(f"step {self.step.name}: the run has no recipe; allowed is --config")
        return self.known_recipe

    def on(self, recipe: Recipe) -> StepRun:
        """Return the same run with another recipe."""
        return replace(self, known_recipe=recipe)

    def outcome(self, path: Path, info: dict[str, Any]) -> StageResult:
        """Return the result of a step that is not kept; its code and its upstream results identify it.

        Args:
            path: the file or directory that the step acted on.
            info: as in ``StageResult``.
        """
        fingerprint = step_fingerprint(self.step.name, self.step.code_version, NoConfig(), self.results)
        return StageResult(step=self.step.name, path=str(path), fingerprint=fingerprint, info=info)


class Job:
    """Steps in an order in which they can run: the order of the table as far as their inputs allow.

    Attributes:
        name: of the job, for messages.
        steps: names in the order of running.
        upstream: by step, the earlier steps whose results it needs.
    """

    def __init__(
        self,
        name: str,
        table: Iterable[Step],
        find_recipe: Callable[[Settings, Upstream], Recipe | None],
    ) -> None:
        """Check the table and determine the order.

        Args:
            name: of the job.
            table: its steps.
            find_recipe: returns the recipe of a step's run from the settings and the step's upstream results; it
                is called once for each run of a step.

        Raises:
            ConfigError: if two steps have the same name, a step needs the result of an unknown step, or steps need
                each other's results in a cycle.
        """
        self.name, self.find_recipe = name, find_recipe
        rows = tuple(table)
        declared = {step.name: step for step in rows}
        twice = sorted({step.name for step in rows if declared[step.name] is not step})
        if twice:
            raise ConfigError(f"job {name}: declared twice: {', '.join(twice)}")
        for step in rows:
            unknown = [earlier for earlier in step.upstream if earlier not in declared]
            if unknown:
                raise ConfigError(
                    f"job {name}: step {step.name} takes the result of {', '.join(unknown)}: no such step, "
                    f"allowed are {', '.join(declared)}"
                )
        self._declared = {name: declared[name] for name in self._ordered(declared)}
        self.steps = tuple(self._declared)
        self.upstream = {name: step.upstream for name, step in self._declared.items()}

    def __iter__(self) -> Iterator[Step]:
        """Return the declared steps in the order of running."""
        return iter(self._declared.values())

    def __getitem__(self, step: str) -> Step:
        """Return a step's declaration.

        Raises:
            ConfigError: if there is no such step.
        """
        if step not in self._declared:
            raise ConfigError(f"step = {step!r}: unknown, allowed are {', '.join(self.steps)}")
        return self._declared[step]

    def _ordered(self, declared: Mapping[str, Step]) -> Iterator[str]:
        """Yield the names in order: always the first step of the table that can run."""
        place = {name: number for number, name in enumerate(declared)}
        sorter = TopologicalSorter({name: step.upstream for name, step in declared.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            circle = " -> ".join(error.args[1])
            raise ConfigError(f"job {self.name}: steps wait for one another: {circle}") from None
        ready: list[tuple[int, str]] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heapq.heappush(ready, (place[name], name))
            _, name = heapq.heappop(ready)
            yield name
            sorter.done(name)

    def run(self, step: str, settings: Settings, upstream: Mapping[str, Any]) -> dict[str, Any]:
        """Run one step; a second run with the same inputs re-uses the outputs of a kept step.

        Args:
            step: one of ``steps``.
            settings: paths, addresses and recipe of the run.
            upstream: results of at least the step's upstream steps, as ``StageResult`` or as its JSON.

        Returns:
            The step's ``StageResult`` as JSON, small enough for an Airflow XCom.

        Raises:
            ConfigError: if the step is unknown, an upstream result is missing or not readable, or the recipe is wrong.
            OutOfSpaceError: if a disk is full.
            SluiceError: any error of the step itself.
        """
        declared = self[step]
        missing = [name for name in declared.upstream if name not in upstream]
        if missing:
            raise ConfigError(f"step {step} needs the results of {missing}, found {sorted(upstream)}")
        results = {name: _result(step, name, upstream[name]) for name in declared.upstream}
        run = StepRun(declared, settings, results, self.find_recipe(settings, results))
        log.info("[sluice] %s: started", step)
        started = time.perf_counter()
        with names_full_disk(step, Path(settings.home)):
            result = declared.do(run)
        if not result.seconds:
            result = result.model_copy(update={"seconds": round(time.perf_counter() - started, 3)})
        log.info("[sluice] %s%s", StepEnd.of(result), headline(result))
        return result.model_dump(mode="json")

    def run_all(
        self, settings: Settings, until: str | None = None, progress: Callable[[str], None] | None = None
    ) -> dict[str, StageResult]:
        """Run every step up to and including ``until`` in this process, without Airflow.

        Args:
            settings: as for ``run``.
            until: the last step to run; None = the last step of the job.
            progress: called with each step's name before it starts.

        Returns:
            The result of every step that ran, by name.
        """
        until = self.steps[-1] if until is None else until
        if until not in self._declared:
            raise ConfigError(f"until = {until!r}: unknown step, allowed are {', '.join(self.steps)}")
        results: dict[str, StageResult] = {}
        for step in self.steps[: self.steps.index(until) + 1]:
            if progress is not None:
                progress(step)
            results[step] = StageResult.model_validate(self.run(step, settings, results))
        return results


def _result(step: str, earlier: str, value: Any) -> StageResult:
    """Return an earlier step's result from the form in which the workflow kept it."""
    if isinstance(value, StageResult):
        return value
    try:
        return parse_config(StageResult, value, f"result of {earlier}")
    except ConfigError as error:
        raise ConfigError(
            f"step {step}: {error}; it was made by another version: run {earlier} again (in Airflow, clear its task)"
        ) from None


def headline(result: StageResult) -> str:
    """Return the most important numbers of a result, for a log line."""
    wanted = [name for name in result.metrics if name.endswith("/ndcg@10")] or list(result.metrics)[:6]
    words = [f"{name} {_short(result.metrics[name])}" for name in wanted]
    words += [f"{name} {result.info[name]}" for name in ("release_id", "version") if name in result.info]
    if "reason" in result.info:
        words.append(f"{'champion' if result.info['promoted'] else 'stays challenger'}: {result.info['reason']}")
    return f" ({', '.join(words)})" if words else ""


def _short(value: float) -> str:
    """Return a whole number in full, other numbers with four digits."""
    return f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}"
