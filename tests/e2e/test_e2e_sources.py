"""A whole funnel whose candidates come from every source: what was trained on is what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.funnel import Funnel
from serving.release import load_release
from stages import pipeline
from stages.contracts.errors import ConfigError
from stages.contracts.examples import ExamplesFile
from stages.contracts.snapshot import Snapshot
from stages.contracts.sources import SOURCE_SCORES_FILE, SourceScores, source_name
from stages.contracts.tables import PART_EVALUATION, CandidateTable, RankedTable
from stages.features.state import FunnelState
from stages.settings import load_settings
from tests.features.plain.replay import replay

NAMES = ("tower", "covisitation", "trending", "trending_7d", "ease", "content")
SOURCES = {
    "names": list(NAMES),
    "quotas": "learned",
    "trending": {"windows_minutes": [60, 1440], "weights": [1.0, 0.2]},
    "learning": {"max_requests": 300},
}


@pytest.fixture(scope="module")
def blended(job: Any, tiny: dict[str, Any]) -> dict[str, Any]:
    """The small world's run with more sources; dataset, tower and index are those of ``job``."""
    settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "sources": SOURCES})
    return pipeline.run_all(settings, until="assemble")


def test_only_what_depends_on_the_sources_ran_again(job: Any, blended: dict[str, Any]) -> None:
    again = {name for name, result in blended.items() if result.path != job.results[name].path}
    assert again == {
        *("check_memory", "train_sources", "retrieve", "build_examples", "train_light", "train_heavy", "rank_held_out"),
        *("evaluate", "assemble"),
    }


def test_the_step_reports_quotas_and_recalls(blended: dict[str, Any]) -> None:
    learned, retrieved = blended["train_sources"], blended["retrieve"].metrics
    assert sum(learned.metrics[f"quota_{name}"] for name in NAMES) == pytest.approx(1)
    assert learned.info["quotas"] == {name: round(100 * learned.metrics[f"quota_{name}"]) for name in NAMES}
    assert learned.metrics["learned_recall"] >= learned.metrics["recall_tower"]
    for part in ("ranker", "evaluation"):
        for suffix in ("", *(f"_{name}" for name in NAMES)):
            assert 0 < retrieved[f"{part}_recall{suffix}"] <= 1
    ledger = blended["evaluate"].metrics
    assert ledger["candidates/recall@100"] == pytest.approx(retrieved["evaluation_recall"], abs=1e-6)


def test_a_recipe_takes_over_what_an_earlier_run_learned(
    job: Any, tiny: dict[str, Any], blended: dict[str, Any], tmp_path: Path
) -> None:
    """From the step or from the release; quotas are theirs, and only what follows from the sources runs again."""
    learned = blended["train_sources"]
    for earlier in (learned.directory, blended["assemble"].directory / "release"):
        sources = {**SOURCES, "learned_from": str(earlier)}
        settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "sources": sources})
        taken = pipeline.run_all(settings, until="train_sources")["train_sources"]
        assert taken.path != learned.path and "learned_recall" not in taken.metrics
        assert (taken.info["quotas"], taken.info["learned_from"]) == (learned.info["quotas"], str(earlier))
    sources = {**SOURCES, "learned_from": str(tmp_path / "nowhere")}
    settings = load_settings(job.environ, data="synthetic", overrides={**tiny, "sources": sources})
    with pytest.raises(ConfigError, match=r"sources\.learned_from = .*nowhere: no such directory"):
        pipeline.run_all(settings, until="train_sources")


def test_served_answers_and_their_sources_equal_the_offline_ones(blended: dict[str, Any]) -> None:
    """The release's state is at its end; a fresh one, replayed, stands where it stood at each request."""
    release = load_release(blended["assemble"].directory / "release")
    assert release.blend is not None and release.blend.trending is not None
    snapshot = Snapshot(blended["dataset"].directory)
    requests, retrieved = snapshot.requests(), Path(blended["retrieve"].path)
    table = CandidateTable.read(retrieved / "candidates.parquet")
    source_scores = SourceScores.read(retrieved / SOURCE_SCORES_FILE, NAMES)
    ranked = RankedTable.read(blended["rank_held_out"].directory / "heavy.parquet")
    examples = ExamplesFile(blended["build_examples"].directory)
    assert {f"source_{name}_score" for name in NAMES} <= set(examples.feature_names)
    state = FunnelState.empty(
        release.items, release.config, release.meta.signals, release.meta.tasks, trending=release.blend.trending
    )
    object.__setattr__(release, "state", state)
    funnel, user_ids = Funnel(release), snapshot.user_ids()
    wanted = set(np.flatnonzero(requests.part == PART_EVALUATION)[::25].tolist())
    compared = 0
    for request in replay(snapshot.events(), requests, state):
        if request not in wanted:
            continue
        user_id, time_ms = str(user_ids[requests.user_index[request]]), int(requests.request_time_ms[request])
        answer = funnel.recommend(user_id, 10, time_ms=time_ms, explain=True)
        mine = (ranked.request_id == request) & (ranked.rank < 10)
        assert [item.item_id for item in answer.items] == [
            str(release.items.item_id[item]) for item in ranked.item_index[mine]
        ]
        if answer.path == "popular":
            continue
        np.testing.assert_allclose([item.score for item in answer.items], ranked.score[mine], rtol=1e-5)
        rows = np.flatnonzero(table.request_id == request)
        row_of = {str(release.items.item_id[item]): row for row, item in zip(rows, table.item_index[rows], strict=True)}
        for item in answer.items:
            row = row_of[item.item_id]
            assert item.source == source_name(table.source[row])
            assert item.places["candidate"].rank == table.rank[row]
            assert {name: place.rank for name, place in item.named_by.items()} == {
                name: rank for name, rank in zip(NAMES, source_scores.ranks[row].tolist(), strict=True) if rank >= 0
            }
        compared += 1
    assert compared > 10
