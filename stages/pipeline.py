"""Every step of the funnel as one function: what the DAGs, the command line and the tests call.

Importing this module is cheap: each step imports what it needs when it runs, so that parsing a DAG
or asking for help loads neither torch nor MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import __version__
from stages.contracts.config import parse_config
from stages.contracts.errors import ConfigError
from stages.contracts.results import StageResult
from stages.contracts.steps import Step, run_step, step_fingerprint
from stages.job import StepFunction, Upstream, outcome, promotion, run_declared
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.contracts.config import Config
    from stages.dataset.config import DatasetStepConfig
    from stages.recipe import Recipe

UPSTREAM: dict[str, tuple[str, ...]] = {
    "ingest": (),
    "check_data": ("ingest",),
    "dataset": ("ingest", "check_data"),
    "dataset_report": ("ingest", "dataset"),
    "train_candidate": ("dataset",),
    "build_index": ("dataset", "train_candidate"),
    "train_sources": ("dataset", "train_candidate", "build_index"),
    "retrieve": ("dataset", "train_candidate", "build_index", "train_sources"),
    "build_examples": ("dataset", "train_candidate", "retrieve"),
    "train_light": ("dataset", "build_examples"),
    "train_heavy": ("dataset", "train_candidate", "retrieve", "build_examples", "train_light"),
    "rank_baselines": ("dataset",),
    "evaluate": ("dataset", "rank_baselines", "retrieve", "train_light", "train_heavy"),
    "assemble": (
        "dataset",
        "train_candidate",
        "build_index",
        "train_sources",
        "build_examples",
        "train_light",
        "train_heavy",
        "evaluate",
    ),
    "register": (
        "assemble",
        "check_data",
        "dataset",
        "dataset_report",
        "train_candidate",
        "build_index",
        "train_sources",
        "retrieve",
        "train_light",
        "train_heavy",
        "evaluate",
    ),
    "promote": ("register", "assemble"),
}
"""The earlier steps whose results each step takes."""

STEPS: tuple[str, ...] = tuple(UPSTREAM)
"""The steps in an order in which they can run."""

_INPUT_NAMES = {
    "dataset": "snapshot",
    "train_candidate": "candidate",
    "build_index": "index",
    "train_sources": "sources",
    "build_examples": "examples",
    "train_light": "light",
    "train_heavy": "heavy",
    "rank_baselines": "baselines",
}


def load_recipe(settings: Settings) -> Recipe:
    """Return the recipe that the settings resolve to.

    Raises:
        ConfigError: naming every wrong field.
    """
    from stages.recipe import Recipe

    origin = settings.config_path or "recipe"
    return parse_config(Recipe, settings.recipe, origin, settings.laid_over, settings.file_recipe)


def check_recipe(settings: Settings) -> None:
    """Refuse a wrong recipe, and paths in it that lead nowhere, before any step does anything.

    Raises:
        ConfigError: naming every wrong field, or the path.
    """
    recipe = load_recipe(settings)
    paths = {"candidate.warm_start.path": recipe.candidate.warm_start.path, "dataset.base": recipe.dataset.base}
    for name, path in paths.items():
        if path is not None and not Path(path).exists():
            raise ConfigError(f"{name} = {path}: no such directory")


def run_pipeline_step(step: str, settings: Settings, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Run one step by name; a second run with the same inputs re-uses its outputs.

    Args:
        step: one of ``STEPS``.
        settings: where things live and which recipe to follow.
        upstream: results of the steps in ``UPSTREAM[step]``, as ``StageResult`` or as its JSON.

    Returns:
        The step's ``StageResult`` as JSON, small enough for an Airflow XCom.

    Raises:
        ConfigError: if the step is unknown, an upstream result is missing or the recipe is wrong.
        SluiceError: whatever the step itself refuses.
    """
    check_recipe(settings)
    return run_declared(step, UPSTREAM, _FUNCTIONS, settings, upstream)


def run_all(
    settings: Settings, until: str = STEPS[-1], progress: Callable[[str], None] | None = None
) -> dict[str, StageResult]:
    """Run every step up to and including ``until`` in this process, without Airflow.

    Args:
        settings: as for ``run_pipeline_step``.
        until: the last step to run.
        progress: called with each step's name before it starts.

    Returns:
        The result of every step that ran, by name.
    """
    if until not in UPSTREAM:
        raise ConfigError(f"until = {until!r}: unknown step, allowed are {', '.join(STEPS)}")
    results: dict[str, StageResult] = {}
    for step in STEPS[: STEPS.index(until) + 1]:
        if progress is not None:
            progress(step)
        results[step] = StageResult.model_validate(run_pipeline_step(step, settings, results))
    return results


