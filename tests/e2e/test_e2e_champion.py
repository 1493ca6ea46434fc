"""What is served is what earned it: a stage that does not gain is bypassed, a worse or older run stays challenger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from serving.funnel import Funnel
from serving.release import load_release
from stages import pipeline
from stages.contracts.files import read_json
from stages.contracts.manifest import ReleaseManifest, read_manifest, verify_release
from stages.contracts.results import StageResult
from stages.contracts.tables import DAY_MS
from stages.job import headline
from stages.refresh import refresh_all
from stages.release.registry import ReleaseRegistry
from stages.settings import Settings, load_settings, registry_settings
from tests.homes import copy_of

Results = dict[str, StageResult]
BY_RESULT = {"evaluation": {"bootstrap_samples": 200}, "gate": {"champion_tolerance": 0.01}}
"""Lays the default over the small world's recipe, which bypasses nothing. A stage that makes no difference is a little
better or worse by chance, by less than the tolerance."""


@pytest.fixture(scope="module")
def environ(job: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A copy of the small world's home, whose champion serves every stage."""
    return {**job.environ, **copy_of(Path(job.settings.home), tmp_path_factory.mktemp("champion") / "home")}


@pytest.fixture(scope="module")
def settings(job: Any, environ: dict[str, str]) -> Callable[..., Settings]:
    def make(overrides: dict[str, Any], **options: Any) -> Settings:
        return load_settings(environ, data="synthetic", overrides={**job.settings.recipe, **overrides}, **options)

    return make


@pytest.fixture(scope="module")
def bypassed(settings: Callable[..., Settings]) -> Results:
    """The small world's heavy ranker makes no difference to the light one; without it the funnel is no worse."""
    return pipeline.run_all(settings(BY_RESULT))


@pytest.fixture(scope="module")
def worse(job: Any, settings: Callable[..., Settings]) -> Settings:
    """Settings of a run whose release answers with the candidates as they are, which loses far more."""
    return settings({**BY_RESULT, "funnel": {**job.settings.recipe.get("funnel", {}), "stages": []}})


def champion(environ: dict[str, str]) -> tuple[int, str]:
    """Return version and release id of the champion."""
    found = ReleaseRegistry(registry_settings(environ)).resolve("champion")
    return found.version, found.release_id


def manifest_of(results: Results) -> ReleaseManifest:
    return verify_release(results["assemble"].directory / "release")


def test_a_stage_without_a_gain_is_not_in_the_release_and_takes_no_part_in_an_answer(
    job: Any, environ: dict[str, str], bypassed: Results
) -> None:
    rows = {row["name"]: row for row in read_json(bypassed["evaluate"].directory / "ledger.json")["rows"]}
    assert (rows["light"]["verdict"], rows["heavy"]["verdict"]) == ("gains", "no difference")
    manifest = manifest_of(bypassed)
    assert manifest.funnel.stages == ("light",)
    assert manifest.bypassed["heavy"].startswith("no difference to light: ")
    assert not [name for name in manifest.parts if name.startswith("heavy_ranker")]
    assert manifest.metrics["served/ndcg@10"] == rows["light"]["metrics"]["ndcg@10"]
    trained = [name for name in bypassed if not bypassed[name].reused]
    assert trained == ["evaluate", "assemble", "register", "promote"]

    release = load_release(bypassed["assemble"].directory / "release")
    assert [stage.row.name for stage in release.stages] == ["light"]
    funnel = Funnel(release)
    answer = funnel.recommend(funnel.known_users(1)[0], 5, explain=True).as_dict()
    assert [set(item["explain"]) for item in answer["items"]] == [{"candidate", "light"}] * 5
    assert answer["explain"]["bypassed"] == manifest.bypassed
    assert champion(environ)[1] == manifest.release_id != read_manifest(job.release).release_id
    assert bypassed["promote"].info["compared"]["requests"] == 315


