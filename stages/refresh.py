"""The refresh: a new release with new items and a new index, without training.

The champion's towers and rankers stay; its id maps, catalogue, serving state and index are updated from the
warehouse. The result is a release like any other: it is registered, promoted and rolled back the same way.
``JOB`` at the end is the table of its steps; steps that it shares with the main job are taken from there.
Importing this module is cheap, as with ``stages.pipeline``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import pipeline
from stages.contracts.config import Config, faults_of, merged
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json
from stages.contracts.results import StageResult
from stages.job import Job, Step, StepRun, Upstream
from stages.registry_steps import RegisterConfig
from stages.run_recipe import checked_recipe
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.recipe import Recipe

_NAMED = 3
"""Largest number of unknown recipe keys in an error message."""


def run_refresh_step(step: str, settings: Settings, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Run one step of the refresh by name, see ``stages.job.Job.run``."""
    return JOB.run(step, settings, upstream)


def refresh_all(settings: Settings, progress: Callable[[str], None] | None = None) -> dict[str, StageResult]:
    """Run every step in this process and return their results by name."""
    return JOB.run_all(settings, progress=progress)


def find_recipe(settings: Settings, results: Upstream) -> Recipe | None:
    """Return the run's own recipe, or else the champion's recipe with the settings' overrides.

    Without a recipe of its own, a step that runs before the champion is pulled gets None.

    Raises:
        ConfigError: with every wrong field, or a missing path.
    """
    if settings.config_path is None:
        if "champion" not in results:
            return None
        settings = _on_champions_recipe(settings, results["champion"].directory)
    return checked_recipe(settings)


def _on_champions_recipe(settings: Settings, champion: Path) -> Settings:
    # The champion's base and warm start may be gone, and a refresh reads neither.
    unneeded = {"dataset": {"base": None}, "candidate": {"warm_start": {"path": None}}}
    return settings.on_recipe(merged(champions_recipe(champion), unneeded), str(champion / "config.json"))


def champions_recipe(champion: Path) -> dict[str, Any]:
    """Return the recipe of a release.

    Raises:
        ReleaseError: if this version has other recipe keys; the message has the first of them and what to do.
    """
    from stages.recipe import Recipe

    path = champion / "config.json"
    recipe: dict[str, Any] = read_json(path)
    if found := faults_of(Recipe, recipe):
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ReleaseError(
            f"the champion cannot be refreshed by this version: {path}: {'; '.join(found[:_NAMED])}{more}; train again "
            "with this version, or refresh the release with the version that made it"
        )
    return recipe


def released_recipe(run: StepRun) -> Recipe:
    """Return the champion's recipe, which its towers and rankers need, with this run's index, refresh and gate.

    Raises:
        ReleaseError: if the champion's recipe is not readable by this version.
    """
    from stages.recipe import Recipe

    directory = run.results["champion"].directory
    recipe = Recipe.model_validate(champions_recipe(directory))
    grown = recipe.dataset.model_copy(update={"base": str(directory)})
    own = {name: getattr(run.recipe, name) for name in ("index", "refresh", "gate")}
    return recipe.model_copy(update={"dataset": grown, **own})


def released(configure: Callable[[StepRun], Config]) -> Callable[[StepRun], Config]:
    """Return a ``configure`` function that uses the champion's recipe instead of the run's own."""
    return lambda run: configure(run.on(released_recipe(run)))


def vectors_config(run: StepRun) -> Config:
    """Return the configuration of ``refresh_vectors``."""
    return run.recipe.refresh


def sources_config(run: StepRun) -> Config:
    """Return the configuration of ``refresh_sources``."""
    from stages.candidate.refresh.generators import RefreshSourcesConfig

    return RefreshSourcesConfig()


def assemble_config(run: StepRun) -> Config:
    """Return the configuration of ``assemble``; stages that the champion bypasses stay bypassed."""
    from stages.contracts.manifest import read_manifest
    from stages.release.assemble import AssembleConfig

    refreshed = read_manifest(run.results["champion"].directory)
    trained_as_of_ms, _ = refreshed.age
    # The base's path on this machine is not part of the release.
    dataset = run.recipe.dataset.model_copy(update={"base": None})
    return AssembleConfig(
        funnel=run.recipe.funnel.model_copy(update={"stages": refreshed.funnel.stages}),
        resolved=run.recipe.model_copy(update={"dataset": dataset}).model_dump(mode="json"),
        trained_as_of_ms=trained_as_of_ms,
    )


def no_sources(run: StepRun) -> Collection[str]:
    """Leave out the candidate generators beside the index if the champion has none."""
    return () if run.results["refresh_sources"].info["names"] else ("sources",)


def register_config(run: StepRun) -> Config:
    """Return the configuration of ``register``: log the refreshed release, whose ledger metrics still apply."""
    refreshed = run.results["champion"].info["release_id"]
    return RegisterConfig(params={"refreshed_from": refreshed}, unlogged=("assemble",))


def _shared(name: str, **changes: Any) -> Step:
    """Return a step of the main job that waits for the champion as well."""
    step = replace(pipeline.JOB[name], **changes)
    return replace(step, after=("champion", *step.after))


_CHAMPION = {"champion": "champion", "snapshot": "dataset"}
_VECTORS = {"snapshot": "dataset", "candidate": "refresh_vectors"}

JOB = Job(
    "refresh",
    (
        Step("champion", "stages.registry_steps:champion", kept=False),
        _shared("ingest"),
        _shared("check_data"),
        _shared("dataset", configure=released(pipeline.dataset_config)),
        Step(
            "refresh_vectors", "stages.candidate.refresh.vectors:refresh_vectors", _CHAMPION, configure=vectors_config
        ),
        Step(
            "refresh_state",
            "stages.features.build:build_state",
            _CHAMPION,
            configure=released(pipeline.examples_config),
        ),
        _shared("build_index", inputs=_VECTORS, configure=released(pipeline.index_config)),
        Step(
            "refresh_sources",
            "stages.candidate.refresh.generators:refresh_sources",
            {**_CHAMPION, **_VECTORS},
            configure=sources_config,
        ),
        _shared(
            "assemble",
            inputs={
                **_VECTORS,
                "index": "build_index",
                "examples": "refresh_state",
                "sources": "refresh_sources",
                # The rankers and the ledger are the champion's; ``assemble`` takes those that it serves.
                **dict.fromkeys(pipeline.RANKERS, "champion"),
                "evaluate": "champion",
            },
            after=(),
            configure=released(assemble_config),
            left_out=no_sources,
        ),
        _shared("register", after=("assemble", "dataset", "refresh_vectors", "build_index"), configure=register_config),
        # The gate is the run's own; it reads the champion's ledger, which came with the rankers.
        _shared("promote"),
    ),
    find_recipe,
)
"""The table of the refresh's steps."""

STEPS = JOB.steps
"""The steps in the order in which they run."""

UPSTREAM = JOB.upstream
"""The earlier steps whose results each step needs."""