def _run(settings: Settings, step: str, body: Step[Any], config: Config, results: Upstream) -> StageResult:
    inputs = {_INPUT_NAMES.get(name, name): result for name, result in results.items()}
    return run_step(step, __version__, body, config, inputs, settings.runs)


def ingest(settings: Settings, results: Upstream) -> StageResult:
    """Load the source into the warehouse; loading the same rows again adds nothing."""
    from stages.sources import ingest_source

    return ingest_source(settings, load_recipe(settings))


def check_data(settings: Settings, results: Upstream) -> StageResult:
    """Evaluate the data contracts; one that fails stops the run before anything trains.

    The full report of a run that stops is kept in ``<home>/reports``, for its step's directory is not.

    Raises:
        ContractError: naming every failed contract.
        EmptyDatasetError: if the warehouse holds no event.
    """
    from stages.dataset.checks.run import check_body, step_config
    from stages.sources import require_events
    from stages.warehouse.database.engine import Warehouse

    recipe, source = load_recipe(settings), results["ingest"]
    require_events(source)
    config = step_config(
        recipe.contracts,
        recipe.dataset,
        as_of_ms=source.info["as_of_ms"],
        latest_ms=source.info["latest_event_ms"],
        now_ms=settings.now_ms,
        rows_read=round(source.metrics["rows_read"]),
        rows_quarantined=round(source.metrics["rows_quarantined"]),
        warehouse_fingerprint=source.fingerprint,
    )
    key = step_fingerprint("check_data", __version__, config, {})[:16]
    kept = Path(settings.home) / "reports" / f"contracts-{key}.json"
    with Warehouse(settings.warehouse_url) as warehouse:
        return run_step("check_data", __version__, check_body(warehouse, kept), config, {}, settings.runs)


def dataset(settings: Settings, results: Upstream) -> StageResult:
    """Select active users, remove duplicates and split by time."""
    from stages.dataset.build import snapshot_body
    from stages.warehouse.database.engine import Warehouse

    config = selection(load_recipe(settings), results["ingest"])
    with Warehouse(settings.warehouse_url) as warehouse:
        return run_step("dataset", __version__, snapshot_body(warehouse), config, {}, settings.runs)


def selection(recipe: Recipe, source: StageResult) -> DatasetStepConfig:
    """Return what identifies the snapshot of a recipe and of what was ingested.

    What its data contracts say of the values of a signal holds for posted events as well.
    """
    from stages.dataset.config import DatasetStepConfig
    from stages.dataset.side_files import resolve_files

    signals, agreed = recipe.dataset.signals, recipe.contracts.values.ranges
    return DatasetStepConfig(
        **{
            **resolve_files(recipe.dataset).model_dump(),
            "min_items": max(recipe.dataset.min_items, recipe.funnel.max_k),
            "value_ranges": {name: agreed[name] for name in signals if name in agreed} | recipe.dataset.value_ranges,
        },
        as_of_ms=source.info["as_of_ms"],
        warehouse_fingerprint=source.fingerprint,
        seed=recipe.seed,
        exposure_signals=recipe.features.exposure_signals,
    )


def dataset_report(settings: Settings, results: Upstream) -> StageResult:
    """Report what the selection would have covered of the next days, and how much data is enough."""
    from stages.sufficiency.report import ReportStepConfig, report_body
    from stages.warehouse.database.engine import Warehouse

    recipe, source = load_recipe(settings), results["ingest"]
    config = ReportStepConfig(**recipe.report.model_dump(), dataset=selection(recipe, source))
    inputs = {"snapshot": results["dataset"]}
    with Warehouse(settings.warehouse_url) as warehouse:
        return run_step("dataset_report", __version__, report_body(warehouse), config, inputs, settings.runs)


def train_candidate(settings: Settings, results: Upstream) -> StageResult:
    """Train the two-tower model through torchrun, anew or from an earlier one, and export it."""
    from stages.candidate.config import TrainCandidateConfig
    from stages.candidate.training.step import train_candidate as body
    from stages.candidate.training.warm_start import warm_start_version

    recipe = load_recipe(settings)
    start = recipe.candidate.warm_start.path
    config = TrainCandidateConfig(
        candidate=recipe.candidate,
        features=recipe.features,
        warm_start_version=warm_start_version(start) if start else "",
    )
    return _run(settings, "train_candidate", body, config, results)


def build_index(settings: Settings, results: Upstream) -> StageResult:
    """Build the Faiss index and measure its recall against exact search."""
    from stages.candidate.index.step import build_index as body

    recipe = load_recipe(settings)
    config = recipe.index.model_copy(update={"recall_k": recipe.funnel.candidate_k})
    return _run(settings, "build_index", body, config, results)


