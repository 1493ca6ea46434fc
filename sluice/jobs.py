"""Running the job and the refresh from Python, as ``sluice run`` and ``sluice refresh`` do."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from stages import pipeline, run_recipe
from stages.contracts.errors import ConfigError
from stages.contracts.files import read_json
from stages.contracts.results import StageResult
from stages.contracts.shipped import RECIPES
from stages.recipe import Recipe
from stages.refresh import refresh_all
from stages.settings import Settings, load_settings


@dataclass(frozen=True)
class Run:
    """What a run of the job or of a refresh did.

    Attributes:
        home: the directory that holds the run's warehouse, steps and registry.
        results: the result of each step by its name, in the order in which they ran. ``results["dataset"].directory``
            is a snapshot's directory, for ``Snapshot``.
    """

    home: Path
    results: dict[str, StageResult]

    @property
    def release(self) -> Path:
        """The directory of the release, for ``load_release``.

        Raises:
            ConfigError: if the run ended before ``assemble``.
        """
        return self._result("assemble", "no release").directory / "release"

    @property
    def promoted(self) -> bool:
        """Whether the release became the champion; ``results["promote"].info["reason"]`` says why, or why not."""
        return "promote" in self.results and bool(self.results["promote"].info["promoted"])

    @property
    def ledger(self) -> str:
        """The stage ledger as plain text: what each stage gains on held-out requests; after a refresh, the champion's.

        Raises:
            ConfigError: if the run ended before ``evaluate``.
        """
        from stages.evaluation.report import render_ledger

        judged = self.results.get("evaluate")
        folder = self._result("assemble", "no ledger").directory / "release" if judged is None else judged.directory
        return render_ledger(read_json(folder / "ledger.json"))

    def _result(self, step: str, what: str) -> StageResult:
        if step not in self.results:
            raise ConfigError(f"this run has {what}: it ended with the step {list(self.results)[-1]}, before {step}")
        return self.results[step]


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with Sluice: the path of each YAML file by its name, such as ``movielens``."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def load_recipe(
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    *,
    data: str | PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe with every value checked and every default filled in.

    Args:
        recipe: path of a YAML file, nested values, or a recipe; None chooses the one that suits ``data``.
        data: as for ``run``; only its layout is looked at.
        overrides: values that are laid over the recipe, nested: ``{"candidate": {"training": {"epochs": 5}}}``.

    Raises:
        ConfigError: naming every wrong field, its value and what is allowed; or if no recipe suits ``data``.
        DataError: if there is nothing at ``data`` and no recipe is given.
    """
    return run_recipe.load_recipe(_settings(data, recipe, None, overrides))


def run(
    data: str | PathLike[str] | None = None,
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    *,
    home: str | PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    mapping: str | PathLike[str] | None = None,
    as_of: str | None = None,
    until: str = pipeline.STEPS[-1],
    promote: bool = True,
    allow_times: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Run:
    """Run the whole job in this process: load the data, train and judge every stage, release and promote.

    The candidate generator trains in a process of its own. A step whose inputs, settings and code are those of a
    finished one is not done again, so that an interrupted run continues when it is repeated.

    ``SLUICE_WAREHOUSE_URL`` and ``SLUICE_MLFLOW_URI`` move the warehouse and the registry out of the home, as they do
    for the command line; ``SLUICE_DATA`` and ``SLUICE_CONFIG`` are used where ``data`` and ``recipe`` are None.

    Args:
        data: a folder or file of interactions; ``warehouse`` (or None) reads what the warehouse holds, ``synthetic``
            makes the synthetic world.
        recipe: path of a YAML file (see ``shipped_recipes``), nested values, or a recipe; None chooses the shipped
            recipe that suits ``data``.
        home: directory for everything that the run writes; None = ``SLUICE_HOME``, or ``var``.
        overrides: values that are laid over the recipe, nested: ``{"candidate": {"training": {"epochs": 5}}}``.
        mapping: path of a YAML file that maps the columns of files of an unknown layout.
        as_of: ISO 8601 time; events from then on are left out. None = just after the latest event.
        until: the last step to run.
        promote: whether a release that passes the gate, and is no worse than the champion, becomes champion.
        allow_times: whether to load times before 1990, in the future, or of many users within an hour.
        progress: called with the name of each step before it starts, such as ``print``.

    Raises:
        ConfigError: if an argument or a value of the recipe is not allowed.
        DataError: if the data are missing, unreadable, too few or break a data contract.
        GateError: if the release did not gain enough on popularity; it is registered all the same. With
            ``promote=False`` the gate is not checked.
        TransientError: if a service does not answer or a disk is full: repeat the run.
    """
    settings = _settings(
        data, recipe, home, overrides, mapping=mapping, as_of=as_of, promote=promote, allow_times=allow_times
    )
    return Run(Path(settings.home), pipeline.run_all(settings, until=until, progress=progress))


def refresh(
    data: str | PathLike[str] | None = None,
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe | None = None,
    *,
    home: str | PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    mapping: str | PathLike[str] | None = None,
    as_of: str | None = None,
    promote: bool = True,
    allow_times: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Run:
    """Embed new items with the champion's item tower and publish its index anew; nothing is trained.

    Args:
        data: as for ``run``.
        recipe: gives the index and the gate; everything else is the champion's. None = the champion's recipe.
        home: that of the run which made the champion; None = ``SLUICE_HOME``, or ``var``.
        overrides: values of the index and the gate, nested.
        mapping: as for ``run``.
        as_of: as for ``run``.
        promote: as for ``run``.
        allow_times: as for ``run``.
        progress: as for ``run``.

    Raises:
        ReleaseError: if there is no champion, or this version cannot read it.
        ConfigError: if an argument or a value of the recipe is not allowed.
        DataError: if the data are missing, unreadable or break a data contract.
        TransientError: if a service does not answer or a disk is full: repeat the refresh.
    """
    settings = _settings(
        data,
        recipe,
        home,
        overrides,
        needs_recipe=False,
        mapping=mapping,
        as_of=as_of,
        promote=promote,
        allow_times=allow_times,
    )
    return Run(Path(settings.home), refresh_all(settings, progress=progress))


def _settings(
    data: str | PathLike[str] | None,
    recipe: str | PathLike[str] | Mapping[str, Any] | Recipe | None,
    home: str | PathLike[str] | None,
    overrides: Mapping[str, Any] | None,
    *,
    needs_recipe: bool = True,
    mapping: str | PathLike[str] | None = None,
    **options: Any,
) -> Settings:
    """Build settings from the environment and a function's arguments; see ``stages.settings.load_settings``."""
    values = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    environ = dict(os.environ)
    if home is not None:
        environ["SLUICE_HOME"] = os.fspath(home)
    if isinstance(values, Mapping):
        environ.pop("SLUICE_CONFIG", None)
    settings = load_settings(
        environ,
        data=None if data is None else os.fspath(data),
        config=None if values is None or isinstance(values, Mapping) else os.fspath(values),
        mapping=None if mapping is None else os.fspath(mapping),
        overrides=overrides,
        needs_recipe=needs_recipe and recipe is None,
        **options,
    )
    return settings.on_recipe(values, "recipe") if isinstance(values, Mapping) else settings
