"""The refresh: new items become findable and the index is published anew, without training.

A champion's towers and rankers stay; its id maps, its catalogue, its serving state and its index follow
the warehouse. What comes out is a release like any other: registered, promoted, rolled back the same way.
Importing this module is cheap, as with ``stages.pipeline``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import __version__
from stages.contracts.config import faults_of, merged
from stages.contracts.errors import ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.results import StageResult
from stages.contracts.steps import run_step
from stages.job import StepFunction, Upstream, outcome, promotion, run_declared
from stages.pipeline import check_data, check_recipe, ingest, load_recipe, selection
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.recipe import Recipe

STEPS: tuple[str, ...] = (
    "champion",
    "ingest",
    "check_data",
    "dataset",
    "refresh_vectors",
    "refresh_state",
    "build_index",
    "refresh_sources",
    "assemble",
    "register",
    "promote",
)
"""The steps in an order in which they can run."""

UPSTREAM: dict[str, tuple[str, ...]] = {
    "champion": (),
    "ingest": ("champion",),
    "check_data": ("champion", "ingest"),
    "dataset": ("ingest", "check_data", "champion"),
    "refresh_vectors": ("champion", "dataset"),
    "refresh_state": ("champion", "dataset"),
    "build_index": ("champion", "dataset", "refresh_vectors"),
    "refresh_sources": ("champion", "dataset", "refresh_vectors"),
    "assemble": ("champion", "dataset", "refresh_vectors", "refresh_state", "build_index", "refresh_sources"),
    "register": ("assemble", "champion", "dataset", "refresh_vectors", "build_index"),
    "promote": ("register", "assemble", "champion"),
}
"""The earlier steps whose results each step takes."""

_NAMED = 3
"""Keys of a recipe of another version that an error names."""


def run_refresh_step(step: str, settings: Settings, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Run one step of the refresh by name, as ``stages.pipeline.run_pipeline_step`` does for the main job.

    Settings that name no recipe follow the champion's, with their overrides laid over it.
    """
    if settings.config_path is None and "champion" in upstream:
        settings = _on_champions_recipe(settings, StageResult.model_validate(upstream["champion"]).directory)
    if settings.config_path is not None:
        check_recipe(settings)
    return run_declared(step, UPSTREAM, _FUNCTIONS, settings, upstream)


def _on_champions_recipe(settings: Settings, champion: Path) -> Settings:
    # What it was trained from may be gone, and a refresh reads neither.
    unneeded = {"dataset": {"base": None}, "candidate": {"warm_start": {"path": None}}}
    return settings.on_recipe(merged(champions_recipe(champion), unneeded), str(champion / "config.json"))