def train_sources(settings: Settings, results: Upstream) -> StageResult:
    """Train the sources beside the two-tower index, and settle how many candidates each names."""
    from stages.candidate.generators.config import TrainSourcesConfig
    from stages.candidate.retrieval.fit_generators import train_sources as body

    recipe = load_recipe(settings)
    config = TrainSourcesConfig(sources=recipe.sources, candidate_k=recipe.funnel.candidate_k, features=recipe.features)
    return _run(settings, "train_sources", body, config, results)


def retrieve(settings: Settings, results: Upstream) -> StageResult:
    """Answer the rankers' and the evaluation's requests with candidates."""
    from stages.candidate.config import RetrieveConfig
    from stages.candidate.retrieval.step import retrieve as body

    recipe = load_recipe(settings)
    config = RetrieveConfig(candidate_k=recipe.funnel.candidate_k, features=recipe.features)
    return _run(settings, "retrieve", body, config, results)


def build_examples(settings: Settings, results: Upstream) -> StageResult:
    """Compute point-in-time features and labels of every candidate, and the serving state."""
    from stages.features.build import ExamplesConfig
    from stages.features.build import build_examples as body

    recipe = load_recipe(settings)
    config = ExamplesConfig(
        features=recipe.features, sources=recipe.sources.read_names, trending=recipe.sources.counted
    )
    return _run(settings, "build_examples", body, config, results)


def train_light(settings: Settings, results: Upstream) -> StageResult:
    """Train the LightGBM ranker on real candidates."""
    from stages.light_ranker.train import train_light as body

    return _run(settings, "train_light", body, load_recipe(settings).light_ranker, results)


def train_heavy(settings: Settings, results: Upstream) -> StageResult:
    """Train the DCN-v2 ranker on what the light ranker passes."""
    from stages.heavy_ranker.train import train_heavy as body

    recipe = load_recipe(settings)
    config = recipe.heavy_ranker.model_copy(
        update={"light_k": recipe.funnel.light_k, "objective": dict(recipe.funnel.objective)}
    )
    return _run(settings, "train_heavy", body, config, results)


def rank_baselines(settings: Settings, results: Upstream) -> StageResult:
    """Answer the evaluation's requests by EASE and implicit ALS, as deep as the ledger looks."""
    from stages.candidate.config import RankBaselinesConfig
    from stages.candidate.linear.baselines import rank_baselines as body

    recipe = load_recipe(settings)
    depth = max(recipe.funnel.candidate_k, recipe.evaluation.ks[-1])
    config = RankBaselinesConfig(baselines=recipe.baselines, k=depth, features=recipe.features)
    return _run(settings, "rank_baselines", body, config, results)


def evaluate(settings: Settings, results: Upstream) -> StageResult:
    """Judge every stage on the same held-out requests."""
    from stages.evaluation.evaluate import evaluate as body

    recipe = load_recipe(settings)
    asked = {"candidate_k": recipe.funnel.candidate_k, "stages": recipe.funnel.stages}
    config = recipe.evaluation.model_copy(update=asked)
    return _run(settings, "evaluate", body, config, results)


def assemble(settings: Settings, results: Upstream) -> StageResult:
    """Put the parts of one compatible set into a release directory."""
    from stages.release.assemble import AssembleConfig
    from stages.release.assemble import assemble as body

    recipe = load_recipe(settings)
    config = AssembleConfig(funnel=recipe.funnel, resolved=recipe.model_dump(mode="json"))
    return _run(settings, "assemble", body, config, results)


def register(settings: Settings, results: Upstream) -> StageResult:
    """Register the release in MLflow under the alias ``challenger``."""
    from stages.release.registry import ReleaseRegistry

    recipe = load_recipe(settings)
    stage_metrics = {name: dict(result.metrics) for name, result in results.items() if result.metrics}
    release = results["assemble"].directory / "release"
    registered = ReleaseRegistry(settings.registry).register(
        release,
        params=recipe.model_dump(mode="json"),
        stage_metrics=stage_metrics,
        reports=sorted(results["dataset_report"].directory.glob("dataset_report.*")),
    )
    info = {"version": registered.version, "run_id": registered.run_id, "release_id": registered.release_id}
    return outcome("register", release, results, info)


def promote(settings: Settings, results: Upstream) -> StageResult:
    """Make the registered release the champion if it passes the gate and is no worse than the champion."""
    release = results["assemble"].directory / "release"
    version = int(results["register"].info["version"])
    return outcome("promote", release, results, promotion(settings, version, load_recipe(settings).gate))


_FUNCTIONS: dict[str, StepFunction] = {
    function.__name__: function
    for function in (
        ingest,
        check_data,
        dataset,
        dataset_report,
        train_candidate,
        build_index,
        train_sources,
        retrieve,
        build_examples,
        train_light,
        train_heavy,
        rank_baselines,
        evaluate,
        assemble,
        register,
        promote,
    )
}