def test_a_worse_configuration_stays_challenger_until_somebody_forces_it(
    job: Any, environ: dict[str, str], bypassed: Results
) -> None:
    before = champion(environ)
    recipe = {**job.settings.recipe, **BY_RESULT}
    words = [word for name, value in recipe.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    ran = CliRunner().invoke(main, ["run", "--data", "synthetic", *words, "--set", "funnel.stages=[]"], env=environ)
    assert ran.exit_code == 0, ran.output
    told = next(line for line in ran.output.splitlines() if line.startswith("release "))
    assert "(stays challenger: ndcg@10 0." in told
    assert f"of the champion {before[1]} on 315 common requests" in told
    assert champion(environ) == before

    version = ReleaseRegistry(registry_settings(environ)).resolve("challenger").version
    refused = CliRunner().invoke(main, ["release", "promote", str(version)], env=environ)
    assert refused.exit_code == 4
    assert f"(version {version}) stays challenger: ndcg@10" in refused.output
    forced = CliRunner().invoke(main, ["release", "promote", str(version), "--force"], env=environ)
    assert forced.exit_code == 0, forced.output
    assert champion(environ)[0] == version
    assert CliRunner().invoke(main, ["release", "rollback"], env=environ).exit_code == 0
    assert champion(environ) == before


def test_a_cleared_task_of_an_older_run_does_not_move_the_champion(
    environ: dict[str, str], worse: Settings, bypassed: Results
) -> None:
    before = champion(environ)
    results = pipeline.run_all(worse)
    for step in ("register", "promote"):
        results[step] = StageResult.model_validate(pipeline.run_pipeline_step(step, worse, results))
    info = results["promote"].info
    assert info["promoted"] is False
    assert info["compared"]["challenger"] < info["compared"]["champion"]
    assert f"stays challenger: {info['reason']}" in headline(results["promote"])
    assert champion(environ) == before


@pytest.mark.slow
def test_an_older_as_of_time_does_not_replace_newer_data(
    here: None, environ: dict[str, str], settings: Callable[..., Settings], bypassed: Results
) -> None:
    before = champion(environ)
    as_of_ms = manifest_of(bypassed).as_of_ms - 2 * DAY_MS
    quick = {
        "candidate": {"model": {"dimension": 8, "hidden": [8]}, "training": {"epochs": 1}},
        "light_ranker": {"max_rounds": 5, "folds": 2},
    }
    older = settings({**BY_RESULT, **quick, "gate": {"min_gain": -1.0}}).model_copy(update={"as_of_ms": as_of_ms})
    info = pipeline.run_all(older)["promote"].info
    assert info["promoted"] is False
    assert "older data never replaces newer" in info["reason"]
    assert champion(environ) == before


def test_a_run_of_the_champions_configuration_changes_nothing(
    environ: dict[str, str], settings: Callable[..., Settings], bypassed: Results
) -> None:
    before = champion(environ)
    again = pipeline.run_all(settings(BY_RESULT))
    assert (again["promote"].info["promoted"], again["promote"].info["reason"]) == (True, "it is the champion already")
    assert champion(environ) == before


@pytest.mark.slow
def test_a_refresh_keeps_what_the_champion_bypasses(
    environ: dict[str, str], settings: Callable[..., Settings], bypassed: Results
) -> None:
    """Last, for it makes another champion."""
    results = refresh_all(settings({}))
    old, new = manifest_of(bypassed), manifest_of(results)
    assert (new.funnel.stages, new.bypassed, new.metrics) == (old.funnel.stages, old.bypassed, old.metrics)
    assert (old.trained_as_of_ms, new.trained_as_of_ms) == (None, old.as_of_ms)
    assert new.parts["held_out.parquet"] == old.parts["held_out.parquet"]
    assert not [name for name in new.parts if name.startswith("heavy_ranker")]
    info = results["promote"].info
    assert (info["promoted"], info["compared"]["requests"]) == (True, 315)
    assert champion(environ)[1] == new.release_id