def champions_recipe(champion: Path) -> dict[str, Any]:
    """Return the recipe that a release was made by.

    Raises:
        ReleaseError: if this version has other keys, naming the first of them and what to do.
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


def refresh_all(settings: Settings, progress: Callable[[str], None] | None = None) -> dict[str, StageResult]:
    """Run every step in this process and return their results by name."""
    results: dict[str, StageResult] = {}
    for step in STEPS:
        if progress is not None:
            progress(step)
        results[step] = StageResult.model_validate(run_refresh_step(step, settings, results))
    return results


def champion(settings: Settings, results: Upstream) -> StageResult:
    """Pull the release that serves now.

    Raises:
        ReleaseError: if there is no champion, or its features were computed by other code than this.
    """
    from stages.contracts.manifest import MANIFEST_FILE
    from stages.contracts.release_code import check_code
    from stages.release.registry import CHAMPION, ReleaseRegistry

    directory = ReleaseRegistry(settings.registry).pull(CHAMPION, Path(settings.home) / "serving" / "releases")
    check_code(directory)
    fingerprint = sha256_file(directory / MANIFEST_FILE)
    info = {"release_id": directory.name}
    return StageResult(step="champion", path=str(directory), fingerprint=fingerprint, info=info)


def released_recipe(settings: Settings, results: Upstream) -> Recipe:
    """Return the champion's recipe with this run's index and gate: the towers and rankers fit no other one.

    Raises:
        ReleaseError: if the champion's recipe is not readable by this version.
    """
    from stages.recipe import Recipe

    directory = results["champion"].directory
    own, recipe = load_recipe(settings), Recipe.model_validate(champions_recipe(directory))
    grown = recipe.dataset.model_copy(update={"base": str(directory)})
    return recipe.model_copy(update={"dataset": grown, "index": own.index, "gate": own.gate})


def dataset(settings: Settings, results: Upstream) -> StageResult:
    """Select as the champion's recipe does, with new rows behind the champion's."""
    from stages.dataset.build import snapshot_body
    from stages.warehouse.database.engine import Warehouse

    config = selection(released_recipe(settings, results), results["ingest"])
    with Warehouse(settings.warehouse_url) as warehouse:
        return run_step("dataset", __version__, snapshot_body(warehouse), config, {}, settings.runs)


def refresh_vectors(settings: Settings, results: Upstream) -> StageResult:
    """Embed the grown catalogue with the released item tower."""
    from stages.candidate.refresh.vectors import RefreshVectorsConfig
    from stages.candidate.refresh.vectors import refresh_vectors as body

    inputs = {"champion": results["champion"], "snapshot": results["dataset"]}
    return run_step("refresh_vectors", __version__, body, RefreshVectorsConfig(), inputs, settings.runs)


def refresh_state(settings: Settings, results: Upstream) -> StageResult:
    """Bring histories and counters up to the as-of time."""
    from stages.features.build import ExamplesConfig, build_state

    recipe = released_recipe(settings, results)
    sources, trending = recipe.sources.read_names, recipe.sources.counted
    config = ExamplesConfig(features=recipe.features, sources=sources, trending=trending)
    inputs = {"champion": results["champion"], "snapshot": results["dataset"]}
    return run_step("refresh_state", __version__, build_state, config, inputs, settings.runs)


def build_index(settings: Settings, results: Upstream) -> StageResult:
    """Choose and measure the index of the grown catalogue."""
    from stages.candidate.index.step import build_index as body

    recipe = released_recipe(settings, results)
    config = recipe.index.model_copy(update={"recall_k": recipe.funnel.candidate_k})
    inputs = {"snapshot": results["dataset"], "candidate": results["refresh_vectors"]}
    return run_step("build_index", __version__, body, config, inputs, settings.runs)


def refresh_sources(settings: Settings, results: Upstream) -> StageResult:
    """Let the other sources of candidates follow the catalogue."""
    from stages.candidate.refresh.generators import RefreshSourcesConfig
    from stages.candidate.refresh.generators import refresh_sources as body

    inputs = {"champion": results["champion"], "snapshot": results["dataset"], "candidate": results["refresh_vectors"]}
    return run_step("refresh_sources", __version__, body, RefreshSourcesConfig(), inputs, settings.runs)


def assemble(settings: Settings, results: Upstream) -> StageResult:
    """Put the new parts and the champion's rankers and ledger into one release; what it bypasses stays bypassed."""
    from stages.contracts.manifest import read_manifest
    from stages.release.assemble import AssembleConfig
    from stages.release.assemble import assemble as body

    recipe = released_recipe(settings, results)
    released = results["champion"]
    # Where the base lies on this machine is not part of what was released.
    resolved = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"base": None})})
    refreshed = read_manifest(released.directory)
    stages = refreshed.funnel.stages
    funnel = recipe.funnel.model_copy(update={"stages": stages})
    trained_as_of_ms, _ = refreshed.age
    config = AssembleConfig(funnel=funnel, resolved=resolved.model_dump(mode="json"), trained_as_of_ms=trained_as_of_ms)
    inputs = {
        "snapshot": results["dataset"],
        "candidate": results["refresh_vectors"],
        "index": results["build_index"],
        "examples": results["refresh_state"],
        "evaluate": released,
        **{stage: released for stage in stages},
    }
    if results["refresh_sources"].info["names"]:
        inputs["sources"] = results["refresh_sources"]
    if "heavy" in inputs:
        inputs["light"] = released  # the heavy ranker reads the light one's scores
    return run_step("assemble", __version__, body, config, inputs, settings.runs)


def register(settings: Settings, results: Upstream) -> StageResult:
    """Register the release under the alias ``challenger``, with the release that it refreshes."""
    from stages.release.registry import ReleaseRegistry

    release = results["assemble"].directory / "release"
    stage_metrics = {name: dict(result.metrics) for name, result in results.items() if result.metrics}
    registered = ReleaseRegistry(settings.registry).register(
        release,
        params={"refreshed_from": results["champion"].info["release_id"]},
        stage_metrics={name: metrics for name, metrics in stage_metrics.items() if name != "assemble"},
    )
    info = {"version": registered.version, "run_id": registered.run_id, "release_id": registered.release_id}
    return outcome("register", release, results, info)


def promote(settings: Settings, results: Upstream) -> StageResult:
    """Make the refreshed release the champion; the gate reads the ledger that came with its rankers."""
    version = int(results["register"].info["version"])
    info = promotion(settings, version, released_recipe(settings, results).gate)
    return outcome("promote", results["assemble"].directory / "release", results, info)


_FUNCTIONS: dict[str, StepFunction] = {
    function.__name__: function
    for function in (
        champion,
        ingest,
        check_data,
        dataset,
        refresh_vectors,
        refresh_state,
        build_index,
        refresh_sources,
        assemble,
        register,
        promote,
    )
}
