"""A candidate generator in two files: a class and a row of the table, and the funnel fits, serves and refreshes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.funnel import Funnel
from serving.release import load_release
from stages import pipeline, run_recipe
from stages.contracts.errors import ConfigError, ReleaseError
from stages.contracts.files import read_json, sha256_file
from stages.contracts.results import StageResult
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import GENERATORS, SOURCE_SCORES_FILE, GeneratorRow, SourceScores, source_code
from stages.contracts.tables import CandidateTable
from stages.refresh import refresh_all
from stages.release.registry import ReleaseRegistry
from stages.settings import Settings, load_settings
from tests.homes import BORN, add_items, copy_of

CODE = 20
SOURCES = {"names": ["tower", "newest"], "quotas": {"newest": 0.3}, "newest": {"half_life_days": 3}}


@dataclass(frozen=True)
class Run:
    """A finished run with the further generator."""

    settings: Settings
    results: dict[str, StageResult]

    @property
    def release(self) -> Path:
        """The assembled release."""
        return self.results["assemble"].directory / "release"


@pytest.fixture(scope="module")
def row() -> Iterator[None]:
    """The one line that a new generator adds to existing code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATORS, "newest", GeneratorRow(CODE, "tests.e2e.newest:Newest"))
        yield


@pytest.fixture(scope="module")
def run(job: Any, tiny: dict[str, Any], row: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small world's run with the further generator, in a copy of its home; promoted whatever it gains."""
    environ = {**job.environ, **copy_of(Path(job.settings.home), tmp_path_factory.mktemp("generator") / "home")}
    settings = load_settings(environ, data="synthetic", overrides={**tiny, "sources": SOURCES}, promote=False)
    results = pipeline.run_all(settings, until="register")
    ReleaseRegistry(settings.registry).promote(results["register"].info["version"])
    return Run(settings, results)


@pytest.fixture(scope="module")
def refreshed(run: Run) -> Path:
    """A refreshed release, after three items were born."""
    add_items(Path(run.settings.home) / "warehouse.duckdb")
    return refresh_all(run.settings)["assemble"].directory / "release"


def test_it_is_fitted_and_blended(run: Run) -> None:
    again = {name for name, result in run.results.items() if not result.reused}
    assert again.isdisjoint({"dataset", "train_candidate", "build_index"})
    metrics = run.results["train_sources"].metrics
    quotas = {name: value for name, value in metrics.items() if not name.startswith("newcomers_")}
    assert quotas == {"quota_tower": 0.7, "quota_newest": 0.3}
    retrieved, items = run.results["retrieve"], Snapshot(run.results["dataset"].directory).items()
    scores = SourceScores.read(retrieved.directory / SOURCE_SCORES_FILE, ("tower", "newest"))
    table = CandidateTable.read(retrieved.directory / "candidates.parquet")
    listed = scores.ranks[:, 1] >= 0
    assert set(np.unique(table.source)) == {source_code("tower"), source_code("popular"), CODE}
    assert (scores.mask()[listed] & 1 << CODE).all()
    assert 0 < retrieved.metrics["evaluation_recall_newest"] < 1
    for request in np.unique(table.request_id[listed])[::200]:
        mine = np.flatnonzero(listed & (table.request_id == request))
        mine = mine[np.argsort(scores.ranks[mine, 1])]
        assert (np.diff(items.created_at_ms[table.item_index[mine]]) <= 0).all(), "the newest first"
    assert "source_newest_score" in read_json(run.results["build_examples"].directory / "feature_schema.json")["names"]


def test_its_files_are_in_the_release_with_their_hashes(run: Run, tmp_path: Path) -> None:
    described, path = (
        read_json(run.release / "sources" / "sources.json"),
        run.release / "sources" / "newest_born_ms.npy",
    )
    assert described["files"] == {path.name: sha256_file(path)}
    assert described["config"]["newest"] == {"half_life_days": 3.0}
    assert f"sources/{path.name}" in read_json(run.release / "manifest.json")["parts"]
    copy = shutil.copytree(run.release, tmp_path / "release")
    np.save(copy / "sources" / path.name, np.load(path)[::-1])
    with pytest.raises(ReleaseError, match=r"sources/newest_born_ms\.npy: sha256"):
        load_release(copy)


def test_it_is_served(run: Run) -> None:
    funnel = Funnel(load_release(run.release))
    answers = [funnel.recommend(user, 20, explain=True) for user in funnel.known_users(5)]
    assert all(answer.counts["retrieved_newest"] > 0 for answer in answers)
    assert {item.source for answer in answers for item in answer.items} == {"tower", "newest"}
    named = [item.named_by["newest"].rank for answer in answers for item in answer.items if "newest" in item.named_by]
    assert named and min(named) >= 0


def test_the_refresh_asks_it_for_new_items(run: Run, refreshed: Path) -> None:
    before, after = (np.load(path / "sources" / "newest_born_ms.npy") for path in (run.release, refreshed))
    assert len(after) == len(before) + len(BORN)
    funnel = Funnel(load_release(refreshed))
    assert funnel.release.blend is not None and funnel.release.blend.names == ("tower", "newest")
    lists: list[Any] = []
    mix = funnel.release.blend.mix
    funnel.release.blend.mix = lambda found, k, read: (lists.append(found), mix(found, k, read))[1]  # type: ignore[method-assign]
    funnel.recommend(funnel.known_users(1)[0], 20)
    assert set(lists[0]["newest"].ids[: len(BORN)].tolist()) == set(range(len(before), len(after)))


def test_a_wrong_setting_of_it_names_the_key(job: Any, tiny: dict[str, Any], row: None) -> None:
    wrong = {"names": ["tower", "newest", "oldest"], "newest": {"half_life_days": 0, "half_life": 3}}
    settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "sources": wrong})
    with pytest.raises(ConfigError) as caught:
        run_recipe.checked_recipe(settings)
    words = str(caught.value)
    assert "sources.newest.half_life: unknown key, allowed are half_life_days" in words
    assert "sources.newest.half_life_days = 0: Input should be greater than 0" in words
    assert (
        "'oldest': unknown candidate generator, allowed are tower, covisitation, trending, ease, ials, content, "
        "directed_ridge, item_knn, trending_10m, " in words
    )
    assert "segment_trending_7d, newest" in words
