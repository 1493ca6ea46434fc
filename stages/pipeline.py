"""The main job: every step from raw interactions to a promoted release, as one table.

``JOB`` at the end is the table; the functions above it return the configuration of each step from the recipe. The DAG,
the command line and the tests call ``run_pipeline_step`` and ``run_all``. To add a step, write its body and add one
row. Importing this module is cheap: a step's modules are imported when it runs, so that parsing a DAG or showing help
loads neither torch nor MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import __version__
from stages.contracts.config import Config
from stages.contracts.results import StageResult
from stages.contracts.steps import step_fingerprint
from stages.job import Job, Step, StepRun
from stages.registry_steps import RegisterConfig
from stages.run_recipe import CHOOSE, found_recipe
from stages.settings import Settings

if TYPE_CHECKING:
    from stages.dataset.config import DatasetStepConfig
    from stages.recipe import Recipe
    from stages.warehouse.database.engine import Warehouse


def run_pipeline_step(step: str, settings: Settings, upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Run one step of the main job by name, see ``stages.job.Job.run``."""
    return JOB.run(step, settings, upstream)


def run_all(
    settings: Settings, until: str | None = None, progress: Callable[[str], None] | None = None
) -> dict[str, StageResult]:
    """Run every step up to and including ``until`` in this process, see ``stages.job.Job.run_all``."""
    return JOB.run_all(settings, until, progress)


@contextmanager
def opened_warehouse(run: StepRun, config: Config) -> Iterator[tuple[Warehouse]]:
    """Hold the warehouse open for a body."""
    from stages.warehouse.database.engine import Warehouse

    with Warehouse(run.settings.warehouse_url) as warehouse:
        yield (warehouse,)


@contextmanager
def opened_to_check(run: StepRun, config: Config) -> Iterator[tuple[Warehouse, Path]]:
    """Hold the warehouse open, and yield the path of the report's copy: a failed step's directory is removed."""
    key = step_fingerprint("check_data", __version__, config, {})[:16]
    with opened_warehouse(run, config) as (warehouse,):
        yield warehouse, Path(run.settings.home) / "reports" / f"contracts-{key}.json"


def check_config(run: StepRun) -> Config:
    """Return the configuration of ``check_data``.

    Raises:
        EmptyDatasetError: if the warehouse holds no event.
    """
    from stages.dataset.checks.run import step_config
    from stages.sources import require_events

    source = run.results["ingest"]
    require_events(source)
    return step_config(
        run.recipe.contracts,
        run.recipe.dataset,
        as_of_ms=source.info["as_of_ms"],
        latest_ms=source.info["latest_event_ms"],
        now_ms=run.settings.now_ms,
        rows_read=round(source.metrics["rows_read"]),
        rows_quarantined=round(source.metrics["rows_quarantined"]),
        warehouse_fingerprint=source.fingerprint,
    )


def dataset_config(run: StepRun) -> DatasetStepConfig:
    """Return the configuration of ``dataset``."""
    return selection(run.recipe, run.results["ingest"])


