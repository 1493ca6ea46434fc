"""Settings come from the environment and the options, and wrong ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.run import parse_overrides
from stages.contracts.errors import ConfigError, DataError
from stages.run_recipe import load_recipe
from stages.settings import load_settings, parse_time_ms, registry_settings, release_cache


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "demo.yaml").write_text("seed: 3\ncandidate: {training: {epochs: 2}, model: {dimension: 8}}\n")
    (configs / "movielens.yaml").write_text("seed: 4\n")
    return {"SLUICE_HOME": str(tmp_path / "home"), "SLUICE_CONFIGS": str(configs)}


def test_embedded_default_lives_below_home(environ: dict[str, str], tmp_path: Path) -> None:
    settings = load_settings(environ, data="synthetic")
    assert settings.warehouse_url == f"duckdb:///{tmp_path / 'home' / 'warehouse.duckdb'}"
    assert settings.registry.tracking_uri == f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    assert settings.runs == tmp_path / "home" / "runs"
    assert release_cache(environ) == tmp_path / "home" / "serving" / "releases"
    assert settings.recipe["seed"] == 3


def test_one_variable_changes_the_warehouse(environ: dict[str, str]) -> None:
    url = "postgresql+psycopg2://postgres@127.0.0.1/sluice"
    assert load_settings({**environ, "SLUICE_WAREHOUSE_URL": url}, data="synthetic").warehouse_url == url
    remote = registry_settings({**environ, "SLUICE_MLFLOW_URI": "http://127.0.0.1:5000"})
    assert (remote.tracking_uri, remote.artifact_root) == ("http://127.0.0.1:5000", None)


def test_the_recipe_suits_the_data(environ: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    for name in ("u.data", "u.item", "u.user"):
        (folder / name).touch()
    assert load_settings(environ, data=str(folder)).recipe["seed"] == 4
    (tmp_path / "x.csv").touch()
    (tmp_path / "empty").mkdir()
    for name in ("x.csv", "empty"):
        with pytest.raises(ConfigError, match=rf"a recipe is needed for .*{name}, which has no known layout"):
            load_settings(environ, data=str(tmp_path / name))
    with pytest.raises(DataError, match=r"nowhere: no such file or directory"):
        load_settings(environ, data=str(tmp_path / "nowhere"))


def test_without_a_folder_of_recipes_those_of_this_version_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the folder in which a run is started."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("seed: 99\n")
    monkeypatch.chdir(tmp_path)
    settings = load_settings({"SLUICE_HOME": str(tmp_path)}, data="synthetic")
    assert settings.config_path == str(ROOT / "configs" / "demo.yaml")
    assert settings.recipe == yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))


def test_the_warehouse_itself_is_no_path_and_needs_a_recipe(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a recipe is needed for data = warehouse"):
        load_settings(environ, data="warehouse")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}")
    assert load_settings(environ, data="warehouse", config=str(recipe)).data == "warehouse"
    assert load_settings({**environ, "SLUICE_DATA": "warehouse"}, config=str(recipe)).data == "warehouse"


def test_without_data_the_warehouse_is_read_and_no_world_is_made(environ: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{}")
    assert load_settings(environ, config=str(recipe)).data == "warehouse"
    assert load_settings({**environ, "SLUICE_DATA": "synthetic"}).data == "synthetic"
    with pytest.raises(
        ConfigError, match=r"data: nothing is given; allowed is --data PATH, --data synthetic .*--config"
    ):
        load_settings(environ)
    own = load_settings(environ, overrides={"index": {"kinds": ["flat"]}}, needs_recipe=False)
    assert (own.data, own.config_path, own.recipe) == ("warehouse", None, {"index": {"kinds": ["flat"]}})
    laid = own.on_recipe({"seed": 5, "index": {"kinds": ["ivf"], "recall_k": 9}}, "champion")
    assert laid.recipe == {"seed": 5, "index": {"kinds": ["flat"], "recall_k": 9}}


def test_overrides_are_laid_over_the_recipe(environ: dict[str, str]) -> None:
    settings = load_settings(
        environ, data="synthetic", overrides=parse_overrides(("candidate.training.epochs=5", "seed=9")), n_processes=2
    )
    assert settings.recipe == {
        "seed": 9,
        "candidate": {"training": {"epochs": 5}, "model": {"dimension": 8}, "distributed": {"n_processes": 2}},
    }


def test_the_model_to_start_from_is_part_of_the_recipe(environ: dict[str, str], tmp_path: Path) -> None:
    settings = load_settings(environ, data="synthetic", warm_start=str(tmp_path / "x" / ".." / "step"))
    assert settings.recipe["candidate"]["warm_start"]["path"] == str((tmp_path / "step").resolve())


def test_malformed_override_is_refused() -> None:
    with pytest.raises(ConfigError, match="--set 'epochs': allowed is KEY=VALUE"):
        parse_overrides(("epochs",))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("seed=1", "seed.x=2"), "--set 'seed.x=2': seed is given a value of its own by another --set"),
        (("seed=[1",), r"--set 'seed=[1': '[1' is not valid YAML"),
        (("candidate..epochs=1",), "--set 'candidate..epochs=1': allowed is KEY=VALUE"),
    ],
)
def test_overrides_that_cannot_be_read_are_refused(pairs: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_overrides(pairs)
    assert str(found.value).startswith(words)


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("file", "options", "blamed", "words"),
    [
        (
            "",
            {"overrides": {"candidate": {"dim": 32}}},
            "overrides (--set)",
            "candidate.dim: unknown key",
        ),
        ("", {"overrides": {"seed": "x"}}, "overrides (--set)", "seed = 'x': Input should be a valid integer"),
        ("", {"overrides": {"candidate": 5}}, "overrides (--set)", "candidate = 5: Input should be a valid dictionary"),
        ("", {"overrides": {"index": {"kinds": ["flat", "x"]}}}, "overrides (--set)", "index.kinds.1 = 'x'"),
        ("", {"n_processes": 0}, "n_processes (--processes)", "candidate.distributed.n_processes = 0"),
        (
            "",
            {"overrides": {"funnel": {"light_k": 5000}}},
            "overrides (--set) with {file}",
            "(root): funnel.light_k = 5000",
        ),
        ("sede: 1\n", {}, "{file}", "sede: unknown key, allowed are"),
        ("sede: 1\n", {"overrides": {"seed": 2}}, "{file}", "sede: unknown key, allowed are"),
        ("funnel: {light_k: 5000}\n", {"overrides": {"seed": 2}}, "{file}", "(root): funnel.light_k"),
    ],
)
def test_a_fault_is_blamed_on_what_gave_it(
    tmp_path: Path, file: str, options: dict[str, Any], blamed: str, words: str
) -> None:
    path = tmp_path / "recipe.yaml"
    recipe = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8")) | (yaml.safe_load(file) or {})
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(ConfigError) as found:
        load_recipe(load_settings({"SLUICE_HOME": str(tmp_path)}, config=str(path), **options))
    assert str(found.value).startswith(f"{blamed.format(file=path)}: {words}"), str(found.value)
    assert ";" not in str(found.value), "one fault, one blame"


def test_two_faults_are_each_blamed_on_their_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8") + "\nsede: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as found:
        load_recipe(load_settings({}, config=str(path), overrides={"gate": {"x": 1}}))
    assert "; overrides (--set): gate.x: unknown key" in f"; {found.value}"
    assert f"; {path}: sede: unknown key" in f"; {found.value}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1970-01-02", 86_400_000), ("1970-01-01T01:00:00+01:00", 0), ("1970-01-01T00:00:01Z", 1_000)],
)
def test_times_without_zone_are_utc(text: str, wanted: int) -> None:
    assert parse_time_ms(text) == wanted


def test_a_wrong_time_is_named() -> None:
    with pytest.raises(ConfigError, match="as_of = 'yesterday'"):
        parse_time_ms("yesterday")
