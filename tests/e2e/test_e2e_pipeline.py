"""The whole job on a small world whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages import pipeline, run_recipe
from stages.contracts.files import read_json
from stages.contracts.manifest import verify_release
from stages.contracts.ranking_stages import RANKING_STAGES, ranking_file
from stages.contracts.snapshot import Snapshot
from stages.contracts.tables import PART_EVALUATION, RankedTable
from stages.recipe import Recipe
from stages.settings import load_settings
from stages.simulator.config import WorldConfig
from stages.simulator.world import World
from tests.builders.postgres import postgres_database


def test_every_step_left_a_result_and_the_release_is_whole(job) -> None:
    assert tuple(job.results) == pipeline.STEPS
    kept = {step.name for step in pipeline.JOB if step.kept}
    assert {name for name, result in job.results.items() if result.disk_bytes} == kept
    manifest = verify_release(job.release)
    assert manifest.release_id == job.results["register"].info["release_id"]
    assert manifest.data_fingerprint == Snapshot(job.results["dataset"].directory).meta.fingerprint
    assert Recipe.model_validate(read_json(job.release / "config.json")) == run_recipe.load_recipe(job.settings)


def test_a_second_run_reuses_every_step(job) -> None:
    again = pipeline.run_all(job.settings)
    assert {name: result.fingerprint for name, result in again.items()} == {
        name: result.fingerprint for name, result in job.results.items()
    }
    worked = [name for name, result in again.items() if not result.reused]
    assert worked == ["register", "promote"]
    assert again["register"].info["version"] == job.results["register"].info["version"]


def test_later_settings_do_only_the_later_work(job) -> None:
    changed = job.settings.model_copy(
        update={"recipe": {**job.settings.recipe, "evaluation": {"bootstrap_samples": 100}}}
    )
    results = pipeline.run_all(changed, until="evaluate")
    assert [name for name, result in results.items() if not result.reused] == ["evaluate"]


def test_the_ledger_has_every_stage_and_the_funnel_beats_popularity(job) -> None:
    ledger = read_json(job.release / "ledger.json")
    rows = {row["name"]: row for row in ledger["rows"]}
    assert list(rows) == ["popularity", "trending", "ease", "ials", "candidates", "light", "heavy"]
    assert rows["candidates"]["metrics"]["ndcg@10"] > rows["popularity"]["metrics"]["ndcg@10"]
    assert rows["heavy"]["metrics"]["ndcg@10"] > rows["popularity"]["metrics"]["ndcg@10"]


def test_every_stage_answers_with_items_that_users_truly_prefer(job) -> None:
    """The simulator knows the expected utility; each stage's top ten must lie far above the catalogue's mean."""
    world = World(WorldConfig.model_validate(job.settings.recipe["world"]))
    snapshot = Snapshot(job.results["dataset"].directory)
    users, items, requests = snapshot.user_ids(), snapshot.items(), snapshot.requests()
    user_row = {str(user_id): row for row, user_id in enumerate(world.user_ids)}
    item_row = {str(item_id): row for row, item_id in enumerate(world.item_ids)}
    rows = np.array([item_row[str(item_id)] for item_id in items.item_id])

    def lift(ranked: RankedTable) -> float:
        gains = []
        for request in np.unique(ranked.request_id)[::7]:
            of_request = ranked.request_id == request
            chosen = ranked.item_index[of_request & (ranked.rank < 10)]
            user = user_row[str(users[requests.user_index[request]])]
            time_ms = requests.request_time_ms[request]
            preference = world.true_preference(np.array([user]), np.array([time_ms]), rows)
            gains.append(preference[chosen].mean() / preference.mean())
        return float(np.mean(gains))

    for stage in RANKING_STAGES:
        ranked = RankedTable.read(job.results["rank_held_out"].directory / ranking_file(stage))
        assert (requests.part[np.unique(ranked.request_id)] == PART_EVALUATION).all()
        assert lift(ranked) > 1.5


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with postgres_database("e2e") as url:
        yield url


def test_postgresql_gives_the_dataset_fingerprint_of_duckdb(job, postgres_url: str, tmp_path: Path) -> None:
    environ = {**job.environ, "SLUICE_HOME": str(tmp_path / "home"), "SLUICE_WAREHOUSE_URL": postgres_url}
    settings = load_settings(environ, data="synthetic", overrides=job.settings.recipe)
    results = pipeline.run_all(settings, until="dataset")
    wanted = Snapshot(job.results["dataset"].directory).meta
    found = Snapshot(results["dataset"].directory).meta
    assert found.fingerprint == wanted.fingerprint
    assert found.counts == wanted.counts
    assert results["ingest"].fingerprint == job.results["ingest"].fingerprint