def selection(recipe: Recipe, source: StageResult) -> DatasetStepConfig:
    """Return the configuration of ``dataset`` from the recipe and the result of ``ingest``.

    The value ranges of the data contracts hold for posted events as well.
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


def report_config(run: StepRun) -> Config:
    """Return the configuration of ``dataset_report``."""
    from stages.sufficiency.report import ReportStepConfig

    return ReportStepConfig(**run.recipe.report.model_dump(), dataset=dataset_config(run))


def choices_config(run: StepRun) -> Config:
    """Return the configuration of ``choose_settings``, with what the recipe itself gives."""
    from stages.auto.config import ChooseSettingsConfig

    recipe = run.recipe
    if not recipe.auto.choose:
        return ChooseSettingsConfig(auto=recipe.auto)  # what the recipe gives does not matter
    return ChooseSettingsConfig(
        auto=recipe.auto,
        encoder=recipe.candidate.model.encoder if "encoder" in recipe.candidate.model.model_fields_set else None,
        sources=recipe.sources.names if "names" in recipe.sources.model_fields_set else None,
        exposure_signals=recipe.features.exposure_signals,
    )


def candidate_config(run: StepRun) -> Config:
    """Return the configuration of ``train_candidate``, with the version of the model of a warm start."""
    from stages.candidate.config import TrainCandidateConfig
    from stages.candidate.training.warm_start import warm_start_version

    candidate = run.recipe.candidate
    start = candidate.warm_start.path
    version = warm_start_version(start) if start else ""
    return TrainCandidateConfig(candidate=candidate, features=run.recipe.features, warm_start_version=version)


def memory_config(run: StepRun) -> Config:
    """Return the configuration of ``check_memory``."""
    from stages.candidate.generators.config import CheckMemoryConfig

    recipe = run.recipe
    return CheckMemoryConfig(sources=recipe.sources, baselines=recipe.baselines, features=recipe.features)


def index_config(run: StepRun) -> Config:
    """Return the configuration of ``build_index``."""
    return run.recipe.index.model_copy(update={"recall_k": run.recipe.funnel.candidate_k})


def sources_config(run: StepRun) -> Config:
    """Return the configuration of ``train_sources``, with the version of what it takes over."""
    from stages.candidate.generators.config import TrainSourcesConfig
    from stages.candidate.retrieval.earlier_learning import learned_version

    recipe = run.recipe
    return TrainSourcesConfig(
        sources=recipe.sources,
        candidate_k=recipe.funnel.candidate_k,
        features=recipe.features,
        learned_version=learned_version(recipe.sources),
    )


def retrieve_config(run: StepRun) -> Config:
    """Return the configuration of ``retrieve``."""
    from stages.candidate.config import RetrieveConfig

    return RetrieveConfig(candidate_k=run.recipe.funnel.candidate_k, features=run.recipe.features)


def examples_config(run: StepRun) -> Config:
    """Return the configuration of ``build_examples``."""
    from stages.features.build import ExamplesConfig

    recipe, sources = run.recipe, run.recipe.sources
    return ExamplesConfig(
        features=recipe.features, sources=sources.read_names, trending=sources.counted, sampling=recipe.examples
    )


def heavy_config(run: StepRun) -> Config:
    """Return the configuration of ``train_heavy``."""
    funnel = run.recipe.funnel
    return run.recipe.heavy_ranker.model_copy(update={"light_k": funnel.light_k, "objective": dict(funnel.objective)})


def held_out_config(run: StepRun) -> Config:
    """Return the configuration of ``rank_held_out``."""
    from stages.held_out.config import RankHeldOutConfig

    recipe = run.recipe
    return RankHeldOutConfig(
        features=recipe.features,
        sources=recipe.sources.read_names,
        trending=recipe.sources.counted,
        light_k=recipe.funnel.light_k,
        objective=dict(recipe.funnel.objective),
        threads=recipe.light_ranker.threads,
    )


def baselines_config(run: StepRun) -> Config:
    """Return the configuration of ``rank_baselines``, whose lists are as long as the stage ledger needs."""
    from stages.candidate.linear.config import RankBaselinesConfig

    recipe = run.recipe
    depth = max(recipe.funnel.candidate_k, recipe.evaluation.ks[-1])
    return RankBaselinesConfig(baselines=recipe.baselines, k=depth, features=recipe.features)


def evaluation_config(run: StepRun) -> Config:
    """Return the configuration of ``evaluate``."""
    funnel = run.recipe.funnel
    return run.recipe.evaluation.model_copy(update={"candidate_k": funnel.candidate_k, "stages": funnel.stages})


def assemble_config(run: StepRun) -> Config:
    """Return the configuration of ``assemble``."""
    from stages.release.assemble import AssembleConfig

    return AssembleConfig(funnel=run.recipe.funnel, resolved=run.recipe.model_dump(mode="json"))


def register_config(run: StepRun) -> Config:
    """Return the configuration of ``register``: log the recipe, every step's metrics and the dataset report."""
    return RegisterConfig(params=run.recipe.model_dump(mode="json"), reports_of="dataset_report")


_SNAPSHOT = {"snapshot": "dataset"}
_TOWER = {**_SNAPSHOT, "candidate": "train_candidate"}
_INDEX = {**_TOWER, "index": "build_index"}
_EXAMPLES = {**_SNAPSHOT, "examples": "build_examples"}
RANKERS = {"light": "train_light", "heavy": "train_heavy"}
"""The step that trains each row of ``stages.contracts.ranking_stages``."""

