"""Running a job from Python: recipes in every form, and what a run tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sluice

ROOT = Path(__file__).resolve().parents[2]
WORLD = {"world": {"n_users": 60, "n_items": 80, "n_events": 2000, "days": 20}}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the surroundings reaches a test."""
    for name in ("SLUICE_CONFIG", "SLUICE_CONFIGS", "SLUICE_DATA", "SLUICE_WAREHOUSE_URL", "SLUICE_MLFLOW_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))


def test_a_recipe_is_chosen_by_the_data(tmp_path: Path) -> None:
    for name in ("u.data", "u.item", "u.user"):
        (tmp_path / name).touch()
    assert sluice.load_recipe(data=tmp_path) == sluice.load_recipe(sluice.shipped_recipes()["movielens"])
    assert sluice.load_recipe(data=str(tmp_path), overrides={"seed": 9}).seed == 9


def test_the_shipped_recipes_are_known_by_name_and_valid() -> None:
    recipes = sluice.shipped_recipes()
    assert {"demo", "movielens"} <= set(recipes)
    assert set(recipes) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for path in recipes.values():
        assert isinstance(sluice.load_recipe(path), sluice.Recipe)


def test_a_recipe_may_be_a_path_values_or_what_was_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLUICE_CONFIG", str(tmp_path / "another.yaml"))
    loaded = sluice.load_recipe(str(sluice.shipped_recipes()["demo"]), overrides={"seed": 5})
    assert loaded.seed == 5
    assert sluice.load_recipe(loaded) == loaded
    assert sluice.load_recipe(loaded.model_dump(mode="json"), overrides={"seed": 6}).seed == 6
    with pytest.raises(sluice.ConfigError, match=r"another\.yaml: No such file"):
        sluice.load_recipe()


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ({"sede": 1}, {}, "recipe: .*sede: unknown key"),
        ("{demo}", {"overrides": {"index": {"kindz": 1}}}, r"overrides \(--set\): index\.kindz: unknown key"),
        ("nowhere.yaml", {}, r"nowhere\.yaml: No such file"),
        (None, {}, "data: nothing is given"),
    ],
)
def test_bad_input_is_named(recipe: Any, options: dict[str, Any], words: str) -> None:
    recipe = sluice.shipped_recipes()["demo"] if recipe == "{demo}" else recipe
    with pytest.raises(sluice.ConfigError, match=words):
        sluice.load_recipe(recipe, **options)
    with pytest.raises(sluice.ConfigError, match=words):
        sluice.run(recipe=recipe, **options)


def test_a_run_goes_to_its_home_and_says_how_far_it_came(tmp_path: Path) -> None:
    started: list[str] = []
    home = tmp_path / "elsewhere"
    run = sluice.run("synthetic", home=home, overrides=WORLD, until="check_data", progress=started.append)
    assert started == ["ingest", "check_data"] == list(run.results)
    assert run.home == home and (home / "warehouse.duckdb").is_file()
    assert not (tmp_path / "home").exists()
    assert not run.promoted
    with pytest.raises(sluice.ConfigError, match="no release: it ended with the step check_data, before assemble"):
        _ = run.release
    with pytest.raises(sluice.ConfigError, match="no ledger: it ended with the step check_data, before assemble"):
        _ = run.ledger
    with sluice.Warehouse(f"duckdb:///{home / 'warehouse.duckdb'}") as warehouse:
        loaded = run.results["ingest"].info["tables"]["interactions"]["rows_loaded"]
        assert warehouse.counts()["interactions"] == loaded > 0


def test_a_refresh_without_a_champion_says_so(tmp_path: Path) -> None:
    with pytest.raises(sluice.ReleaseError, match="champion"):
        sluice.refresh(home=tmp_path / "empty")


def test_what_is_no_release_or_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sluice.ReleaseError, match=r"manifest\.json: missing"):
        sluice.load_release(str(tmp_path))
    with pytest.raises(sluice.DataError, match=r"snapshot .*: snapshot\.json: No such file"):
        sluice.Snapshot(str(tmp_path))
