"""The refresh as an Airflow DAG run: an item born after the training is found, and nothing was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from serving.funnel import Funnel
from serving.release import load_release
from stages.candidate.export.user_tower_tables import IDS, table_of
from stages.candidate.onnx_towers import PortableItemTower
from stages.contracts.files import read_json, sha256_file
from stages.contracts.manifest import read_manifest, verify_release
from stages.features.history import UNKNOWN_USER, TowerInputs
from stages.refresh import STEPS
from stages.release.registry import ReleaseRegistry
from stages.settings import registry_settings
from tests.homes import BORN, add_items, copy_of

if TYPE_CHECKING:
    from conftest import Airflow, Run

KEPT = ("light_ranker.txt", "heavy_ranker.onnx", "item_tower.onnx", "ledger.json", "feature_schema.json")


@pytest.fixture(scope="module")
def refreshed(job: Any, migrated: Airflow, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("refresh")
    home = root / "home"
    environ = copy_of(Path(job.settings.home), home)
    add_items(home / "warehouse.duckdb")
    shutil.copytree(migrated.home, root / "airflow")
    run = type(migrated)(root / "airflow").test("refresh_index", {"overrides": job.settings.recipe}, **environ)
    return run, environ


@pytest.mark.slow
def test_every_task_runs_once_and_a_new_champion_serves(job: Any, refreshed: Any) -> None:
    run, environ = refreshed
    assert run.code == 0, run.output
    assert run.tasks == dict.fromkeys(STEPS, ("success", 1))
    registry = ReleaseRegistry(registry_settings(environ))
    champion, previous = registry.resolve("champion"), registry.resolve("previous")
    assert previous.release_id == read_manifest(job.release).release_id != champion.release_id
    assert champion.version == max(entry.version for entry in registry.list())


@pytest.fixture(scope="module")
def release(refreshed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ReleaseRegistry(registry_settings(refreshed[1])).pull("champion", tmp_path_factory.mktemp("pulled"))


@pytest.mark.slow
def test_models_stay_rows_are_appended_and_the_index_is_bound_to_the_tower(job: Any, release: Path) -> None:
    manifest, before = verify_release(release), read_manifest(job.release)
    assert {name: manifest.parts[name] for name in KEPT} == {name: before.parts[name] for name in KEPT}
    assert manifest.metrics == before.metrics
    old, new = load_release(job.release), load_release(release)
    n_old = len(old.items)
    assert new.items.item_id.tolist() == [*old.items.item_id.tolist(), *BORN]
    index, tower = read_json(release / "index.json"), read_json(release / "tower.json")
    assert index["tower_version"] == tower["tower_version"] == sha256_file(release / "user_tower.onnx")
    assert index["item_vectors_sha256"] == manifest.parts["item_vectors.npy"]
    assert tower["refreshed_from"] == before.tower_version != manifest.tower_version
    assert index["recall"] >= 0.95 and index["recall_k"] == before.funnel.candidate_k
    assert tower["vectors_as_of_ms"] == manifest.as_of_ms
    vectors, _ = PortableItemTower(release / "item_tower.onnx").embed(new.items, manifest.as_of_ms)
    moved = np.abs(new.candidate.item_vectors - vectors).max(axis=1) > 2e-5
    trained = np.any(table_of(onnx.load_model(str(release / "item_tower.onnx")), IDS)[:-1], axis=1)[:n_old]
    assert n_old / 2 < trained.sum() < n_old
    assert not moved[:n_old][trained].any() and moved.any(), "items that were not trained are embedded by their touches"
    still = new.candidate.item_vectors[:n_old][trained]
    np.testing.assert_allclose(still, old.candidate.item_vectors[trained], atol=1e-5)


def inputs_of(histories: np.ndarray) -> TowerInputs:
    """Return the inputs of somebody unknown with these histories."""
    nothing, nobody = np.zeros_like(histories), np.full(len(histories), UNKNOWN_USER)
    return TowerInputs(histories, nothing, nothing, nobody, np.zeros((len(histories), 0), dtype=np.int64))


@pytest.mark.slow
def test_known_users_are_embedded_as_before_and_new_items_can_be_read_and_found(job: Any, release: Path) -> None:
    old, new = load_release(job.release), load_release(release)
    n_old, n_new, length = len(old.items), len(new.items), old.config.history_length
    histories = np.full((3, length), n_old, dtype=np.int64)
    histories[1:, 0] = 5
    known = inputs_of(histories)
    grown = inputs_of(np.where(histories == n_old, n_new, histories))
    np.testing.assert_allclose(new.candidate.embed(grown), old.candidate.embed(known), atol=1e-6)
    grown.items[2, 0] = n_old  # the first new item
    empty, first, born = new.candidate.embed(grown)
    assert np.linalg.norm(born) == pytest.approx(1.0, abs=1e-4)
    assert not np.allclose(first, born, atol=1e-3) and not np.allclose(empty, born, atol=1e-3)
    assert set(range(n_old, n_old + 3)) <= set(new.candidate.indexed.tolist())
    query = new.candidate.item_vectors[n_old : n_old + 1]
    assert new.candidate.search(query, 1, [np.empty(0, np.int64)])[0].scores[0] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_a_new_item_is_recommended_where_only_new_ones_are_asked_for(release: Path) -> None:
    from stages.contracts.item_filter import ItemFilter

    funnel = Funnel(load_release(release))
    (user,) = funnel.known_users(1)
    answer = funnel.recommend(user, 3, funnel.release.manifest.as_of_ms, wanted=ItemFilter(max_age_days=0.01))
    assert {item.item_id for item in answer.items} >= set(BORN)


@pytest.mark.slow
def test_without_a_champion_it_fails_at_once(failed: Callable[..., tuple[Airflow, Run]]) -> None:
    _, run = failed("refresh_index", {"config": "configs/demo.yaml"})
    assert run.code == 1
    assert run.tasks["champion"] == ("failed", 1), "no retry can mend this"
    assert run.tasks["promote"][0] == "upstream_failed"