JOB = Job(
    "main",
    (
        Step("ingest", "stages.sources:ingest_source", kept=False),
        Step(
            "check_data",
            "stages.dataset.checks.run:check_body",
            after=("ingest",),
            configure=check_config,
            opened=opened_to_check,
        ),
        Step(
            "dataset",
            "stages.dataset.build:snapshot_body",
            after=("ingest", "check_data"),
            configure=dataset_config,
            opened=opened_warehouse,
        ),
        Step(
            "dataset_report",
            "stages.sufficiency.report:report_body",
            _SNAPSHOT,
            after=("ingest",),
            configure=report_config,
            opened=opened_warehouse,
        ),
        Step(CHOOSE, "stages.auto.step:choose_settings", _SNAPSHOT, configure=choices_config),
        Step(
            "check_memory",
            "stages.candidate.retrieval.check_memory:check_memory",
            _SNAPSHOT,
            after=(CHOOSE,),
            configure=memory_config,
        ),
        Step(
            "train_candidate",
            "stages.candidate.training.step:train_candidate",
            _SNAPSHOT,
            after=("check_memory", CHOOSE),
            configure=candidate_config,
        ),
        Step("build_index", "stages.candidate.index.step:build_index", _TOWER, configure=index_config),
        Step(
            "train_sources",
            "stages.candidate.retrieval.fit_generators:train_sources",
            _INDEX,
            after=(CHOOSE,),
            configure=sources_config,
        ),
        Step(
            "retrieve",
            "stages.candidate.retrieval.step:retrieve",
            {**_INDEX, "sources": "train_sources"},
            after=(CHOOSE,),
            configure=retrieve_config,
        ),
        Step(
            "build_examples",
            "stages.features.build:build_examples",
            {**_TOWER, "retrieve": "retrieve"},
            after=(CHOOSE,),
            configure=examples_config,
        ),
        Step(
            "train_light",
            "stages.light_ranker.train:train_light",
            {"examples": "build_examples"},
            configure=lambda run: run.recipe.light_ranker,
        ),
        Step(
            "train_heavy",
            "stages.heavy_ranker.train:train_heavy",
            {**_TOWER, **_EXAMPLES, "retrieve": "retrieve", "light": "train_light"},
            configure=heavy_config,
        ),
        Step(
            "rank_held_out",
            "stages.held_out.step:rank_held_out",
            {**_TOWER, "retrieve": "retrieve", **RANKERS},
            after=(CHOOSE,),
            configure=held_out_config,
        ),
        Step(
            "rank_baselines",
            "stages.candidate.linear.baselines:rank_baselines",
            _SNAPSHOT,
            after=(CHOOSE,),
            configure=baselines_config,
        ),
        Step(
            "evaluate",
            "stages.evaluation.evaluate:evaluate",
            {
                **_SNAPSHOT,
                "baselines": "rank_baselines",
                "retrieve": "retrieve",
                **RANKERS,
                "held_out": "rank_held_out",
            },
            configure=evaluation_config,
        ),
        Step(
            "assemble",
            "stages.release.assemble:assemble",
            {**_INDEX, **_EXAMPLES, "sources": "train_sources", **RANKERS, "evaluate": "evaluate"},
            after=(CHOOSE,),
            configure=assemble_config,
        ),
        Step(
            "register",
            "stages.registry_steps:register",
            after=(
                "assemble",
                "check_data",
                "dataset",
                CHOOSE,
                "dataset_report",
                "train_candidate",
                "build_index",
                "train_sources",
                "retrieve",
                "train_light",
                "train_heavy",
                "rank_held_out",
                "evaluate",
            ),
            configure=register_config,
            kept=False,
        ),
        Step(
            "promote",
            "stages.registry_steps:promote",
            after=("register", "assemble"),
            configure=lambda run: run.recipe.gate,
            kept=False,
        ),
    ),
    found_recipe,
)
"""The table of the main job's steps."""

STEPS = JOB.steps
"""The steps in the order in which they run."""

UPSTREAM = JOB.upstream
"""The earlier steps whose results each step needs."""
